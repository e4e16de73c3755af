"""Temporary files in folders that other users can write to."""

import os
import secrets

import pytest

from plsc.data.transforms import decode_file
from plsc.errors import DataError
from plsc.machine.files import open_regular, remove_leftovers, replace_file, replacing, write_synced
from plsc.search.page import _thumbnail


def test_a_planted_link_is_never_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "guessed")
    precious, target = tmp_path / "precious", tmp_path / "page.html"
    precious.write_text("mine")
    for name in (f".page.html.{os.getpid()}.part", f".page.html.{os.getpid()}.guessed.part"):
        (tmp_path / name).symlink_to(precious)
    with pytest.raises(FileExistsError):
        replace_file(target, b"page")
    with pytest.raises(OSError, match="symbolic link"):
        write_synced(tmp_path / f".page.html.{os.getpid()}.part", b"page")
    assert precious.read_text() == "mine" and not target.exists()


def test_the_target_is_replaced_and_a_failure_leaves_nothing(tmp_path):
    target = tmp_path / "page[1].html"
    replace_file(target, b"one")
    replace_file(target, b"two")
    assert target.read_bytes() == b"two" and os.listdir(tmp_path) == [target.name]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(ZeroDivisionError), replacing(target) as part:
        assert part.parent == tmp_path and part.read_bytes() == b""
        part.write_bytes(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"two" and os.listdir(tmp_path) == [target.name]


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for place in (tmp_path / "missing" / "page.html", tmp_path / "folder"):
        with pytest.raises(OSError) as caught:
            replace_file(place, b"x")
        assert caught.value.filename == str(place) and ".part" not in str(caught.value)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    target = tmp_path / "page[1].html"
    left = [".page[1].html.12.part", ".page[1].html.12.0123456789abcdef.part"]
    kept = [".page[1].html.x.part", ".page1.html.12.part", "page[1].html.12.part", ".page[1].html.part"]
    for name in left + kept:
        (tmp_path / name).touch()
    remove_leftovers(target)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_what_a_writer_left_goes_a_day_after_it_was_killed(tmp_path):
    target = tmp_path / "run.json"
    old, new, other = (tmp_path / f".{name}.12.{'0' * 16}.part" for name in ("run.json", "run.json", "mine.json"))
    new = new.with_name(f".run.json.13.{'1' * 16}.part")
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (1, 1))
    replace_file(target, b"x")
    assert sorted(tmp_path.iterdir()) == sorted([target, new, other])


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="pipe.jpg: cannot be read .not a regular file"):
        decode_file(tmp_path / "pipe.jpg", (3, 8, 8))
    assert _thumbnail(tmp_path / "pipe.jpg") is None
    (tmp_path / "file").write_bytes(b"abc")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"abc"
