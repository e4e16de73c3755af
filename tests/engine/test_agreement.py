"""Ranks that differ in their data, settings, script or versions are refused before the first step."""

import json

import differing_ranks
import numpy as np
import pytest
from ranks import run_ranks

from plsc.data.label_file import LabelFile


@pytest.fixture(scope="module")
def found(glyphs, tmp_path_factory):
    """What training said on each of two ranks, by case."""
    folder = tmp_path_factory.mktemp("differing")
    run_ranks("differing_ranks.py", 2, glyphs, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", differing_ranks.CASES)
def test_every_rank_names_what_differs(found, case):
    words = differing_ranks.CASES[case][1]
    assert found[0][case] == found[1][case]
    assert all(word in found[0][case] for word in words)
    assert bool(found[0][case]) == bool(words)


def test_the_digests_of_a_label_file_tell_every_change():
    def digests(paths, labels):
        return LabelFile("", "label.txt", paths, np.array(labels), np.arange(len(paths))).digests()

    paths = [f"{i}.jpg" for i in range(70_000)]  # more than are hashed at a time
    labels = list(range(70_000))
    same = digests(list(paths), list(labels))
    assert same == digests(paths, labels)
    for changed in (
        digests(paths, [1, 0, *labels[2:]]),
        digests([paths[1], paths[0], *paths[2:]], labels),
        digests([*paths[:-1], "other.jpg"], labels),
        digests(paths[:-1], labels[:-1]),
        digests(["0.jp", "g1.jpg", *paths[2:]], labels),
    ):
        assert changed != same
