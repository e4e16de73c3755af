"""Lines of the lists of images: what is blank, and how columns are told apart."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plsc.data import packed
from plsc.data.collection import open_collection
from plsc.data.image_lists import columns_of, lines_of
from plsc.data.label_file import read_label_file
from plsc.data.list_columns import read_paths
from plsc.data.missing_files import find_missing
from plsc.data.packed import Numbering, TextPacker
from plsc.data.pair_sets import read_pairs
from plsc.errors import DataError

BLANKS = ["\x1f", " \x1c\t", "\u3000", "\u00a0 \u2003", "\x85", "\x0b\x0c"]


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_every_reader_of_lists_agrees_on_what_is_blank(blank, tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8\xff")
    path = tmp_path / "list.txt"
    path.write_text(f"{blank}\n1.jpg 0\n{blank}", encoding="utf-8")
    assert list(lines_of(path)) == [(2, b"1.jpg 0")]
    assert read_label_file(str(tmp_path), 1, path.name).where(0) == f"{path}:2"
    assert open_collection(path).where(0) == f"{path}:2: 1.jpg"
    path.write_text(f"{blank}\n1.jpg 1.jpg 1\n", encoding="utf-8")
    assert read_pairs(path).pairs.tolist() == [[0, 0]]
    path.write_text(f"{blank}\n{blank}\n", encoding="utf-8")
    for read in (lambda: read_label_file(str(tmp_path), 1, path.name), lambda: open_collection(path),
                 lambda: read_pairs(path)):  # fmt: skip
        with pytest.raises(DataError, match="lists no image"):
            read()


def test_a_line_without_columns_is_blank_and_bytes_that_are_not_utf8_are_a_name():
    assert columns_of(b"\x1f") == columns_of("\u3000".encode()) == []
    assert columns_of(b"\xff\xe3\x80\x80.jpg 1")[1] == "1"


class Every:
    """A `Column` that takes every line, and numbers the second columns."""

    def __init__(self):
        self.names = Numbering()

    def of_many(self, data, starts, lengths):
        return self.names.of(data, starts, lengths)

    def of_line(self, columns, line, number):
        return self.names.number(columns[1] if len(columns) > 1 else b"")


PIECES = [b"a", b"1.jpg", b"7", b"12", b"/", b" ", b" ", b"\t", b"\n", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\x1f"]
PIECES += [b"\x0b", b"\xc3\xa9", b"\xe4\xba\xba", b"\xe3\x81\x82", b"\xe3\x80\x80", b"\xc2\x85", b"\xff", b"\xe3\x80"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join), block=st.sampled_from([1, 7, 1 << 20]))
def test_many_lines_are_read_as_each_alone(text, block, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_BLOCK", block)
    path = tmp_path / "list"
    path.write_bytes(text)
    expected = [(number, columns_of(line)) for number, line in lines_of(path)]
    for small in (0, 1 << 20):  # in the file, and in memory
        monkeypatch.setattr(packed, "_SMALL", small)
        column = Every()
        read = read_paths(path, column)
        names = list(map(os.fsdecode, column.names.numbers))
        found = [(read.line(i), read.paths[i], names[value]) for i, value in enumerate(read.values)]
        assert found == [(number, words[0], (*words, "")[1]) for number, words in expected]
        assert b"".join(read.paths.lines()) == b"".join(os.fsencode(words[0]) + b"\n" for _, words in expected)
        alone = read_paths(path, None)
        assert [(alone.line(i), os.fsencode(one)) for i, one in enumerate(alone.paths)] == list(lines_of(path))


def test_missing_files_are_found_among_equal_and_mixed_paths(tmp_path, monkeypatch):
    monkeypatch.setattr("plsc.data.missing_files._NAMES", 3)
    files = ["1.jpg", "a/1.jpg", "a/b/1.jpg", "\u4eba/2.jpg", *(f"many/{k}" for k in range(10))]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def missing(*names):
        (tmp_path / "list").write_text("".join(f"{name} 0\n" for name in names))
        return find_missing(str(tmp_path), read_paths(tmp_path / "list", Every()).paths, str)

    assert missing(*files, *files[::-1], str(tmp_path / "a/1.jpg"), "./1.jpg") == (-1, 0)
    assert missing(*files, "a/2.jpg", "1.jpg", "2.jpg", "a/2.jpg", "b/1.jpg", "a", "a/") == (len(files), 6)
    assert missing("/1.jpg", "a/1.jpg/x") == (0, 2)


def test_a_large_list_must_not_change_and_a_small_one_may(tmp_path, monkeypatch):
    (tmp_path / "1.jpg").touch()
    path = tmp_path / "list"
    for small in (1 << 20, 1):
        monkeypatch.setattr(packed, "_SMALL", small)
        path.write_bytes(b"1.jpg 0\n")
        source = read_label_file(str(tmp_path), 1, path.name)
        path.write_bytes(b"2.jpg 0\n\n")
        if small > 1:
            assert source.name(0) == "1.jpg"
            continue
        with pytest.raises(DataError, match="list: has changed while it was in use; start again"):
            source.name(0)


def test_packed_texts_are_a_sequence():
    texts = [b"", b"a", b"\xff" * 300, b"", "\u4eba".encode()]
    packer = TextPacker()
    packer.add(texts[:2])
    packer.add(texts[2:])
    found = packer.finish()
    assert found == list(map(os.fsdecode, texts)) and found[-1] == "\u4eba" and found[1:3] == found[:][1:3]
    assert found.ends.dtype == np.uint32 and found != ["a"]
    with pytest.raises(IndexError):
        found[5]
