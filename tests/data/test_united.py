from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from typing import Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data import sampler
from plsc.data.base64_source import Base64Files
from plsc.data.class_sampler import ClassSampler
from plsc.data.exclusion import find_listed
from plsc.data.records import Records
from plsc.data.sampler import epoch_indices
from plsc.data.sources import open_images, open_several
from plsc.data.united import UnitedRecords, merge_classes, separate_classes, titles_of
from plsc.errors import ConfigError, DataError


class Memory(Records):
    """Images whose bytes are their numbers."""

    def __init__(self, labels: Sequence[int], names: Sequence[str] = (), block: int = 0) -> None:
        self._labels, self.class_names, self.num_images = np.array(labels), names, len(labels)
        self.blocks: Optional[np.ndarray] = np.append(np.arange(0, len(labels), block), len(labels)) if block else None

    def name(self, i: int) -> str:
        return f"{i}.png"

    def where(self, i: int) -> str:
        return f"memory:{i}"

    def read(self, i: int) -> tuple[bytes, int]:
        return b"%d" % i, int(self._labels[i])

    def labels(self) -> np.ndarray:
        return self._labels

    def digests(self) -> dict[str, str]:
        return {"the images": str(self.num_images)}


def united(*sources: Records, weights: Optional[Sequence[float]] = None) -> UnitedRecords:
    titles = [f"set{number}" for number in range(len(sources))]
    return UnitedRecords(titles, sources, merge_classes(titles, sources), weights)


E_ACUTE = "é"
NAMED = [
    # names of both sets, numbers of the second, names of all
    (["x", "y"], ["y", "z"], [1, 2], ["x", "y", "z"]),
    (["x", "y"], ["y", "x"], [1, 0], ["x", "y"]),
    ([], [], [2, 3], []),
    (["x", "y"], [], [2, 3], ["x", "y", "b:0", "b:1"]),
    ([], ["a:0", "y"], [2, 3], ["a:0", "a:1", "a:0", "y"]),
    ([unicodedata.normalize("NFC", E_ACUTE), "y"], ["z", unicodedata.normalize("NFD", E_ACUTE)], [2, 0], None),
]


@pytest.mark.parametrize(("first", "second", "numbers", "names"), NAMED)
def test_classes_are_the_same_where_their_names_agree(first, second, numbers, names):
    sources = [Memory([0, 1], first), Memory([1, 0, 1], second)]
    found = merge_classes(["a", "b"], sources)
    assert [own.tolist() for own in found.numbers] == [[0, 1], numbers]
    assert found.total == max(numbers + [1]) + 1 and names in (None, found.names)
    assert separate_classes(["a", "b"], sources).numbers[1].tolist() == [2, 3]

    both = UnitedRecords(["a", "b"], sources, found)
    assert both.labels().tolist() == [0, 1, numbers[1], numbers[0], numbers[1]]
    assert [both.read(i)[1] for i in range(5)] == both.labels().tolist()
    assert (both.name(3), both.where(3), both.read(3)[0]) == ("b/1.png", "memory:1", b"1")
    assert both.num_classes == found.total
    assert both.digests() == {"data set 1: the images": "2", "data set 2: the images": "3"}


def test_a_name_that_two_classes_of_a_set_share_is_refused():
    twins = [unicodedata.normalize(form, E_ACUTE) for form in ("NFC", "NFD")]
    for names, words in ((["x", "x"], "are both called 'x'"), (twins, "differ only in Unicode normalization")):
        with pytest.raises(DataError, match=f"^b: the classes 0 and 1 {words}"):
            merge_classes(["a", "b"], [Memory([0]), Memory([0, 1], names)])


@pytest.mark.parametrize("block", [0, 3])
@pytest.mark.parametrize("weights", [None, [1, 0.5]])
def test_a_list_leaves_images_out_of_each_set(block, weights, tmp_path):
    sources = [Memory(range(10), "abcdefghij", block), Memory([0, 1] * 4, "ab", block)]
    whole = united(*sources, weights=weights)
    listed = {"set0/0.png", "set0/9.png", "set1/0.png", "set1/3.png"}
    (tmp_path / "list").write_text("\n".join(listed))
    kept = whole.without(find_listed(whole, tmp_path / "list"))
    names = [kept.name(i) for i in range(kept.num_images)]
    assert names == [name for name in map(whole.name, range(18)) if name not in listed]
    assert kept.class_names == whole.class_names and kept.num_classes == 10
    assert [kept.read(i) for i in range(14)] == [
        whole.read(i) for i in range(18) if whole.name(i) not in listed
    ] and kept.labels().tolist() == [kept.read(i)[1] for i in range(14)]
    assert kept.epoch_images == (14 if weights is None else 8 + 3)
    drawn = np.concatenate([kept.epoch_order(0, 0, rank, 2) for rank in range(2)])
    assert len(np.unique(drawn)) == kept.epoch_images and drawn.max() < 14
    assert list(kept.digests()) == [
        f"data set {number}: {what}" for number in (1, 2) for what in ("the images", "the images left out")
    ]

    (tmp_path / "list").write_text("".join(f"set1/{i}.png\n" for i in range(8)))
    with pytest.raises(DataError, match=r"exclude names every image of set1 \(8\)"):
        whole.without(find_listed(whole, tmp_path / "list"))


def test_a_label_without_a_class_names_its_image():
    source = Memory([0, 1], ["x", "y"])
    both = united(source)
    source._labels = np.array([0, 2])
    with pytest.raises(
        DataError, match=r"^memory:1: label 2 is outside \[0, 2\), .* set0 had .*; the data has changed"
    ):
        both.read(1)


def test_a_damaged_line_of_base64_data_does_not_keep_the_others_from_being_drawn(base64_glyphs, tmp_path):
    folder = shutil.copytree(base64_glyphs, tmp_path / "data")
    path = folder / "base64_rank_0"
    for tail in (b"\t~~~~", b"\t    ", b"\t99 7"):
        first, _, rest = path.read_bytes().partition(b"\n")
        path.write_bytes(first[: -len(tail)] + tail + b"\n" + rest)
        both = open_several([str(folder), str(base64_glyphs)], 24)
        assert both.labels().max() == 23 and np.bincount(both.labels()[:96]).size == 12
        assert sorted(ClassSampler(both, 8).epoch_order(0, 0, 0, 1).tolist())
        with pytest.raises(DataError, match=f"^{path}:1: .*damaged"):
            both.read(0)


@pytest.mark.parametrize("failing", ["a disk", "a store", "the classes"])
def test_sets_that_were_opened_are_closed_when_something_after_them_fails(monkeypatch, failing):
    closed = []

    def opened(path):
        records = Memory([0, 1], ["x", "x" if failing == "the classes" else "y"])
        records.on_close = lambda: closed.append(path)
        return records

    def open_one(path, *arguments, **options):
        if failing == "a disk" and path == "b":
            raise DataError("no data")
        return opened(path)

    def open_others():
        if failing == "a store":
            raise DataError("no data")
        return {"s3://bucket/c": opened("s3://bucket/c")}

    monkeypatch.setattr("plsc.data.sources.open_images", open_one)
    with pytest.raises(DataError):
        open_several(["a", "b", "s3://bucket/c"], None, open_others=open_others)
    expected = {"a disk": ["a"], "a store": ["a", "b"], "the classes": ["a", "b", "s3://bucket/c"]}[failing]
    assert sorted(closed) == expected


def test_sets_of_one_name_have_different_titles():
    assert titles_of(["x/a", "y/a", "a_2", "z/a/"]) == ["a", "a_3", "a_2", "a_4"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0, 1, 7])), min_size=2, max_size=4),
    st.sampled_from([None, (1.0, 1.0, 1.0, 1.0), (2.5, 0.6, 1.0, 1.2)]),
    st.integers(1, 7),
    st.integers(0, 99),
)
def test_ranks_draw_each_image_as_often_as_its_weight_says(sizes, weights, world_size, epoch):
    sources = [Memory([0] * size, block=block) for size, block in sizes]
    own = None if weights is None else weights[: len(sizes)]
    both = united(*sources, weights=own)
    draws = [round(weight * size) for weight, (size, _) in zip(own or [1] * len(sizes), sizes)]
    assert both.epoch_images == sum(draws)
    parts = [both.epoch_order(3, epoch, rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {-(-sum(draws) // world_size)}
    assert all(part.dtype == np.int64 for part in parts)
    counts = np.bincount(np.concatenate(parts), minlength=both.num_images)
    first, extra = 0, counts.sum() - sum(draws)
    for draw, (size, _) in zip(draws, sizes):
        found = counts[first : first + size]
        # The images of a set differ by one draw, except for those that make the counts of the ranks equal.
        assert found.min() >= draw // size and draw <= found.sum() <= draw + extra
        assert (found > -(-draw // size)).sum() <= extra
        first += size
    np.testing.assert_array_equal(parts[0], both.epoch_order(3, epoch, 0, world_size))


def test_a_large_set_computes_only_what_a_rank_draws_of_it(monkeypatch):
    both = united(Memory([0] * 4000), Memory([0] * 30), weights=[0.05, 1])
    monkeypatch.setattr(sampler, "LARGE", 1 << 10)
    computed, original = [], sampler.KeyedPermutation.__call__
    monkeypatch.setattr(
        sampler.KeyedPermutation,
        "__call__",
        lambda self, places: computed.append(len(places)) or original(self, places),
    )
    parts = [both.epoch_order(3, 1, rank, 5) for rank in range(5)]
    assert sum(computed) == 200 and {part.dtype for part in parts} == {np.dtype(np.int64)}
    found = np.concatenate(parts)
    assert len(np.unique(found)) == len(found) == 230 and (found < 4000).sum() == 200
    order = sampler.epoch_indices(4000, 7, 1, 0, 1)
    np.testing.assert_array_equal(sampler.samples_at(4000, 7, 1, np.arange(5, 4000, 3)), order[5::3])


def test_a_fraction_is_another_subset_in_each_epoch_and_whole_parts_repeat():
    both = united(Memory([0] * 40), Memory([0] * 10, block=2), weights=[0.5, 2])
    seen = [both.epoch_order(0, epoch, 0, 1) for epoch in range(8)]
    assert len({tuple(sorted(order[order < 40])) for order in seen}) == 8
    assert set(np.concatenate(seen)) == set(range(50))
    assert all((np.bincount(order[order >= 40] - 40) == 2).all() for order in seen)


def test_sets_without_blocks_have_the_order_of_one_set():
    both = united(Memory([0] * 30), Memory([0] * 11))
    np.testing.assert_array_equal(both.epoch_order(4, 2, 1, 3), epoch_indices(41, 4, 2, 1, 3))


def test_sets_with_large_and_small_blocks_are_mixed_evenly():
    both = united(Memory([0] * 4000, block=500), Memory([0] * 4000), Memory([0] * 2000, block=2))
    order = both.epoch_order(0, 0, 0, 2)
    sets = np.searchsorted([4000, 8000], order, side="right")
    for part in np.split(sets, 10):  # 500 draws each, of which 200, 200 and 100 are expected
        assert np.abs(np.bincount(part, minlength=3) - [200, 200, 100]).max() < 60


def test_a_set_that_its_weight_leaves_out_is_an_error():
    with pytest.raises(DataError, match="the weight 0.1, an epoch draws none of the 3 images of set1"):
        united(Memory([0]), Memory([0] * 3), weights=[1, 0.1])


def test_base64_data_is_read_in_its_blocks_and_other_data_with_it(glyphs, base64_glyphs, monkeypatch):
    monkeypatch.setattr("plsc.data.base64_source._BLOCK_BYTES", 9000)
    split, both = open_images(str(base64_glyphs), 12, 0, 1), open_several([str(base64_glyphs), str(glyphs)], 24)
    assert isinstance(split, Base64Files) and split.blocks is not None and len(split.blocks) > 8
    starts = {split._place(int(first))[1] % split._block_lines for first in split.blocks[:-1]}
    assert starts == {0} and split.blocks[-1] == 96
    assert both.num_images == 192 and both.num_classes == 24
    assert sorted(both.epoch_order(0, 0, 0, 1).tolist()) == list(range(192))
    images = {both.read(i)[0]: both.read(i)[1] for i in range(96)}
    assert all(images[both.read(i)[0]] == both.read(i)[1] - 12 for i in range(96, 192))
    assert open_images(str(base64_glyphs), 12, 0, 1, shuffle="full").blocks is None


@pytest.mark.parametrize("given", [23, 25])
def test_a_wrong_number_of_classes_says_what_each_set_has(given, glyphs, base64_glyphs):
    paths = [str(glyphs), str(base64_glyphs)]
    with pytest.raises(ConfigError, match=rf"set_class_num\({given}\): .* 24 classes together \(12 in glyphs, 12 in"):
        open_several(paths, given, separate=True)
    if given > 24:
        assert open_several(paths, given).num_classes == 24


def test_a_set_that_is_missing_is_named(glyphs):
    with pytest.raises(DataError, match="nowhere: holds no training data"):
        open_several([str(glyphs), "nowhere"], None)
