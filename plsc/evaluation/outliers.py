"""Looks for outliers in a data set: embeds its images on all ranks, and compares them on the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plsc import parallel
from plsc.config import Config
from plsc.data.collection import RecordImages
from plsc.data.records import Records
from plsc.datasets.check import View, open_test
from plsc.datasets.outlier_files import (
    EMBEDDINGS,
    PAGE,
    Review,
    Summary,
    confirm_copies,
    summary_of,
    write_summary,
    write_tables,
)
from plsc.datasets.outliers import Limits, find_outliers
from plsc.evaluation.embedder import Embedder
from plsc.evaluation.trained import open_network
from plsc.inference.classes import check_names
from plsc.report.outliers import write_page


class Wanted(NamedTuple):
    """What to look at, and where the result goes.

    Attributes:
        data: Path of the data set.
        output: Folder that receives the files.
        tests: Paths of test sets.
        limits: From where on something is reported.
        shown: Most images and classes of each kind on the page.
        address: Where the data was fetched from; '' if it was on this machine.
    """

    data: Path
    output: Path
    tests: tuple[Path, ...]
    limits: Limits
    shown: int
    address: str = ""


def review_data(config: Config, open_data: Callable[[], Records], wanted: Wanted) -> Summary:
    """Writes what may be wrong in a data set; all ranks call it together.

    Args:
        config: Prepared settings, which name the network.
        open_data: Opens the data set for rank 0 of 1.
        wanted: What to look at.

    Returns:
        The numbers, the same on every rank.

    Raises:
        ConfigError: The output folder cannot be written, or there is no network.
        DataError: The data or a test set cannot be used.
    """
    network, config = open_network("data outliers", config)
    records = parallel.together(open_data, "the data set")
    names = records.class_names if config.class_names is None else config.class_names
    check_names(names, records.num_classes)
    embedder = Embedder(network, config, config.augmentation.mirror, progress=True, skip_damaged=True)

    view = View(network.image_shape, config.pixels, config.num_workers, lambda count: None)
    tests = parallel.together(lambda: [open_test(path, view) for path in wanted.tests], "the test sets")
    images = RecordImages(wanted.data, records)
    vectors = embedder.keep(images, wanted.output / EMBEDDINGS, wanted.address)
    embedded = [embedder.embed(test) for test in tests]
    records.class_names = names

    def compare() -> Summary:
        labels = records.labels()
        starts = range(0, len(vectors), 4096)
        damaged = [i + one for i in starts for one in np.flatnonzero(~np.any(vectors[i : i + 4096], axis=1)).tolist()]
        found = find_outliers(vectors, labels, wanted.limits, embedded, config.seed)
        review = Review(found, images, tests, records.class_names, damaged)
        confirm_copies(review, view)
        summary = summary_of(review)
        write_tables(wanted.output, review)
        write_page(wanted.output / PAGE, review, summary, labels=labels, rule=config.pixels, most=wanted.shown)
        write_summary(wanted.output, summary, wanted.limits)
        return summary

    return Summary(*parallel.from_rank_0(compare, "the comparison of the images"))
