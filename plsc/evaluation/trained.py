"""What is done with a trained network: it is found, tested, used to embed images, and exported."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import checkpoint, parallel
from plsc.checkpoint.download import fetch_checkpoint
from plsc.config import Config, check_bool
from plsc.data.collection import Collection
from plsc.data.inputs import Inputs
from plsc.data.pixels import NEWEST_RULE
from plsc.errors import ConfigError
from plsc.evaluation.build import build_evaluator, open_inputs, reader_loader
from plsc.evaluation.embedder import Embedder, open_together
from plsc.evaluation.log import log_test
from plsc.inference.classes import Answer, CheckpointCentres, ClassCentres, check_names
from plsc.inference.classes import classify as find_classes
from plsc.inference.export import export
from plsc.inference.export_folder import open_centres
from plsc.inference.networks import ExportedNetwork, Network, TrainedNetwork
from plsc.machine.logs import set_up_logging
from plsc.models import build_backbone
from plsc.search.parquet import check_parquet, write_parquet
from plsc.storage.address import check_path, is_address

logger = logging.getLogger("plsc")


def prepare(config: Config, news: Sequence[str] = ()) -> Config:
    """Sets up logging and the ranks.

    Args:
        config: The settings.
        news: Lines for the log of rank 0.

    Returns:
        A checked copy of the settings, which later calls of setters do not change.

    Raises:
        ConfigError: Two settings contradict each other.
    """
    set_up_logging(parallel.rank())
    if parallel.rank() == 0:
        for line in news:
            logger.info(line)
    parallel.initialise()
    parallel.together(config.check_combination, "the start")
    return dataclasses.replace(config)


def open_network(action: str, config: Config, backbone: Optional[paddle.nn.Layer] = None) -> tuple[Network, Config]:
    """Opens the export of the settings, or else `backbone`, or else the network of the checkpoint.

    Args:
        action: What the network is for; errors name it.
        config: Prepared settings.
        backbone: The network of the last training of this process.

    Returns:
        The network, and the settings with its sizes and with what it records about its images.

    Raises:
        ConfigError: There is no network, or it does not fit the settings.
        CheckpointError: The checkpoint cannot be used.
    """
    if not config.export_dir:
        backbone, config = _find_backbone(action, config, backbone)
        return TrainedNetwork(backbone, config, stays=True), config
    network = parallel.together(lambda: ExportedNetwork(Path(config.export_dir)), "the export")
    config = dataclasses.replace(_with_images_of(network.images, config), image_shape=network.image_shape)
    return network, dataclasses.replace(config, emb_dim=network.emb_dim)


def evaluate(config: Config, backbone: Optional[paddle.nn.Layer] = None) -> dict[str, dict[str, Any]]:
    """Does what `Entry.test` documents, with prepared settings."""
    network, config = open_network("test", config, backbone)
    kept = Path(config.test_embeddings_dir) if config.test_embeddings_dir else None
    results = build_evaluator(config, kept)(network)
    log_test(results, config.test_fars)
    return results


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The arguments of `Entry.predict`.

    Raises:
        ConfigError: One of them cannot work, or is useless without another.
    """

    source: Union[str, Path, None] = None
    output: Union[str, Path, None] = None
    flip: bool = False
    parquet: bool = False
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        for name in ("source", "output"):
            value = getattr(self, name)
            if not isinstance(value, (str, Path, type(None))) or value == "":
                raise ConfigError(f"predict: {name}={value!r}: expected a path")
        if "://" in str(self.output):
            raise ConfigError(f"predict: output={self.output!r}: is an address; name a folder, or use plsc predict")
        for name in ("flip", "parquet", "skip_damaged"):
            check_bool(f"predict: {name}", getattr(self, name))
        for name, given, needed in (
            ("parquet", self.parquet, "output"),
            ("output", self.output is not None, "source"),
            ("skip_damaged", self.skip_damaged, "source"),
        ):
            if given and getattr(self, needed) is None:
                raise ConfigError(f"predict: {name} works only with {needed}; name {needed}, or leave {name} out")


def predict(wanted: Prediction, config: Config, backbone: Optional[paddle.nn.Layer] = None) -> np.ndarray:
    """Does what `Entry.predict` documents, with prepared settings."""
    network, config = open_network("predict", config, backbone)
    embedder = Embedder(network, config, wanted.flip, progress=True, skip_damaged=wanted.skip_damaged)
    if wanted.source is None:
        if config.predict_reader is None:
            raise ConfigError("predict(): there is nothing to embed; name a source, or assign predict_reader")
        loader = reader_loader("predict_reader", config.predict_reader, config, num_classes=None)
        return embedder.embed_reader(loader)[0]
    with open_inputs(config) as inputs:
        images = open_source(inputs, wanted.source)
        if wanted.output is None:
            return embedder.embed(images)
        output = Path(wanted.output)
        if wanted.parquet:
            parallel.from_rank_0(lambda: check_parquet(output), "a look at the Parquet file")
        vectors = embedder.keep(images, output, inputs.named(images.source))
    if wanted.parquet:
        parallel.from_rank_0(lambda: write_parquet(output), "the Parquet file")
    return vectors


def open_source(inputs: Inputs, source: Union[str, Path]) -> Collection:
    """Opens the images of a path or an address on every rank; see `open_together`."""
    return open_together(Path(fetched(inputs, source)))


def fetched(inputs: Inputs, source: Union[str, Path]) -> Union[str, Path]:
    """Returns a path of images, or the path that stands for their address. All ranks call it."""
    if not is_address(source):
        check_path("source", str(source))
        return source
    return parallel.together(lambda: inputs.images(str(source)), "the images")


def convert(
    config: Config,
    backbone: Optional[paddle.nn.Layer],
    format: str,
    precision: str,
    calibration: Union[str, Path, None],
    *,
    force: bool = False,
    classes_from: Optional[str] = None,
) -> Path:
    """Does what `Entry.convert_for_prediction` documents, with prepared settings.

    Args:
        config: The settings.
        backbone: The network of the last training of this process.
        format: 'paddle' or 'onnx'.
        precision: 'float32', 'float16' or 'int8'.
        calibration: Images like those to embed.
        force: Whether an export that disagrees with the network gives a warning instead of an error.
        classes_from: The checkpoint whose class centres the export is to hold; None leaves them out.
    """
    if not config.model_save_dir:
        raise ConfigError("convert_for_prediction(): set_model_save_dir is empty; name the folder to export to")
    if not isinstance(calibration, (str, Path, type(None))):
        raise ConfigError(f"convert_for_prediction: calibration={type(calibration).__name__}: expected a path")
    check_bool("convert_for_prediction: force", force)
    found, config = _find_backbone("convert_for_prediction", config, backbone)
    # The checkpoint of the settings is not that of a network that has been trained since.
    source = classes_from or ("" if backbone is not None else config.checkpoint_dir)

    def open_classes() -> tuple[Sequence[str], Optional[ClassCentres]]:
        if parallel.rank() > 0:  # Rank 0 exports, and the others may not see the checkpoint.
            return (), None
        return _class_names(config, source), CheckpointCentres(Path(classes_from)) if classes_from else None

    names, centres = parallel.together(open_classes, "the classes of the network")
    with open_inputs(config) as inputs:
        folder = export(
            found,
            Path(config.model_save_dir),
            config.image_shape,
            format,
            precision,
            None if calibration is None else Path(fetched(inputs, calibration)),
            force=force,
            class_names=names,
            centres=centres,
            rule=config.pixels,
            mirror=config.augmentation.mirror,
        )
    logger.info("exported to %s", folder)
    return folder


def classify(
    config: Config,
    images: Union[Collection, str, Path],
    top: int,
    backbone: Optional[paddle.nn.Layer] = None,
    classes_from: str = "",
    skip_damaged: bool = False,
) -> list[list[Answer]]:
    """Returns the classes that images most probably show, with the class centres of an export or of a checkpoint.

    Args:
        config: Prepared settings, which name the export or the checkpoint.
        images: The images, or their source as `Entry.predict` takes it.
        top: Number of answers for each image.
        backbone: The network of the last training of this process.
        classes_from: The checkpoint of that training.
        skip_damaged: Whether an image that cannot be read or decoded gets no answers and a warning.

    Raises:
        ConfigError: The export holds no class centres, or there are more or fewer names than classes.
        DataError: One of the images cannot be read.
    """
    network, config = open_network("classify", config, backbone)

    def open_classes() -> ClassCentres:
        if isinstance(network, ExportedNetwork):
            centres = open_centres(Path(config.export_dir), network.record)
        else:
            centres = CheckpointCentres(Path(classes_from or config.checkpoint_dir))
        centres.names = centres.names if config.class_names is None else config.class_names
        check_names(centres.names, centres.count)
        return centres

    centres = parallel.together(open_classes, "the classes of the network")
    with open_inputs(config) as inputs:
        images = open_source(inputs, images) if isinstance(images, (str, Path)) else images
        embeddings = Embedder(network, config, flip=False, skip_damaged=skip_damaged).embed(images)
    return parallel.together(lambda: find_classes(embeddings, centres, top), "the classes of the images")


def _class_names(config: Config, source: str) -> Sequence[str]:
    """Returns the names of the classes: those of the settings, or else those that the checkpoint `source` records.

    Raises:
        ConfigError: There are more or fewer than the checkpoint has classes.
    """
    if not source:
        return config.class_names or ()
    meta = checkpoint.open_checkpoint(Path(source), partial=True).meta
    names = meta.get("class_names", ()) if config.class_names is None else config.class_names
    check_names(names, meta["num_classes"])
    return names


def _find_backbone(action: str, config: Config, backbone: Optional[paddle.nn.Layer]) -> tuple[paddle.nn.Layer, Config]:
    """Returns `backbone`, or else the network of the checkpoint, and the settings with the images of its training."""
    if backbone is not None:
        return backbone, config
    if not config.checkpoint_dir:
        raise ConfigError(
            f"{action}(): there is no trained model; call train() first, or set_checkpoint_dir('output/<epoch>')"
        )
    fetch_checkpoint(config)
    source = checkpoint.open_checkpoint(Path(config.checkpoint_dir), partial=True)
    config = _with_images_of(source.meta, config)
    backbone = build_backbone(config)
    checkpoint.load_backbone(source, backbone, config.checkpoint_weights)
    return backbone, config


def _with_images_of(record: Mapping[str, Any], config: Config) -> Config:
    """Returns the settings with what a checkpoint or an export records about images; logs an earlier pixel rule."""
    config = config.with_images_of(record)
    if config.pixel_rule != NEWEST_RULE and parallel.rank() == 0:
        logger.info("images are read by pixel rule %d, as in the training of the network", config.pixel_rule)
    return config
