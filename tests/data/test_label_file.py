from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from plsc.data.collection import open_collection
from plsc.data.label_file import read_label_file
from plsc.data.sources import open_images
from plsc.errors import DataError


def make(root: Path, text: bytes, files: tuple[str, ...] = ()) -> str:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "label.txt").write_bytes(text)
    return str(root)


def test_reads_bom_crlf_tabs_spaces_and_blank_lines(tmp_path: Path) -> None:
    text = "\ufeffa/1.jpg 0\r\n\r\nb c/my é.jpg\t2\r\n  \n2.jpg 1".encode()
    root = make(tmp_path, text, ("a/1.jpg", "b c/my é.jpg", "2.jpg"))
    source = read_label_file(root, 3)
    assert len(source) == 3
    assert source.paths == ["a/1.jpg", "b c/my é.jpg", "2.jpg"]
    assert source.labels().dtype == np.int32
    assert source.labels().tolist() == [0, 2, 1]
    assert source.where(1) == f"{root}/label.txt:3"
    assert source.where(2).endswith("label.txt:5")
    assert source.read(1) == ("b c/my é.jpg".encode(), 2)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa.jpg 0\nb c.jpg 1\n",
        "a.jpg\t0\nb c.jpg\t1\n",
        "a.jpg 0\rb c.jpg 1\r",
        "a.jpg 0\r\n\r\nb c.jpg 1",
        "  a.jpg\t0 \n\n \t \nb c.jpg  1\t\n",
        "a.jpg \t 0\r\rb c.jpg\u30001\n",
        "a.jpg 0\n\ufeffb c.jpg 1\n",
        "a.jpg\t0\tvideo 1\nb c.jpg\t1\t\n",
    ],
    ids=["mark", "tabs", "Mac", "Windows", "blanks", "mixed", "appended", "templates"],
)
def test_training_and_predict_read_the_same_lines(tmp_path: Path, text: str) -> None:
    root = make(tmp_path, text.encode(), ("a.jpg", "b c.jpg"))
    trained, embedded = read_label_file(root, 2), open_collection(tmp_path)
    assert trained.paths == [embedded.name(i) for i in range(embedded.num_images)] == ["a.jpg", "b c.jpg"]
    assert trained.labels().tolist() == [int(embedded.identity(i)) for i in range(2)] == [0, 1]
    assert [f"{trained.where(i)}: {trained.paths[i]}" for i in range(2)] == [embedded.where(i) for i in range(2)]


def test_a_label_file_names_images_by_their_bytes(tmp_path: Path) -> None:
    names = ["数据/图.jpg".encode("gbk"), "人.jpg".encode()]
    files = tuple(map(os.fsdecode, names))
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(os.fsencode(name))
    root = make(tmp_path, b"".join(b"%s %d\r\n" % (name, label) for label, name in enumerate(names)))
    source = read_label_file(root, 2)
    assert tuple(source.paths) == files and [source.read(i) for i in range(2)] == list(zip(names, (0, 1)))
    other = read_label_file(make(tmp_path, b"%s 1\n%s 0\n" % (names[1], names[0])), 2)
    assert len(source.digests()) == 3 and not set(source.digests().items()) & set(list(other.digests().items())[1:])


def test_a_twin_of_a_missing_image_is_named(tmp_path: Path) -> None:
    root = make(tmp_path, "\u00e9.jpg 0\n".encode(), ("e\u0301.jpg",))
    with pytest.raises(
        DataError, match="label.txt:1: image file '\u00e9.jpg' is missing .*'e\u0301.jpg' exists, which looks"
    ):
        read_label_file(root, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["label.txt", "lists no images"]),
        (b"\n \n", ["lists no images"]),
        (b"1.jpg 0\n1.jpg\n", ["label.txt:2", "no label"]),
        (b"1.jpg\t\t1\n", ["label.txt:1", "no label", "single tab"]),
        (b"1.jpg 0\n1\0.jpg 1\n", ["label.txt:2", "UTF-8"]),
        (b"1.jpg 0\n1.jpg x\n", ["label.txt:2", "'x'", "not an integer"]),
        (b"1.jpg 1.0\n", ["label.txt:1", "not an integer"]),
        (b"1.jpg 1_0\n", ["label.txt:1", "not an integer"]),
        (b"1.jpg +-1\n", ["label.txt:1", "not an integer"]),
        (b"1.jpg 0\n\n1.jpg 7\nx\n1.jpg 9\n", ["label.txt:3", "label 7", "[0, 7)", "is 9", "set_class_num(10)"]),
        (b"1.jpg -1\n", ["label.txt:1", "label -1"]),
        (b"1.jpg 99999999999999999999\n", ["label.txt:1", "outside"]),
        (b"1.jpg 0\n\xff.jpg 0\n", ["label.txt:2", "UTF-8"]),
        (b"1.jpg 0\nx.jpg 0\nno/x.jpg 1\n1.jpg/y 1\n1.jpg 1\n", ["label.txt:2", "'x.jpg'", "3 missing"]),
        (b"no/x.jpg 1\n1.jpg 0\nx.jpg 0\n", ["label.txt:1", "'no/x.jpg'", "2 missing"]),
        (b"1.jpg 0\nsub 0\n", ["label.txt:2", "'sub'", "1 missing"]),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: bytes, words: list[str]) -> None:
    root = make(tmp_path, text, ("1.jpg", "sub/1.jpg"))
    with pytest.raises(DataError) as caught:
        read_label_file(root, 7)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_classes_are_counted_by_the_largest_label(tmp_path: Path) -> None:
    root = make(tmp_path, b"\xef\xbb\xbf1.jpg 0\n\n1.jpg\t11\ta template\n1.jpg 7\n", ("1.jpg",))
    source = open_images(root, None, 0, 1)
    assert source.num_classes == 12 and source.labels().tolist() == [0, 11, 7] and source.name(2) == "1.jpg"
    for label, num_classes in ((10**9, None), (3 * 10**9, 10**10)):
        with pytest.raises(DataError, match=f"label.txt:1: label {label} is larger than 999999999"):
            open_images(make(tmp_path, b"1.jpg %d\n" % label, ("1.jpg",)), num_classes, 0, 1)
    with pytest.raises(DataError, match=r"nowhere: holds no training data \(no such file or folder\); check the path"):
        open_images(str(tmp_path / "nowhere"), None, 0, 1)


def test_a_missing_label_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt"):
        read_label_file(str(tmp_path), 2, name="train.txt")


def test_a_file_lost_after_the_check_is_named(tmp_path: Path) -> None:
    source = read_label_file(make(tmp_path, b"1.jpg 0\n", ("1.jpg",)), 1)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"label\.txt:1.*1\.jpg"):
        source.read(0)
