"""The index of a folder tree: it says what the folders say, or is not used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from plsc.data import folder_index, image_folders
from plsc.data.folder_index import listed
from plsc.data.image_folders import INDEX
from plsc.data.sources import open_images

NAMES = ["a/1.jpg", "a/2.png", "b b/deep/3.jpg", "b b/4.jpg", "人/5.jpg", "held_out/x/6.jpg", "0.jpg", "a/.hidden"]
TESTS = {b"held_out"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder tree that was made long ago."""
    monkeypatch.setattr(folder_index, "_FEWEST", 3)
    root = tmp_path / "tree"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")
    (root / "b b" / "notes.txt").touch()
    (root / "empty").mkdir()
    age(root)
    return root


def age(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))


def seen(root: Path, keeps_index: bool = False, without=frozenset(TESTS)):
    """Returns the names of the images and what was left out."""
    files, left_out = listed(os.fsencode(root), without, keeps_index)
    return [] if files is None else list(files), str(left_out)


def index_of(root: Path) -> Path:
    return root / os.fsdecode(INDEX)


def swap(one: Path, other: Path) -> None:
    one.rename(f"{one} ")
    other.rename(one)
    Path(f"{one} ").rename(other)


def add_as_archives_do(image: Path) -> None:
    """Adds a file, and gives its folder the time that an archive names."""
    image.touch()
    os.utime(image.parent, (1e9, 1e9))


def test_the_second_start_finds_the_same_and_lists_no_subfolder(tree, monkeypatch):
    first = seen(tree, keeps_index=True)
    assert first[0] == ["a/1.jpg", "a/2.png", "b b/4.jpg", "b b/deep/3.jpg", "人/5.jpg"]
    assert "hidden: 1 (such as a/.hidden)" in first[1] and "images in no subfolder: 1" in first[1]
    assert index_of(tree).exists()
    opened, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(os.fsdecode(path)) or scandir(path))
    assert seen(tree) == first and set(opened) == {str(tree)}
    monkeypatch.undo()
    source = open_images(str(tree), None, 0, 1, test_sets=["held_out"])
    index_of(tree).unlink()
    again = open_images(str(tree), None, 0, 1, test_sets=["held_out"], keeps_index=False)
    assert source.digests() == again.digests() and source.labels().tolist() == again.labels().tolist()
    assert source.read(4) == again.read(4) and source.class_names == again.class_names


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "1.jpg").unlink(),
        lambda root: (root / "a" / "1.jpg").rename(root / "a" / "9.jpg"),
        lambda root: (root / "b b" / "deep" / "1.jpg").touch(),
        lambda root: (root / "empty" / "1.jpg").touch(),
        lambda root: (root / "c").mkdir(),
        lambda root: shutil.rmtree(root / "人"),
        lambda root: (root / "1.jpg").touch(),
        lambda root: (root / ".new").touch(),
        lambda root: swap(root / "a", root / "人"),
        lambda root: add_as_archives_do(root / "a" / "3.jpg"),
        lambda root: index_of(root).write_bytes(index_of(root).read_bytes()[:-40]),
        lambda root: index_of(root).write_bytes(b"PK\x03\x04" + bytes(100)),
    ],
)
def test_what_has_changed_is_listed_again(tree, change):
    seen(tree, keeps_index=True)
    change(tree)
    found = seen(tree)
    index_of(tree).unlink()
    assert found == seen(tree)


def test_an_index_serves_the_test_sets_that_it_was_made_for(tree):
    before = seen(tree, keeps_index=True)
    assert seen(tree, without=frozenset()) != before == seen(tree)


def test_an_index_serves_the_formats_that_it_was_made_with(tree, monkeypatch):
    seen(tree, keeps_index=True)
    monkeypatch.setattr(folder_index, "image_suffixes", lambda: frozenset((b".jpg",)))
    monkeypatch.setattr(image_folders, "image_suffixes", lambda: frozenset((b".jpg",)))
    (tree / "a" / "2.png").write_text("in no format that is left")
    assert "a/2.png" not in seen(tree)[0]


@pytest.mark.parametrize(
    "change, keeps_index",
    [
        (lambda root: age(root), False),
        (lambda root: (root / "a" / "link.jpg").symlink_to(root / "a" / "1.jpg") or age(root), True),
        (lambda root: shutil.copy(root / "a" / "1.jpg", root / "a" / "no suffix") and age(root), True),
        (lambda root: os.utime(root / "人"), True),
    ],
)
def test_no_index_is_kept_that_could_be_wrong_later(tree, change, keeps_index):
    change(tree)
    seen(tree, keeps_index)
    assert not index_of(tree).exists()
