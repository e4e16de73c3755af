import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from plsc.data import exclusion, sources
from plsc.data.exclusion import leave_out, line_of, read_names
from plsc.data.records import Records
from plsc.data.sampler import block_indices
from plsc.errors import DataError
from plsc.machine.names import from_text


class Numbers(Records):
    """Image i is the number i, of class i % 5, in blocks."""

    class_names = ("a", "b", "c", "d", "e")

    def __init__(self, blocks):
        self.blocks = None if blocks is None else np.array(blocks)
        self.num_images = 40

    def name(self, i):
        return f"images/{i}.jpg"

    def where(self, i):
        return f"list:{i}"

    def read(self, i):
        return b"%d" % i, i % 5

    def labels(self):
        return np.arange(40) % 5

    def digests(self):
        return {"numbers": "40"}


def listed(tmp_path, numbers, end="\n"):
    path = tmp_path / "list.txt"
    path.write_text("".join(f"images/{i}.jpg{end}" for i in numbers))
    return path


@pytest.mark.parametrize("blocks", [None, [0, 7, 8, 20, 40]])
@pytest.mark.parametrize("numbers", [[], [0], [39], [3, 5, 15, 7, 30], [7, 5, 10, 15, 0], range(39), range(1, 40)])
def test_what_is_left_is_the_rest_in_its_order(tmp_path, monkeypatch, blocks, numbers):
    monkeypatch.setattr(exclusion, "_WALKED", 8)
    source = leave_out(Numbers(blocks), listed(tmp_path, numbers))
    rest = [i for i in range(40) if i not in numbers]
    assert source.num_images == len(rest) and source.num_classes == 5 and source.class_names == Numbers.class_names
    for k, i in enumerate(rest):
        assert (source.name(k), source.where(k), source.read(k)) == (f"images/{i}.jpg", f"list:{i}", (b"%d" % i, i % 5))
    assert source.labels().tolist() == [i % 5 for i in rest]
    seen = np.concatenate([source.epoch_order(3, 1, rank, 2) for rank in range(2)])
    assert set(seen.tolist()) == set(range(len(rest))) and len(seen) == -(-len(rest) // 2) * 2
    if blocks is not None:
        assert source.blocks[0] == 0 and source.blocks[-1] == len(rest) and (np.diff(source.blocks) > 0).all()
        # Images that shared a block still do.
        whole = np.searchsorted(blocks, rest, side="right")
        kept = np.searchsorted(source.blocks, np.arange(len(rest)), side="right")
        assert len(set(zip(whole.tolist(), kept.tolist()))) == len(set(kept.tolist()))
        assert np.array_equal(source.epoch_order(3, 1, 0, 2), block_indices(source.blocks, 3, 1, 0, 2))


def test_folders_without_some_images_can_be_pickled(tmp_path):
    names = [f"{label}/{i}.jpg" for label in "ab" for i in range(4)]
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(name.encode())
    (tmp_path / "list.txt").write_text("a/2.jpg\n")
    source = leave_out(sources.open_images(str(tmp_path / "data"), None, 0, 1), tmp_path / "list.txt")
    copied = pickle.loads(pickle.dumps(source))
    found, wanted = ([(one.name(i), one.read(i)) for i in range(7)] for one in (copied, source))
    assert found == wanted and copied.num_images == 7


def test_the_digests_tell_which_images_are_left_out_and_not_where_the_list_is(tmp_path):
    one, other = tmp_path / "a", tmp_path / "b"
    one.mkdir(), other.mkdir()
    first = leave_out(Numbers(None), listed(one, [3, 5])).digests()
    assert first["numbers"] == "40"
    assert leave_out(Numbers(None), listed(other, [5, 3, 5], "\tcannot be decoded\r\n\r\n")).digests() == first
    assert leave_out(Numbers(None), listed(other, [3])).digests() != first


def test_names_that_the_data_lacks_are_counted_in_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    with caplog.at_level(logging.INFO, "plsc"):
        assert leave_out(Numbers(None), listed(tmp_path, [50, 3, 60])).num_images == 39
    (warning,) = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
    assert "list.txt:1" in warning and "'images/50.jpg'" in warning and "(2 such lines in all)" in warning


@pytest.mark.parametrize(
    "content, words",
    [
        ("".join(f"images/{i}.jpg\n" for i in range(40)).encode(), r"names every image of the data set \(40\)"),
        (b"a\0b\n", "list.txt:1: not UTF-8 text"),
        (None, "cannot be read"),
    ],
)
def test_a_list_that_cannot_serve_is_an_error(tmp_path, content, words):
    path = tmp_path / "list.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        leave_out(Numbers(None), path)


@pytest.mark.parametrize(
    "name", ["a b.jpg", "类/人.jpg", " a", from_text(b"\xff\xe9.jpg".decode("utf-8", "surrogateescape"))]
)
def test_a_name_survives_the_list(tmp_path, name):
    path = tmp_path / "list"
    path.write_bytes(line_of(name) + line_of(name, "a\nremark,\twith tabs"))
    assert list(read_names(path)) == [(1, name), (2, name)]


@pytest.mark.parametrize("name", ["", "a\tb", "a\nb", "a\n", "a\rb", " "])
def test_a_name_that_no_line_can_hold_has_none(name):
    assert line_of(name) is None


def test_base64_data_without_some_lines_is_drawn_in_its_blocks(base64_glyphs, tmp_path):
    whole = sources.open_images(str(base64_glyphs), 12, 0, 1)
    assert whole.blocks[0] == 0 and whole.blocks[-1] == whole.num_images == 96
    path = tmp_path / "list"
    path.write_bytes(b"".join(line_of(whole.name(i)) for i in (0, 50, 95)))
    kept = leave_out(whole, Path(path))
    assert kept.num_images == 93 and len(kept.blocks) == len(whole.blocks)
    assert [kept.read(k) for k in range(93)] == [whole.read(i) for i in range(96) if i not in (0, 50, 95)]
    assert sorted(kept.epoch_order(0, 0, 0, 1).tolist()) == list(range(93))
