"""Builds from the settings what training works with: data, head, callbacks."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from plsc import parallel
from plsc.config import MOST_NAMES, Config
from plsc.data import remote, sources
from plsc.data.class_sampler import ClassSampler
from plsc.data.damaged import Skipping
from plsc.data.exclusion import KeptRecords, find_listed
from plsc.data.loader import READ_AHEAD, ImageLoader
from plsc.data.readers import ReaderLoader
from plsc.data.records import Records
from plsc.data.united import UnitedRecords
from plsc.engine.callbacks import Callback, CheckpointSaver
from plsc.engine.class_values import loss_terms
from plsc.engine.damaged import DamagedImages
from plsc.engine.log import ProgressLog
from plsc.engine.scalars import FOLDER as SCALARS
from plsc.engine.scalars import ScalarFiles
from plsc.engine.upload import Uploader
from plsc.errors import ConfigError, counted
from plsc.evaluation.build import open_inputs
from plsc.heads import ClassifierHead, HeadGroup, build_head
from plsc.inference.classes import check_names
from plsc.machine.json_files import LARGEST
from plsc.storage import Retrying

logger = logging.getLogger("plsc")


def open_source(config: Config) -> Optional[Records]:
    """Opens this rank's images of the data set; returns None if a `train_reader` replaces them.

    What the data says about its classes goes into the settings: their names, unless the settings give some, and their
    number, for `set_class_num('auto')`.

    Raises:
        ConfigError: The classes of a `train_reader` cannot be counted, or the numbers of names and classes differ.
        DataError: The data cannot be opened.
    """
    if config.train_reader is not None:
        if config.set_weights is not None or config.heads == "separate":
            said = "weights=..." if config.set_weights is not None else "heads='separate'"
            raise ConfigError(
                f"set_dataset_dir({said}) is set, but a train_reader replaces the data sets; leave out one of them"
            )
        if not config.num_classes:
            raise ConfigError("set_class_num('auto') cannot count the classes of a train_reader; give their number")
        check_names(config.class_names or (), config.num_classes)
        return None
    source = _open_images(config)
    config.data_shuffle = source.shuffle
    config.num_classes = config.num_classes or parallel.from_rank_0(
        lambda: source.num_classes, "the count of the classes"
    )
    if config.class_names is None and len(source.class_names):
        config.class_names = _names_of(source, config)
    check_names(config.class_names or (), config.num_classes)
    return source


def _names_of(source: Records, config: Config) -> Optional[tuple[str, ...]]:
    """Returns the names that data gives to its classes; None if they cannot be kept, or if some have none.

    Raises:
        ConfigError: The data names more classes than there are.
    """
    names = tuple(source.class_names)
    if len(names) > config.num_classes:
        raise ConfigError(
            f"set_class_num({config.num_classes}): {', '.join(config.data_sets)} names "
            f"{counted(len(names), 'class')}; call set_class_num({len(names)}), or set_class_num('auto')"
        )
    if len(names) < config.num_classes:
        logger.warning(
            "set_class_num(%d): %s names only %s, so the names are not used; checkpoints hold numbers alone",
            config.num_classes,
            ", ".join(config.data_sets),
            counted(len(names), "class"),
        )
        return None
    if len(names) > MOST_NAMES or len(json.dumps(names)) > LARGEST // 2:
        logger.warning(
            "the names of %s are too long to keep; checkpoints hold numbers alone", counted(len(names), "class")
        )
        return None
    return names


def _open_images(config: Config) -> Records:
    # To draw by classes, to count their images, or to leave images out, a rank must know all images.
    knows_all = config.sampler != "uniform" or config.exclude is not None or config.counts_classes
    source = _open_set(config, knows_all) if isinstance(config.dataset_dir, str) else _open_several(config)
    try:
        kept = source
        if config.exclude is not None:
            left_out = _left_out(source, config.exclude, config)
            kept = source.without(left_out) if isinstance(source, UnitedRecords) else KeptRecords(source, left_out)
        if config.sampler != "uniform":
            kept = ClassSampler(kept, config.train_batch_size, config.images_per_class, parallel.world_size())
        return kept
    except BaseException:
        source.close()
        raise


def _left_out(source: Records, path: str, config: Config) -> np.ndarray:
    """Returns the numbers of the images that a list names. Rank 0 alone compares the names of all images with it."""
    count = {"the number of images": str(source.num_images)}
    parallel.check_same(count, "give all machines the same data set")

    def find() -> np.ndarray:
        with open_inputs(config) as inputs:
            return find_listed(source, Path(inputs.file(path)))

    return parallel.from_rank_0(find, "the images that are left out")


def _open_set(config: Config, knows_all: bool) -> Records:
    place, num_classes = config.remote_data.get(config.data_sets[0]), config.num_classes or None
    if place is not None:
        source, config.shuffle = remote.open_images(
            place,
            num_classes,
            config.data_format,
            config.shuffle,
            in_flight=config.train_batch_size * (config.num_workers + READ_AHEAD),
            is_split=not knows_all,
            **_options(config),
        )
        return source
    rank, world_size = (0, 1) if knows_all else (parallel.rank(), parallel.world_size())
    return sources.open_images(
        config.data_sets[0],
        num_classes,
        rank,
        world_size,
        data_format=config.data_format,
        shuffle=config.shuffle,
        keeps_index=parallel.rank() == 0,  # the ranks may all open the data as rank 0 of 1
        **_options(config),
    )


def _open_several(config: Config) -> UnitedRecords:
    is_separate, places = config.heads == "separate", config.remote_data

    def open_remote() -> dict[str, Records]:
        if not places:
            return {}
        opened = remote.open_several(list(places.values()), config.data_format, config.shuffle, **_options(config))
        return dict(zip(places, opened))

    source = sources.open_several(
        config.data_sets,
        config.num_classes or None,
        data_format=config.data_format,
        shuffle=config.shuffle,
        separate=is_separate,
        weights=None if is_separate else config.set_weights,
        keeps_index=parallel.rank() == 0,
        open_others=open_remote,
        **_options(config),
    )
    if is_separate:
        config.separate_heads = source.classes_of_sets
    return source


def _options(config: Config) -> dict[str, Any]:
    """Returns what the functions that open data have in common."""
    test_sets = [name.strip() for name in config.val_targets.split(",")]
    return {"accepts_missing": config.exclude is not None or config.skip_damaged > 0, "test_sets": test_sets}


def build_loader(
    config: Config,
    source: Optional[Records],
    skipping: Optional[Skipping] = None,
    targets: Optional[Callable[[np.ndarray], np.ndarray]] = None,
) -> Union[ImageLoader, ReaderLoader]:
    """Returns a loader of the images of `source`, or of the user's reader if that is None.

    Args:
        config: The settings.
        source: The images.
        skipping: Which damaged images are replaced; None replaces none.
        targets: What a teacher says of images of `source`; see `ImageLoader`.
    """
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
        skipping=skipping or Skipping(0, lambda name, reason: None),
        targets=targets,
    )


def build_classifier(config: Config) -> Union[ClassifierHead, HeadGroup]:
    """Returns this rank's class centres, of one head, or of one for each data set; `draw` makes their fresh weights.

    Raises:
        ConfigError: The attributes of the class centres have a name, and there are several heads; or an initializer,
            which cannot fill class centres in bfloat16.
    """
    if config.head_dtype != "float32" and getattr(config.param_attr, "initializer", None) is not None:
        raise ConfigError(
            f"set_head_dtype({config.head_dtype!r}): plsc draws such class centres itself; leave the initializer out "
            "of set_distfc_attr, or keep them in float32"
        )
    names = config.class_names or ()
    if not config.separate_heads:
        terms = loss_terms(config, 0, config.num_classes)
        return _build_head(config, config.num_classes, config.seed, terms=terms, class_names=names)
    for attr in (config.param_attr, config.bias_attr):
        if getattr(attr, "name", None):
            raise ConfigError(
                f"set_distfc_attr: the name {attr.name!r} would be that of a parameter of each of the "
                f"{len(config.separate_heads)} heads; leave the name out"
            )
    weights = config.set_weights or [1.0] * len(config.separate_heads)
    firsts = itertools.accumulate((classes for _, classes in config.separate_heads), initial=0)
    heads = [
        _build_head(
            config,
            classes,
            config.seed + number,
            loss_weight=weight,
            terms=loss_terms(config, first, first + classes),
            class_names=names[first : first + classes],
        )
        for number, (first, (_, classes), weight) in enumerate(zip(firsts, config.separate_heads, weights))
    ]
    return HeadGroup(heads, [title for title, _ in config.separate_heads])


def _build_head(config: Config, num_classes: int, seed: int, **options: Any) -> ClassifierHead:
    return build_head(
        config.loss_type,
        num_classes,
        config.emb_dim,
        config.margin_object or config.margin_of_loss(),
        scale=config.scale,
        sample_ratio=config.sample_ratio,
        seed=seed,
        param_attr=config.param_attr,
        bias_attr=config.bias_attr,
        chunk=config.head_chunk,
        sub_centers=config.sub_centers,
        row_dtype=config.head_dtype,
        is_drawn=False,
        compute_dtype=config.mixed_precision.dtype if config.mixed_precision.use_fp16 else "float32",
        simulate=config.mixed_precision.simulate,
        **options,
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


def build_callbacks(
    config: Config, uploader: Optional[Uploader], damaged: Optional[DamagedImages] = None
) -> list[Callback]:
    """Returns all callbacks in the order in which they are called: logging first, saving after those of the user."""
    callbacks: list[Callback] = [ProgressLog(), *config.callbacks, CheckpointSaver()]
    if damaged is not None:
        callbacks.append(damaged)
    if config.scalars is not None:
        folder = config.scalars.directory or Path(config.model_save_dir, SCALARS)
        callbacks.append(ScalarFiles(config.scalars.kind, Path(folder)))
    if uploader is not None:
        callbacks.append(uploader)
    return callbacks
