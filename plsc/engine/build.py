"""Builds from the settings what training works with: data, head, callbacks."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Optional, Union

from plsc import parallel
from plsc.config import MOST_NAMES, Config
from plsc.data import sources
from plsc.data.loader import ImageLoader
from plsc.data.readers import ReaderLoader
from plsc.data.records import Records
from plsc.engine.callbacks import Callback, CheckpointSaver
from plsc.engine.log import ProgressLog
from plsc.engine.scalars import FOLDER as SCALARS
from plsc.engine.scalars import ScalarFiles
from plsc.engine.upload import Uploader
from plsc.errors import ConfigError
from plsc.heads import ClassifierHead, build_head
from plsc.inference.classes import check_names
from plsc.machine.json_files import LARGEST
from plsc.storage import Retrying

logger = logging.getLogger("plsc")


def open_source(config: Config) -> Optional[Records]:
    """Opens this rank's images of the data set; returns None if a `train_reader` replaces them.

    What the data says about its classes goes into the settings: their names, unless the settings give some, and their
    number, for `set_class_num('auto')`.

    Raises:
        ConfigError: The classes of a `train_reader` cannot be counted, or there are more or fewer names than classes.
        DataError: The data cannot be opened.
    """
    if config.train_reader is not None:
        if not config.num_classes:
            raise ConfigError("set_class_num('auto') cannot count the classes of a train_reader; give their number")
        check_names(config.class_names or (), config.num_classes)
        return None
    source = sources.open_images(
        config.dataset_dir,
        config.num_classes or None,
        parallel.rank(),
        parallel.world_size(),
        data_format=config.data_format,
        shuffle=config.shuffle,
        test_sets=[name.strip() for name in config.val_targets.split(",")],
    )
    config.num_classes = config.num_classes or parallel.from_rank_0(
        lambda: source.num_classes, "the count of the classes"
    )
    if config.class_names is None and len(source.class_names):
        names = tuple(source.class_names)
        if len(names) <= MOST_NAMES and len(json.dumps(names)) <= LARGEST // 2:
            config.class_names = names
        else:
            logger.warning("the names of %d classes are too long to keep; checkpoints hold numbers alone", len(names))
    check_names(config.class_names or (), config.num_classes)
    return source


def build_loader(config: Config, source: Optional[Records]) -> Union[ImageLoader, ReaderLoader]:
    """Returns a loader of the images of `source`, or of the user's reader if that is None."""
    rank, world_size = parallel.rank(), parallel.world_size()
    if source is None:
        wanted = config.augmentation  # by default a reader augments its images itself
        return ReaderLoader(
            name="train_reader",
            reader=config.train_reader,
            image_shape=config.image_shape,
            num_classes=config.num_classes,
            num_images=config.train_image_num,
            batch_size=config.train_batch_size,
            seed=config.seed,
            augmentation=wanted if wanted.chosen and wanted.changes else None,
            rank=rank,
            world_size=world_size,
        )
    return ImageLoader(
        source,
        image_shape=config.image_shape,
        batch_size=config.train_batch_size,
        augmentation=config.augmentation,
        seed=config.seed,
        num_workers=config.num_workers,
        rank=rank,
        world_size=world_size,
        rule=config.pixels,
    )


def build_classifier(config: Config) -> ClassifierHead:
    """Returns this rank's class centres, with fresh weights."""
    return build_head(
        config.loss_type,
        config.num_classes,
        config.emb_dim,
        config.margin_object or config.margin_of_loss(),
        scale=config.scale,
        sample_ratio=config.sample_ratio,
        seed=config.seed,
        param_attr=config.param_attr,
        bias_attr=config.bias_attr,
        chunk=config.head_chunk,
        compute_dtype=config.mixed_precision.dtype if config.mixed_precision.use_fp16 else "float32",
        simulate=config.mixed_precision.simulate,
    )


def build_uploader(config: Config, store: Optional[Retrying], stop: threading.Event) -> Optional[Uploader]:
    """Returns the callback that uploads checkpoints to `fs_dir_for_save`; None without that setting.

    Args:
        config: The settings.
        store: The storage that `open_store` has opened.
        stop: Set when training ends, so that transfers end too.
    """
    if store is None or config.hdfs is None or config.hdfs.fs_dir_for_save is None:
        return None
    return Uploader(store, config.hdfs.fs_dir_for_save, config.hdfs_upload.when, stop)


def build_callbacks(config: Config, uploader: Optional[Uploader]) -> list[Callback]:
    """Returns all callbacks in the order in which they are called: logging first, saving after those of the user."""
    callbacks: list[Callback] = [ProgressLog(), *config.callbacks, CheckpointSaver()]
    if config.scalars is not None:
        folder = config.scalars.directory or Path(config.model_save_dir, SCALARS)
        callbacks.append(ScalarFiles(config.scalars.kind, Path(folder)))
    if uploader is not None:
        callbacks.append(uploader)
    return callbacks
