"""The weights and the margins of the classes: given by the user, or from how many images of each class the data has."""

from __future__ import annotations

import dataclasses
import logging
from typing import Optional

import numpy as np

from plsc.config import Config
from plsc.data.records import Records
from plsc.errors import ConfigError, counted
from plsc.heads.terms import LossTerms, class_balanced_weights, ldam_margins
from plsc.machine.names import class_title

logger = logging.getLogger("plsc")


def find_class_values(config: Config, source: Optional[Records]) -> None:
    """Puts the weights and the margins of all classes into the settings, where they are set.

    Every rank counts the images of the same data, which `check_data` compares later.

    Args:
        config: The settings; the number of classes is known.
        source: All images of the data; None for a `train_reader`.

    Raises:
        ConfigError: The numbers that the user gives are not as many as the classes.
    """
    check_given_values(config)
    counts = np.zeros(0, "int64")
    if config.counts_classes:
        assert source is not None
        counts = np.bincount(source.labels(), minlength=config.num_classes)
        missing = np.flatnonzero(counts == 0)
        if len(missing):
            example = class_title(int(missing[0]), config.class_names or ())
            logger.info(
                "%s of %d have no image, such as %s", counted(len(missing), "class"), config.num_classes, example
            )
    for name in ("class_weights", "class_margins"):
        chosen = getattr(config, name)
        if chosen is None:
            continue
        if chosen.rule == "balanced":
            values = class_balanced_weights(counts, chosen.beta)
        elif chosen.rule == "ldam":
            values = ldam_margins(counts, config.margin_of_loss())
        else:
            values = chosen.values
        setattr(config, name, dataclasses.replace(chosen, values=values))


def check_given_values(config: Config) -> None:
    """Checks that the user gives as many weights and margins of classes as there are classes, or none.

    Raises:
        ConfigError: The numbers that the user gives are not as many as the classes.
    """
    for name in ("class_weights", "class_margins"):
        chosen = getattr(config, name)
        if chosen is not None and chosen.values is not None and len(chosen.values) != config.num_classes:
            raise ConfigError(
                f"set_{name} gives {counted(len(chosen.values), 'number')}, and there are "
                f"{counted(config.num_classes, 'class')}; give one for each class"
            )


def loss_terms(config: Config, first: int, end: int) -> LossTerms:
    """Returns what the settings change in the loss of a head with the classes from `first` to before `end`."""
    weights, margins = (
        None if one is None or one.values is None else one.values[first:end]
        for one in (config.class_weights, config.class_margins)
    )
    return LossTerms(config.interclass_filter, config.label_smoothing, weights, margins)
