"""What the commands that use a trained network share: their options, and the settings that these give."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from plsc import arguments, settings
from plsc.commands.places import CLASSES, NETWORK, RETRYING, place, variables_of_ranks
from plsc.config import CHECKPOINT_WEIGHTS
from plsc.data.inputs import Inputs
from plsc.errors import ConfigError
from plsc.machine import launch
from plsc.storage.address import is_address

if TYPE_CHECKING:
    import paddle

    from plsc.config import Config
    from plsc.data.collection import Collection
    from plsc.data.pixels import PixelRule
    from plsc.entry import Entry
    from plsc.inference.predictor import Predictor

_Settings = Mapping[str, Any]
_NONE: _Settings = {}


def add_options(parser: argparse.ArgumentParser, exports: bool = False, classes: bool = False) -> None:
    """Adds the options that choose the network, `--set` and `--config`.

    Args:
        parser: The parser of the command.
        exports: Whether `--model`, an export, can replace `--checkpoint`.
        classes: Whether the command needs the class centres too, and not the network alone.
    """
    role = CLASSES if classes else NETWORK
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument(
        "--checkpoint",
        type=place(role, str),
        metavar="DIR",
        help="folder of the checkpoint, such as output/19, zoo:glyphs (see plsc zoo) or s3://bucket/19",
    )
    if exports:
        network.add_argument(
            "--model",
            type=place(role, str),
            action=_ExportOrCheckpoint,
            metavar="DIR",
            help="folder of an export, or of a checkpoint",
        )
    add_network_options(parser)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the network as the first argument of the command line, and `add_network_options`."""
    parser.add_argument(
        "model",
        type=place(NETWORK, str),
        action=_ExportOrCheckpoint,
        metavar="CHECKPOINT",
        help="folder of a checkpoint, such as output/19 or s3://bucket/19, or of an export, or zoo:glyphs (see plsc "
        "zoo)",
    )
    parser.set_defaults(checkpoint=None, model=None)
    add_network_options(parser)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say more about a network: `--weights`, `--model-from`, `--set` and `--config`."""
    parser.add_argument(
        "--weights",
        choices=CHECKPOINT_WEIGHTS,
        help="which weights of the checkpoint to use: 'plain', or their average (the default), which a training with "
        "set_ema keeps",
    )
    parser.add_argument(
        "--model-from",
        metavar="FILE:NAME",
        help="script and class of a custom model, such as train.py:Net, for the checkpoint of one; NAME may also be a "
        "function that returns the model",
    )
    settings.add_options(parser)


class _ExportOrCheckpoint(argparse.Action):
    """An option that names an export. If it names a checkpoint, it does what `--checkpoint` does."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: Any = None
    ) -> None:
        from plsc.inference.export_folder import is_checkpoint

        # What an address names is known once it has been fetched; see `places`.
        is_one = not is_address(value) and is_checkpoint(Path(value))
        setattr(namespace, "checkpoint" if is_one else self.dest, value)


def add_skip_damaged(parser: argparse.ArgumentParser, result: str) -> None:
    """Adds `--skip-damaged` to a command that gives a damaged image some `result`, such as "zeros"."""
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help=f"give {result} and a warning to an image that cannot be read or decoded, instead of stopping",
    )


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Adds `--ranks`, for `on_ranks`."""
    arguments.add_ranks(parser, "number of processes that share the work (default 1)")


def on_ranks(options: argparse.Namespace, action: Callable[[], int]) -> int:
    """Runs `action` in this process, or the whole command in as many processes as `--ranks` says.

    Returns:
        The exit status.
    """
    if options.ranks == 1 or "PADDLE_TRAINER_ID" in os.environ:  # the latter in those processes
        return action()
    command = [sys.executable, "-m", "plsc", *options.arguments]
    status = launch.run(command, options.ranks, variables=variables_of_ranks(options))
    options.is_incomplete = status != 0  # so that nothing is uploaded
    return status


def entry_of(options: argparse.Namespace, own: _Settings = _NONE, defaults: _Settings = _NONE) -> Entry:
    """Returns an `Entry` with the settings of `settings_of`, and the model of `--model-from`."""
    from plsc.entry import Entry

    entry = Entry(settings=settings_of(options, own, defaults))
    model = custom_model(options)
    if model is not None:
        entry.set_model(model)
    return entry


def custom_model(options: argparse.Namespace) -> Optional[paddle.nn.Layer]:
    """Returns the model of `--model-from`, with the sizes of the checkpoint; None without that option.

    Raises:
        ConfigError: The script does not define it, or `--model` names an export, which needs no script.
        CheckpointError: The checkpoint cannot be read.
    """
    if options.model_from is None:
        return None
    if getattr(options, "model", None):
        raise ConfigError(
            "--model-from is for the checkpoint of a custom model, and --model is an export; leave it out"
        )
    from plsc.checkpoint import open_checkpoint
    from plsc.commands.model_file import make_model

    meta = open_checkpoint(Path(options.checkpoint), partial=True).meta
    return make_model(options.model_from, {name: meta[name] for name in ("emb_dim", "image_shape", "num_classes")})


def prepared_config(options: argparse.Namespace, own: _Settings = _NONE, reads: Sequence[str] = ()) -> Config:
    """Returns checked settings of a command line with `add_options`, for commands that need no `Entry`.

    Args:
        options: The parsed command line.
        own: The settings of the command's other options.
        reads: What the command reads; there may be addresses among it.
    """
    from plsc.evaluation.trained import prepare

    config = settings.make_config(settings_of(options, own))
    config.inputs = tuple(filter(is_address, reads))
    model = custom_model(options)
    if model is not None:
        settings.change(config, "model", model)
    return prepare(config)


def predictor_of(
    options: argparse.Namespace, flip: bool = False, images: _Settings = _NONE, reads: Sequence[str] = ()
) -> tuple[Predictor, PixelRule]:
    """Returns the export that `--model` names, and what pixels mean to it, without loading Paddle for one in ONNX.

    Args:
        options: The parsed command line.
        flip: Whether to average the embeddings of an image and its mirror image.
        images: What wins over what the export records about its images; see `Config.with_images_of`.
        reads: What the command reads; there may be addresses among it.

    Raises:
        ConfigError: A setting cannot work, or the export cannot be used.
    """
    from plsc.inference.predictor import predictor_of

    custom_model(options)  # refuses --model-from
    config = settings.make_config(settings_of(options))
    config.inputs = tuple(filter(is_address, reads))
    config.check_combination()
    return predictor_of(config, flip, images)


def image_paths(paths: Sequence[str], inputs: Inputs) -> list[Path]:
    """Returns the images that a command line names, and those in the folders that it names.

    Args:
        paths: The images and folders.
        inputs: Fetches those in a store.

    Raises:
        DataError: A folder holds no image.
        PlscError: An image cannot be fetched.
    """
    from plsc.data.image_folders import image_files

    local = [Path(inputs.images(path)) for path in paths]
    return [image for path in local for image in (image_files(path) if os.path.isdir(path) else [path])]


def collection_of(images: Sequence[Path]) -> Collection:
    """Returns image files as something that an `Embedder` takes."""
    from plsc.data.collection import ImageFiles
    from plsc.data.image_lists import Listed

    return ImageFiles(Path(), [Listed(str(image)) for image in images])


def settings_of(options: argparse.Namespace, own: _Settings = _NONE, defaults: _Settings = _NONE) -> dict[str, Any]:
    """Returns the settings of a command line with `add_options`.

    `--config` wins over what the checkpoint says about its network, `--set` over both, and other options over `--set`.

    Args:
        options: The parsed command line.
        own: The settings of the command's other options. A value of None stands for an option that was not given.
        defaults: The defaults of the command, where they are not those of training.

    Raises:
        ConfigError: A setting does not exist, or a script made the model of the checkpoint.
        CheckpointError: The checkpoint cannot be read.
    """
    chosen = _for_reading(settings.read_options(options), [*vars(options).values(), *own.values()])
    given = {name: value for name, value in own.items() if value is not None}
    place: dict[str, Any] = {}
    if getattr(options, "model", None):
        if options.weights is not None:
            raise ConfigError(
                f"--weights {options.weights} is for a checkpoint, and --model is an export; leave it out"
            )
        network, place = {}, {"export_dir": options.model}
    else:
        weights = {} if options.weights is None else {"weights": options.weights}
        network = _settings_of_checkpoint(options)
        place["checkpoint_dir"] = {"directory": options.checkpoint, **weights} if weights else options.checkpoint
    return {"model_save_dir": "", **defaults, **network, **chosen, **place, **given}


def _for_reading(chosen: dict[str, Any], values: Sequence[Any]) -> dict[str, Any]:
    """Returns settings of which `hdfs_upload` says nothing about the uploads of a training.

    Args:
        chosen: The settings of `--set` and `--config`.
        values: What else the command line names. Only where an address is left, there is something to try again.
    """
    if RETRYING not in chosen:
        return chosen
    others = {name: value for name, value in chosen.items() if name != RETRYING}
    words = [word for one in (*values, chosen.get("dataset_dir")) for word in (one if isinstance(one, list) else [one])]
    if not any(map(is_address, words)):
        return others
    seconds = settings.make_config({RETRYING: chosen[RETRYING]}).hdfs_upload.retry_seconds
    return {**others, RETRYING: {"when": "end", "retry_seconds": seconds}}


def _settings_of_checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    from plsc.checkpoint import open_checkpoint
    from plsc.models import MODEL_NAMES

    folder = options.checkpoint
    meta = open_checkpoint(Path(folder), partial=True).meta
    is_custom = options.model_from is not None
    if meta["model"] not in MODEL_NAMES and not is_custom:
        raise ConfigError(
            f"{folder}: its model {meta['model']!r} is a custom one; name the script and the class that define it, as "
            f"in --model-from train.py:{meta['model']}"
        )
    return {
        **({} if is_custom else {"model_name": meta["model"]}),
        "image_shape": meta["image_shape"],
        "emb_dim": meta["emb_dim"],
        **({"num_classes": meta["num_classes"]} if meta["num_classes"] else {}),  # imported weights may have no head
    }
