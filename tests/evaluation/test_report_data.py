"""What a test leaves for the report."""

from types import SimpleNamespace

import numpy as np
import pytest

from plsc.evaluation import report_data
from plsc.evaluation.report_data import _identities

SAME, DIFFERENT = [[0, 1], [2, 3], [3, 4]], [[0, 2], [1, 9]]


@pytest.mark.parametrize(
    "names, different, identities",
    [
        (["a/1", "a/2", "\u5b57/1", "\u5b57/2", "\u5b57/3", "b/1"], [], ["a", "a", "\u5b57", "\u5b57", "\u5b57", ""]),
        (["a/1", "a/2", "b/1", "b/2", "b/3", "b/4"], [], ["a", "a", "b", "b", "b", "b"]),
        (["x/a/1", "x/a/2", "y/a/1", "y/a/2", "y/a/3", "b/1"], [], ["x/a", "x/a", "y/a", "y/a", "y/a", ""]),
        (["all/1", "all/2", "all/3", "all/4", "all/5", "all/6"], [], ["0", "0", "2", "2", "2", ""]),
        (["a/1", "a/2", "b/1", "b/2", "b/3", "b/4"], [[2, 5]], ["a", "a", "2", "2", "2", ""]),
        (["a/1", "b/1", "c/1", "c/2", "c/3", "d/1"], [], ["0", "0", "c", "c", "c", ""]),
        (["1", "2", "3", "4", "5", "6"], [], ["0", "0", "2", "2", "2", ""]),
    ],
    ids=["folders", "loose", "deeper", "one folder", "mixed folder", "across folders", "no folder"],
)
def test_the_map_names_the_images_of_pairs_by_their_folders(names, different, identities, monkeypatch):
    monkeypatch.setattr(report_data, "_MAPPED", 6)
    names = [*names, *(f"else{i}/{i}" for i in range(6, 10))]
    images = SimpleNamespace(identity=lambda i: "", name=names.__getitem__)
    pairs = np.array([*SAME, *DIFFERENT, *different])
    issame = np.arange(len(pairs)) < len(SAME)
    assert _identities(images, np.arange(10), pairs, issame).tolist() == identities


def test_the_map_takes_the_identities_that_the_images_have():
    images = SimpleNamespace(identity=["who", ""].__getitem__, name=str)
    assert _identities(images, np.arange(2), np.zeros((0, 2), int), np.zeros(0, bool)).tolist() == ["who", ""]


def test_a_folder_of_many_identities_is_none_though_its_first_images_are_pairs_of_one(monkeypatch):
    monkeypatch.setattr(report_data, "_MAPPED", 4)
    images = SimpleNamespace(identity=lambda i: "", name="all/{}".format)
    pairs, issame = np.array([[0, 1], [2, 3], [4, 5]]), np.array([True, True, False])
    assert _identities(images, np.arange(6), pairs, issame).tolist() == ["0", "0", "2", "2"]
