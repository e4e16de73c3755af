"""What texts call a class: its number, and its name where that is known."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from plsc.commands import data_check, data_info
from plsc.config import ByClass, Config
from plsc.data.collection import RecordImages
from plsc.datasets.outlier_files import Review, _copy_rows, _lines_to_leave_out
from plsc.datasets.survey import Seen, Survey
from plsc.engine.class_values import find_class_values
from plsc.engine.progress import Progress
from plsc.engine.verdict import check_weights
from plsc.errors import TrainingError
from plsc.heads import HeadGroup, build_head

LABELS = np.array([0, 1, 1, 3])


class Source:
    """Four images of the classes 0, 1 and 3 of 4."""

    num_images, num_classes, is_streamed = 4, 4, False

    def __init__(self, names):
        self.class_names = names

    def name(self, i):
        return f"{i}.jpg"

    def labels(self):
        return LABELS


def bad_head(names, first=0):
    """Returns a head that has a class centre that is not finite: class 2."""
    head = build_head("softmax", 4, 8, class_names=names[first : first + 4])
    rows = head.weight.numpy()
    rows[2, 5] = np.nan
    head.weight.set_value(rows)
    return head


def skipped_step(names, caplog):
    return bad_head(names)(paddle.randn([4, 8]), LABELS).problem


def refused_save(names, caplog):
    with pytest.raises(TrainingError) as error:
        check_weights(paddle.nn.Linear(2, 2), SimpleNamespace(parts=[SimpleNamespace(first=0, head=bad_head(names))]),
                      Progress(), None)  # fmt: skip
    return str(error.value)


def missing_classes(names, caplog):
    config = Config(num_classes=4, class_names=names or None, class_weights=ByClass("balanced"))
    with caplog.at_level(logging.INFO, "plsc"):
        find_class_values(config, Source(names))
    return caplog.messages[-1]


def survey_line(names, caplog):
    counts = np.array([0, 1, 9, 3])
    return data_info._per_class(Survey("folder", 13, 4, names, counts, Seen()))[0]


def same_images(names, caplog):
    found = SimpleNamespace(labels=LABELS, name=lambda i: f"{i}.jpg")
    return data_check._group_line(found, names, np.array([0, 3]))


def outliers(names):
    found = SimpleNamespace(
        leaks=[], copies=[(1, 3, 0.99)], images=np.array([0]), nearest=np.array([2, 0, 0, 0]), doubtful=np.array([])
    )
    return Review(found, RecordImages(Path("data"), Source(names)), (), names, ())


def outlier_reason(names, caplog):
    return _lines_to_leave_out(outliers(names))[0][0].decode()


def copied_image(names, caplog):
    return next(iter(_copy_rows(outliers(names))))[3]


@pytest.mark.parametrize(
    "text, expected",
    [
        (skipped_step, ["the class centre of {2} is not finite"]),
        (refused_save, ["the class centre of {2} is not finite"]),
        (missing_classes, ["1 class of 4 have no image, such as {2}"]),
        (survey_line, ["1 ({1}) to 9 ({2}), median"]),
        (same_images, ["0.jpg ({0}) = 3.jpg ({3})"]),
        (outlier_reason, ["far from {0}, nearest to {2}"]),
        (copied_image, ["3.jpg ({3})"]),
    ],
)
@pytest.mark.parametrize("names", [(), ("Ada", "Bo\tb", "人", "d")])
def test_texts_name_classes_by_number_and_name(text, expected, names, caplog):
    shown = ["class 0 ('Ada')", r"class 1 ('Bo\tb')", "class 2 ('人')", "class 3 ('d')"]
    titles = shown if names else [f"class {number}" for number in range(4)]
    found = text(names, caplog)
    for words in expected:
        assert words.format(*titles) in found


def test_the_names_of_separate_heads_are_those_of_their_own_classes():
    names = tuple("abcdefgh")
    group = HeadGroup([build_head("softmax", 4, 8, class_names=names[:4]), bad_head(names, first=4)], ["A", "B"])
    with pytest.raises(TrainingError, match=r"class 6 \('g'\)"):
        check_weights(paddle.nn.Linear(2, 2), group, Progress(), None)
