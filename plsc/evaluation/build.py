"""Builds from the settings what a test works with: its sets, its reader, its evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from plsc import parallel
from plsc.config import Config
from plsc.data.inputs import Inputs
from plsc.data.pair_sets import of_verification
from plsc.data.readers import ReaderLoader
from plsc.data.test_sets import EvaluationSet, find_sets, read_gallery
from plsc.data.verification import VerificationSet
from plsc.errors import ConfigError, DataError
from plsc.evaluation.evaluator import Evaluator


def build_evaluator(config: Config, kept_dir: Optional[Path] = None) -> Evaluator:
    """Returns an evaluator on `test_reader` or, without one, on the sets that `val_targets` names.

    The gallery and the probes of `set_identification` come on top of the sets.

    Args:
        config: The settings.
        kept_dir: Folder in which embeddings of the sets are kept; see `Evaluator`.

    Raises:
        ConfigError: There is nothing to test on, or `set_identification` and `test_reader` are both set.
    """
    sets, reader, inputs = [], None, _new_inputs(config)
    if config.test_reader is None:
        places = parallel.together(lambda: inputs.test_sets(config.data_sets, config.val_targets), "its test sets")
        sets = find_sets(places, config.val_targets, config.image_shape, config.pixels)
    else:
        sets, reader = _given_test(config)
    if config.identification is not None:
        if reader is not None:
            raise ConfigError(
                "set_identification and test_reader are both set, but test_reader gives the images of the test; leave "
                "one out"
            )
        named = config.identification
        gallery, probes = parallel.together(lambda: [Path(inputs.images(one)) for one in named], "its test images")
        sets.append(read_gallery(gallery, probes))
        if any(one.name == sets[-1].name for one in sets[:-1]):
            raise DataError(
                f"{', '.join(config.data_sets)}: two test sets are called {sets[-1].name!r}, which is the name of the "
                "test of set_identification; rename the other set"
            )
    if not sets and reader is None:
        raise ConfigError("set_val_targets(''): there is nothing to test on; name a set, or call set_with_test(False)")
    pairs_dir = Path(config.model_save_dir) if config.model_save_dir else None
    return Evaluator(sets, reader, config, pairs_dir, kept_dir)


def open_inputs(config: Config) -> Inputs:
    """Returns what turns the addresses that an action reads into paths of this machine; all ranks call it."""
    return Inputs(config.place_of, parallel.rank(), parallel.world_size(), parallel.working)


_inputs: Optional[Inputs] = None  # those of the last test, whose space in the cache is needed as long as its sets are


def _new_inputs(config: Config) -> Inputs:
    global _inputs
    if _inputs is not None:
        _inputs.close()
    _inputs = open_inputs(config)
    return _inputs


def reader_loader(name: str, reader: Any, config: Config, num_classes: Optional[int]) -> ReaderLoader:
    """Returns a loader that reads a user's reader once, in its own order.

    Args:
        name: What the user assigned the reader to, for messages.
        reader: The user's reader.
        config: The settings.
        num_classes: Labels are in [0, num_classes); None reads no labels.
    """
    return ReaderLoader(
        name=name,
        reader=reader,
        image_shape=config.image_shape,
        num_classes=num_classes,
        num_images=None,
        batch_size=config.test_batch_size,
        rank=parallel.rank(),
        world_size=parallel.world_size(),
    )


def _given_test(config: Config) -> tuple[list[EvaluationSet], Optional[ReaderLoader]]:
    """Returns what `test_reader` holds: the sets of `plsc.utils.jpeg_reader.test`, or a reader of labelled images."""
    given = config.test_reader
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], (list, tuple)):
        sets = list(given[0])
        if sets and all(isinstance(one, VerificationSet) for one in sets):
            return [of_verification(one) for one in sets], None
    return [], reader_loader("test_reader", given, config, num_classes=1 << 62)
