"""Ranks that differ in their data, settings, script or versions are refused; so are backbones that drift apart."""

import json
from types import SimpleNamespace

import differing_ranks
import paddle
import pytest
from ranks import run_ranks
from train_glyphs import TinyNet

from plsc.data import label_file
from plsc.data.label_file import read_label_file
from plsc.engine import verdict
from plsc.engine.progress import Progress
from plsc.errors import TrainingError


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


def test_trained_parameters_are_compared_and_frozen_ones_and_statistics_are_not(monkeypatch):
    monkeypatch.setattr(verdict.parallel, "world_size", lambda: 2)
    part = SimpleNamespace(head=SimpleNamespace(weight=paddle.ones([2, 4]), lower=0), first=0)
    head = SimpleNamespace(parts=[part])

    def check(change):
        paddle.seed(0)
        ranks = [TinyNet(), TinyNet()]
        ranks[1].set_state_dict(ranks[0].state_dict())
        for one in ranks:
            one.fc.bias.stop_gradient = True
        change(ranks[1])
        own = "", verdict._digests(ranks[0])
        monkeypatch.setattr(verdict.parallel, "all_gather_object", lambda value, what: [own, value])
        verdict.check_weights(ranks[1], head, Progress(step=7), None)

    check(lambda net: None)
    check(lambda net: paddle.assign(net.norm._mean + 1.0, net.norm._mean))
    check(lambda net: paddle.assign(net.fc.bias + 1.0, net.fc.bias))
    with pytest.raises(TrainingError, match=r"step 7: the backbone of rank 1 .* its fc\.weight differs; .* set_lr"):
        check(lambda net: paddle.assign(net.fc.weight * (1 + 1e-6), net.fc.weight))


def test_the_digests_of_a_label_file_tell_every_change(tmp_path, monkeypatch):
    monkeypatch.setattr(label_file, "_check_files", lambda source: None)

    def digests(paths, labels):
        (tmp_path / "label.txt").write_text("".join(f"{path} {label}\n" for path, label in zip(paths, labels)))
        return read_label_file(str(tmp_path), None).digests()

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
