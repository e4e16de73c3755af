"""What a test leaves for the report."""

from types import SimpleNamespace

import numpy as np
import pytest

from plsc.evaluation.report_data import _identities

SAME = np.array([[0, 1], [2, 3], [3, 4]])


@pytest.mark.parametrize(
    "names, identities",
    [
        (["a/1", "a/2", "\u5b57/1", "\u5b57/2", "\u5b57/3", "b/1"], ["a", "a", "\u5b57", "\u5b57", "\u5b57", ""]),
        (["x/a/1", "x/a/2", "y/a/1", "y/a/2", "y/a/3", "b/1"], ["x/a", "x/a", "y/a", "y/a", "y/a", ""]),
        (["all/1", "all/2", "all/3", "all/4", "all/5", "all/6"], ["0", "0", "2", "2", "2", ""]),
        (["a/1", "b/1", "c/1", "c/2", "c/3", "c/4"], ["0", "0", "c", "c", "c", ""]),
        (["1", "2", "3", "4", "5", "6"], ["0", "0", "2", "2", "2", ""]),
    ],
    ids=["folders", "deeper", "one folder", "across folders", "no folder"],
)
def test_the_map_names_the_images_of_pairs_by_their_folders(names, identities):
    images = SimpleNamespace(identity=lambda i: "", name=names.__getitem__)
    assert _identities(images, np.arange(6), SAME).tolist() == identities


def test_the_map_takes_the_identities_that_the_images_have():
    images = SimpleNamespace(identity=["who", ""].__getitem__, name=str)
    assert _identities(images, np.arange(2), np.zeros((0, 2), int)).tolist() == ["who", ""]
