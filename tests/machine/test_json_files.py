"""JSON that anyone may have written."""

import os

import pytest

from plsc.machine.json_files import as_integer, as_integers, as_number, as_object, as_text, parse_json, read_json, short


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{'a': 1}",
        b"[1]]",
        b'{"a": 1, "a": 2}',
        b"[" * 200 + b"]" * 200,
        b"[" + b"[]," * 1_000_001 + b"1]",
    ],
)
def test_what_is_no_json_is_a_value_error(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text)
    for read in (lambda: parse_json(text), lambda: read_json(tmp_path / "a.json")):
        with pytest.raises(ValueError, match="."):
            read()


def test_only_ordinary_files_of_moderate_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as stream:
        stream.truncate(257 << 20)
    for name in ("pipe", "large"):
        with pytest.raises(ValueError, match="not an ordinary file, or too large"):
            read_json(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing")


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (as_integer, [0, 7, 2**53], [-1, 2**53 + 1, True, 1.0, "1", None, float("inf"), [], 10**5000]),
        (lambda value: as_integers(value, 1, 2), [[1, 2]], [[1], [1, 2, 3], [0, 1], "12", {}, None, [1, 1.0]]),
        (as_number, [0, -1.5, float("inf")], [True, "1", None, 10**400, []]),
        (as_text, ["", "a"], [None, 1, b"a"]),
        (as_object, [{}], [[], None, "a"]),
    ],
)
def test_values_of_other_types_are_refused(check, right, wrong):
    assert all(check(value) == value for value in right)
    for value in wrong:
        with pytest.raises(ValueError, match="."):
            check(value)


def test_values_are_short_in_messages():
    assert short("a" * 100) == f"'{'a' * 56}..." and short([1] * 9) == "a list of 9" and short({}) == "an object of 0"
    assert len(short(10**5000)) < 70


def test_an_integer_that_no_float_can_hold_is_infinite():
    found = parse_json(f"[{'9' * 5000}, -{'9' * 400}, {2**128}]")
    assert found == [float("inf"), -float("inf"), 2**128]


def test_wide_lists_are_not_deep():
    assert parse_json("[" + "[[]]," * 1000 + "{}]") == [[[]]] * 1000 + [{}]
