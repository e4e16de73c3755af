"""`plsc search FILE --checkpoint DIR image...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands import places, trained
from plsc.commands.data_source import inputs_of
from plsc.errors import ConfigError
from plsc.machine.logs import set_up_logging
from plsc.machine.names import from_text, readable, to_text

if TYPE_CHECKING:
    import numpy as np

    from plsc.data.pixels import PixelRule
    from plsc.search.index import Hit, SearchIndex


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "search",
        "find the nearest identities of images in an index",
        [
            "plsc search faces.index --checkpoint output/19 a.jpg b.jpg",
            "plsc search faces.index --model net new_images --top 3 --page found.html",
        ],
        "Each identity is shown by its nearest image. An image without an identity is one of its own. Needs pip "
        "install '.[search]'.",
    )
    parser.add_argument(
        "index", type=places.place(places.INDEX), metavar="FILE", help="an index that `plsc index` wrote"
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="an image, or a folder of images, or the address of one"
    )
    trained.add_options(parser, exports=True)
    parser.add_argument(
        "--top", type=at_least(1), default=5, metavar="N", help="identities to show for each image (default 5)"
    )
    parser.add_argument(
        "--probes",
        type=at_least(1),
        metavar="N",
        help="lists of an ivf index to read; more lists find more and take longer",
    )
    parser.add_argument(
        "--page", type=places.place(places.PAGE), metavar="FILE", help="also write an HTML page of thumbnails"
    )
    trained.add_skip_damaged(parser, "no answers")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.search.index import SearchIndex
    from plsc.search.page import check_page, write_page

    set_up_logging(0)
    if options.page is not None:
        check_page(options.page)
    with inputs_of(options, options.images) as inputs:
        images = trained.image_paths(options.images, inputs)
        index = SearchIndex(options.index)
        embeddings, rule = _embeddings(options, index, images)
        usable = (embeddings != 0).any(axis=1) | (not options.skip_damaged)  # a damaged image has an embedding of zeros
        found = iter(index.search(embeddings[usable], options.top, options.probes))
        hits = [next(found) if one else [] for one in usable]
        if options.page is not None:
            source = from_text(index.meta["source"] or "")
            shown = [hit.name for one in hits for hit in one]
            write_page(options.page, inputs.some_of(source, shown), images, hits, rule=rule, named=inputs.named)
        names = [inputs.named(str(image)) for image in images]
    if options.json:
        print_json([{"image": to_text(name), "hits": list(map(_plain, one))} for name, one in zip(names, hits)])
        return 0
    for name, one in zip(names, hits):
        print(readable(name))
        for hit in one:
            print(f"  {hit.cosine:.4f}  {readable(hit.identity) or '-'}  {readable(hit.name)}")
    return 0


def _plain(hit: Hit) -> dict[str, Any]:
    """Returns a hit for JSON."""
    return {"name": to_text(hit.name), "identity": to_text(hit.identity), "cosine": hit.cosine}


def _embeddings(
    options: argparse.Namespace, index: SearchIndex, images: Sequence[Path]
) -> tuple[np.ndarray, PixelRule]:
    """Embeds the images, after checking that they can be compared with those of the index.

    Returns:
        The embeddings [N, D], and what the pixels of the images meant.
    """
    flip = bool(index.meta["flip"])
    record = {name: index.meta[name] for name in ("pixel_rule", "image_ground") if index.meta[name] is not None}
    if options.model:
        predictor, rule = trained.predictor_of(options, flip, record, options.images)
        _check_sizes(options, index, predictor.emb_dim, predictor.image_shape)
        _check_network(options, index, predictor.network, predictor.digest)
        return predictor.embed(images, options.skip_damaged), rule
    from plsc.evaluation.embedder import Embedder
    from plsc.evaluation.trained import open_network

    network, config = open_network("search", trained.prepared_config(options, reads=options.images))
    _check_sizes(options, index, network.emb_dim, network.image_shape)
    _check_network(options, index, network.model, network.export)
    config = config.with_images_of({**config.image_record(), **record})
    embedder = Embedder(network, config, flip, skip_damaged=options.skip_damaged)
    return embedder.embed(trained.collection_of(images)), config.pixels


def _check_network(
    options: argparse.Namespace, index: SearchIndex, network: Optional[str], export: Optional[str]
) -> None:
    """Refuses another network than that of the index, as far as both record which network that is.

    Args:
        options: The command line.
        index: The index.
        network: The sha256 of the trained network.
        export: The sha256 of the export; None for a checkpoint.
    """
    same = [
        found == made
        for found, made in ((network, index.meta["model"]), (export, index.meta["export"]))
        if found is not None and made is not None
    ]
    if same and not any(same):
        raise ConfigError(
            f"{options.model or options.checkpoint}: {options.index} was made with another network, whose embeddings "
            "cannot be compared with those of this one; name that network, or embed the images again and make a new "
            "index"
        )


def _check_sizes(options: argparse.Namespace, index: SearchIndex, emb_dim: int, image_shape: Sequence[int]) -> None:
    named = options.model or options.checkpoint
    if emb_dim != index.emb_dim:
        raise ConfigError(
            f"{named}: its embeddings have {emb_dim} numbers, those of {options.index} have {index.emb_dim}; name the "
            "network that the index was made with"
        )
    if list(image_shape) != list(index.meta["image_shape"] or image_shape):
        raise ConfigError(
            f"{named}: takes images {list(image_shape)}, but {options.index} was made from "
            f"{index.meta['image_shape']}; name the network that the index was made with"
        )
