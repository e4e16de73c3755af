"""Lines of the lists of images: what is blank, and how columns are told apart."""

from __future__ import annotations

import pytest

from plsc.data.collection import open_collection
from plsc.data.image_lists import columns_of, lines_of
from plsc.data.label_file import read_label_file
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
