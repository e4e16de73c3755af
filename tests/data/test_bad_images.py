"""Images that cannot be used, in every format: one line names the image, says why and what to do."""

import base64
import os
from pathlib import Path

import pytest

from plsc.data.augmentation import Augmentation
from plsc.data.damaged import is_damage
from plsc.data.loader import ImageLoader
from plsc.data.parquet_files import ParquetWriter
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import Record
from plsc.data.sources import FORMATS, open_images
from plsc.data.tar_shards import TarWriter
from plsc.errors import DataError
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options

SHAPE = (3, 8, 8)


def make(folder: Path, kind: str, images: list[bytes]) -> str:
    """Writes images of class 0 in a format; returns the path of the data."""
    folder.mkdir()
    if kind in ("jpeg", "folder"):
        (folder / "a").mkdir()
        for number, data in enumerate(images):
            (folder / "a" / f"{number}.jpg").write_bytes(data)
        if kind == "jpeg":
            (folder / "label.txt").write_text("".join(f"a/{number}.jpg 0\n" for number in range(len(images))))
        return str(folder)
    if kind == "base64":
        (folder / "part").write_bytes(b"".join(base64.b64encode(data) + b"\t0\n" for data in images))
        (folder / "list").write_text("part\n")
        shuffle_base64(Options(str(folder), "list", 1, workers=1))
        return str(folder)
    writers = {"recordio": (RecordIOWriter, "rec"), "tar": (TarWriter, "tar"), "parquet": (ParquetWriter, "parquet")}
    make_writer, suffix = writers[kind]
    writer = make_writer(folder / f"train.{suffix}")
    for number, data in enumerate(images):
        writer.add(Record(f"{number}.jpg", data, 0))
    writer.close()
    return str(folder)


def problem_of(path: str) -> DataError:
    """Returns the error of the first batch."""
    source = open_images(path, 1, 0, 1)
    loader = ImageLoader(source, SHAPE, 4, Augmentation(), 0, num_workers=0)
    with pytest.raises(DataError) as caught:
        next(loader.epoch(0))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return caught.value


# What images hold instead of an image, and why they cannot be used.
CONTENTS = {
    "nothing": (b"", "empty|no image"),
    "zeros": (bytes(300), "begins with zero bytes"),
    "a page": (b"<!DOCTYPE html><html>", "a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "a cut image": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01", "header is damaged or cut off|ends too early"),
    "garbage": (b"garbage that is no image" * 9, "not an image in a format that Pillow reads"),
}
WHERE = {"jpeg": "label.txt:1", "folder": "a/0.jpg", "base64": "base64_rank_0:1", "recordio": "record 1, at byte 0",
         "tar": "member '0.jpg'", "parquet": "row 0"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content"),  # The tool that splits base64 data refuses an empty image.
    [(kind, content) for kind in FORMATS for content in CONTENTS if (kind, content) != ("base64", "nothing")],
)
def test_an_image_of_any_format_says_where_it_is_and_what_is_wrong(tmp_path, kind, content):
    data, why = CONTENTS[content]
    problem = problem_of(make(tmp_path / "data", kind, [data]))
    assert f"{tmp_path}/data" in str(problem) and WHERE[kind] in str(problem)
    assert any(word in str(problem) for word in why.split("|")) and "; " in str(problem)
    assert is_damage(problem)


@pytest.mark.parametrize("kind", ["jpeg", "folder"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (os.mkfifo, "not a regular file"),
        (Path.mkdir, "not a regular file|Is a directory"),
        (lambda path: None, "No such file"),
    ],
    ids=["a link to itself", "a pipe", "a folder", "nothing"],
)
def test_what_is_no_file_any_more_says_so(tmp_path, kind, spoil, why):
    path = make(tmp_path / "data", kind, [b"x"])
    source = open_images(path, 1, 0, 1)
    image = Path(path, "a", "0.jpg")
    image.unlink()
    spoil(image)
    with pytest.raises(DataError) as caught:
        source.read(0)
    assert WHERE[kind] in str(caught.value) and any(word in str(caught.value) for word in why.split("|"))
    assert "\n" not in str(caught.value) and is_damage(caught.value)
