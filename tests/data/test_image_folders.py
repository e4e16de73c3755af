"""The walk over folders of images: what it finds, in which order, and what it says about the rest."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from plsc.data import image_folders
from plsc.data.collection import open_collection
from plsc.data.image_folders import folder_of_images, image_files
from plsc.errors import DataError

FOUND = ["a/1.jpg", "a/2.JPEG", "a/x y/3.png", "a.b/1.jpg", "b.jpg", "人/é.webp"]


@pytest.fixture
def said(caplog, monkeypatch):
    """Returns the lines of the log so far."""
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    caplog.set_level(logging.INFO, logger="plsc")
    return lambda: [record.getMessage() for record in caplog.records]


def image(path, format="PNG", **options):
    """Writes a small image, whatever the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(path, format, **options)
    return path


def names(folder):
    return [one.name for one in folder_of_images(folder, folder)]


def test_plain_names_are_found_in_the_order_of_their_parts_without_a_word(tmp_path, said):
    for name in FOUND:
        image(tmp_path / name)
    every = image_files(tmp_path)
    assert names(tmp_path) == FOUND == [path.relative_to(tmp_path).as_posix() for path in every]
    assert every == sorted(every)
    assert said() == []


@pytest.mark.parametrize(
    "name, format",
    [("1.jfif", "JPEG"), ("2.tif", "TIFF"), ("3.GIF", "GIF"), ("4.avif", "AVIF"), ("5.pgm", "PPM"),
     ("6.jp2", "JPEG2000"), ("7", "JPEG"), ("8.0001", "PNG"), ("9.ico", "ICO"), ("portrait.dat", "WEBP"),
     ("x.tga", "TGA")],
)  # fmt: skip
def test_every_format_of_pillow_is_found_by_suffix_or_content(name, format, tmp_path):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"Pillow has no {format} here")
    image(tmp_path / name, format)
    assert names(tmp_path) == [name]


def test_what_is_no_image_is_counted_in_one_line(tmp_path, said):
    hidden = (".ipynb_checkpoints/1.jpg", "a/._1.jpg", "@eaDir/1.jpg", "__MACOSX/1.jpg", "a/.DS_Store", "Thumbs.db")
    for name in ("a/1.jpg", *hidden):
        image(tmp_path / name)
    for name in ("notes.txt", "a/2.txt", "a/README", "a/x.heic", "a/y.raw", "empty"):
        (tmp_path / name).write_bytes(b"Python is no portable pixmap" * (name != "empty"))
    for name in ("classes.txt", "skipped.txt", "damaged.txt", "exclude.txt"):  # plsc's own lists do not count
        (tmp_path / name).write_text("a\n")
    image(tmp_path / "c.eps", "EPS")  # Pillow would start Ghostscript for it.
    os.symlink("nowhere.jpg", tmp_path / "gone.jpg")
    os.symlink("self.jpg", tmp_path / "self.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(tmp_path) == ["a/1.jpg"]
    (line,) = said()
    assert line == (
        f"{tmp_path}: 1 image; left out: broken links: 2 (such as gone.jpg), hidden: 6 (such as .ipynb_checkpoints), "
        "pipes, sockets or devices: 1 (such as pipe.jpg), files that Pillow does not open: 7 (2 without a suffix, "
        "2 .txt, 1 .eps, ...)"
    )


def test_links_are_followed_and_cycles_end(tmp_path, said):
    image(tmp_path / "elsewhere" / "1.png"), image(tmp_path / "elsewhere" / "deep" / "2.png")
    (tmp_path / "data" / "b").mkdir(parents=True)
    for target, link in (("elsewhere", "data/a"), ("elsewhere/1.png", "data/b/3.png"), ("data", "data/b/up"),
                         ("data/b", "data/b/self"), ("data", "elsewhere/deep/back")):  # fmt: skip
        os.symlink(tmp_path / target, tmp_path / link)
    assert names(tmp_path / "data") == ["a/1.png", "a/deep/2.png", "b/3.png"]
    assert "left out: links to a folder that contains them: 3 (such as a/deep/back)" in said()[0]


def test_a_folder_that_may_not_be_read_is_one_clear_line(tmp_path, monkeypatch):
    image(tmp_path / "a" / "1.png"), image(tmp_path / "b" / "1.png")
    real = os.scandir

    def refuse(path):
        if os.fsdecode(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(image_folders.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/b: cannot be read \(Permission denied\); change its permissions"):
        open_collection(tmp_path)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "1.txt").write_text("1")
    with pytest.raises(
        DataError, match=r"no image; left out: files that Pillow does not open: 1 \(1 .txt\); name a fol"
    ):
        image_files(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        image_files(Path(tmp_path / "gone"))


def test_names_of_any_bytes_are_found(tmp_path):
    raw = ("数/图.png".encode("gbk"), "人.png".encode(), b't\tn\n\r".png')
    for name in raw:
        image(tmp_path / os.fsdecode(name))
    files = folder_of_images(tmp_path, tmp_path)
    assert sorted(os.fsencode(one.name) for one in files) == sorted(raw)
    assert sorted(os.fsencode(one.identity) for one in files) == [b"", b"", "数".encode("gbk")]
    images = open_collection(tmp_path)
    assert len(images.fingerprint()) == 64 and all(images.pixels(i, (3, 8, 8)).max() == 200 for i in range(3))


def test_identities_that_look_the_same_are_reported(tmp_path, said):
    for name in ("\u00e9/1.png", "e\u0301/1.png", "e/1.png"):
        image(tmp_path / name)
    assert open_collection(tmp_path).num_images == 3
    (line,) = said()
    assert r"the identities 'e\u0301' and '\xe9' look the same" in line


def test_a_link_to_a_folder_around_the_first_one_is_left_out(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "sub" / "b.png")
    os.symlink("..", tmp_path / "sub" / "loop")
    assert names(tmp_path / "sub") == ["b.png"] and names(tmp_path) == ["a.png", "sub/b.png"]
