import base64
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data import base64_parts
from plsc.data.base64_parts import Fault, Manifest, OutputFile, check_line, find_lines, load_manifest, read_file_list
from plsc.errors import DataError

MAX_LINE = 60

good_lines = st.builds(
    lambda image, label: base64.b64encode(image) + b"\t%d" % label,
    st.binary(min_size=1, max_size=20),
    st.integers(0, 10**18 - 1),
)
# Random bytes would hardly ever be nearly right: these are good lines with one piece exchanged.
spoilt_lines = st.builds(
    lambda line, at, piece: line[: at % (len(line) + 1)] + piece + line[at % (len(line) + 1) + len(piece) :],
    good_lines,
    st.integers(0, 100),
    st.sampled_from([b"=", b"==", b"\t", b"-", b"\r", b" ", b"A", b"7", b"\x00", b"\x05", b"\xff", b"_", b""]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(good_lines, spoilt_lines, st.binary(max_size=70)), max_size=8))
def test_checking_many_lines_at_once_finds_what_checking_each_finds(lines):
    lines = [line.replace(b"\n", b"") for line in lines]
    block = b"".join(line + b"\n" for line in lines)

    found = find_lines(block, MAX_LINE)

    assert found.faults.tolist() == [check_line(line, MAX_LINE) or 0 for line in lines]
    for number, line in enumerate(lines):
        assert block[found.starts[number] : found.ends[number]] == line
        if not found.faults[number]:
            assert block[found.tabs[number]] == 9
            assert found.labels[number] == int(line.split(b"\t")[1])


@settings(max_examples=100, deadline=None)
@given(st.lists(good_lines, min_size=1, max_size=8))
def test_good_lines_take_the_fast_path(lines):
    assert base64_parts._all_good(b"".join(line + b"\n" for line in lines), MAX_LINE) is not None


@pytest.mark.parametrize(
    "line, fault",
    [
        (b"QUJD\t5", None),
        (b"QUI=\t0", None),
        (b"QQ==\t007", None),
        (b"", Fault.BLANK),
        (b"  ", Fault.BLANK),
        (b"\t", Fault.BLANK),
        (b"QUJD\t5\r", Fault.WINDOWS),
        (b"QUJD 5", Fault.NO_TAB),
        (b"QUJD\t-5", Fault.NEGATIVE),
        (b"QUJD\t", Fault.LABEL),
        (b"QUJD\tfive", Fault.LABEL),
        (b"QUJD\t5.0", Fault.LABEL),
        (b"QUJD\t+5", Fault.LABEL),
        (b"QUJD\t5 ", Fault.LABEL),
        (b"QUJD\t" + b"1" * 19, Fault.LABEL),
        (b"QUJD\t5\t6", Fault.ALPHABET),
        (b"\t5", Fault.NO_IMAGE),
        (b"QU-D\t5", Fault.ALPHABET),
        (b"QU D\t5", Fault.ALPHABET),
        (b"QUJ\t5", Fault.LENGTH),
        (b"QUJD=\t5", Fault.LENGTH),
        (b"QU=D\t5", Fault.LENGTH),
        (b"Q===\t5", Fault.LENGTH),
        (b"====\t5", Fault.LENGTH),
        (b"A" * 60 + b"\t5", Fault.LONG),
    ],
)
def test_what_is_wrong_with_a_line(line, fault):
    assert check_line(line, MAX_LINE) == fault
    assert find_lines(line + b"\n", MAX_LINE).faults.tolist() == [fault or 0]


def test_no_lines():
    assert all(len(values) == 0 for values in find_lines(b"", MAX_LINE))


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b c", "数据"):
        (tmp_path / name).write_bytes(b"QUJD\t5\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    os.symlink(tmp_path / "a", tmp_path / "alias")
    return tmp_path


def names_of(folder, text):
    (folder / "list").write_bytes(text)
    return [part.name for part in read_file_list(str(folder), "list")]


def test_names_with_spaces_and_non_ascii_letters_and_no_last_newline(folder):
    assert names_of(folder, "\ufeffa\nb c\n数据".encode()) == ["a", "b c", "数据"]


@pytest.mark.parametrize(
    "text, line, says",
    [
        (b"a\n\nb c\n", 2, "blank line"),
        (b"a\n \n", 2, "blank line"),
        (b"a\r\n", 1, "Windows line end"),
        (b"a\n/etc/passwd\n", 2, "absolute path"),
        (b"a\n../x\n", 2, "without '..'"),
        (b"sub/../a\n", 1, "without '..'"),
        (b"a\nb c\na\n", 3, "is the same file as the part in line 1"),
        (b"a\n./a\n", 2, "is the same file as the part in line 1"),
        (b"a\nalias\n", 2, "is the same file as the part in line 1"),
        (b"a\ngone\n", 2, "'gone' (no such file)"),
        (b"a\nsub\n", 2, "is not a file"),
        (b"a\nempty\n", 2, "'empty' is empty"),
        (b"a\n\xff\n", 2, "not UTF-8"),
        (b"a\nx\x00y\n", 2, "cannot read part"),
    ],
)
def test_mistakes_in_the_list(folder, text, line, says):
    with pytest.raises(DataError) as caught:
        names_of(folder, text)
    assert str(caught.value).startswith(f"{folder}/list:{line}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_list_a_missing_list_a_missing_folder(folder):
    with pytest.raises(DataError, match="names no parts"):
        names_of(folder, b"")
    with pytest.raises(DataError, match="cannot read the list"):
        read_file_list(str(folder), "other")
    with pytest.raises(DataError, match="no such folder"):
        read_file_list(str(folder / "other"), "list")


def example_manifest():
    files = [OutputFile("base64_rank_0", 3, 0, 30, "aa"), OutputFile("base64_rank_1", 3, 1, 31, "bb")]
    sources = [{"name": "数据", "bytes": 60, "lines": 6}]
    return Manifest(2, 7, 5, 1, 1, 3, 9, files, "file_list.txt", sources)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    assert load_manifest(str(tmp_path)) is None
    (tmp_path / "base64_manifest.json").write_text(example_manifest().to_json(), encoding="utf-8")
    assert load_manifest(str(tmp_path)) == example_manifest()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"format": "other"}, "not a manifest"),
        ({"version": 2}, "version 2"),
        ({"files": None}, "damaged"),
        ({"files": [{"name": "x"}]}, "damaged"),
        ({"files": [{"name": "../x", "samples": 1, "padding": 0, "bytes": 1, "sha256": ""}]}, "damaged"),
        ({"unknown": 1}, "damaged"),
        ({"nranks": 10**400}, "damaged"),
        ({"nranks": 0}, "damaged"),
        ({"nranks": 3}, "contradict"),
        ({"samples": 2.5}, "damaged"),
        ({"samples": 10**12}, "contradict"),
        ({"samples_per_file": "3"}, "contradict"),
        ({"largest_label": None}, "damaged"),
        ({"source_list": "a\0b"}, "damaged"),
        ({"sources": [1]}, "damaged"),
        ({"version": [[1]] * 9}, "version a list of 9"),
        ({"files": [{"name": "x\0", "samples": 1, "padding": 0, "bytes": 1, "sha256": ""}]}, "damaged"),
        ({"files": [{"name": "x", "samples": 1, "padding": 2, "bytes": 1, "sha256": ""}]}, "contradict"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, change, says):
    values = {**json.loads(example_manifest().to_json()), **change}
    (tmp_path / "base64_manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=says):
        load_manifest(str(tmp_path))


def test_labels_are_numbers(tmp_path):
    found = find_lines(b"QUJD\t5\nQUJD\t123456789012345678\nQUI=\t0\n", MAX_LINE)
    np.testing.assert_array_equal(found.labels, [5, 123456789012345678, 0])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "NaN", "\0", '{"format": 1, "format": 1}']
)
def test_a_manifest_of_anything_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "base64_manifest.json").write_text(text)
    with pytest.raises(DataError, match="not a manifest of base64 data"):
        load_manifest(str(tmp_path))
