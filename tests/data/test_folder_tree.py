"""A folder of images for each class as training data, and the numbers and names of its classes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc.data.collection import RecordImages
from plsc.data.folder_tree import FolderTree
from plsc.data.label_file import LabelFile
from plsc.data.sources import format_of, open_images
from plsc.errors import DataError

TREE = ["a/1.jpg", "a/2.png", "b b/deep/3.jpg", "b b/4.jpg", "人/5.jpg"]


def make(root: Path, names=TREE) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(root / name)
    return str(root)


def test_each_subfolder_is_a_class_in_the_order_of_bytes(tmp_path):
    source = open_images(make(tmp_path), 3, 0, 1)
    assert isinstance(source, FolderTree) and format_of(str(tmp_path)) == "folder"
    names = ["a/1.jpg", "a/2.png", "b b/4.jpg", "b b/deep/3.jpg", "人/5.jpg"]
    assert [source.name(i) for i in range(5)] == names
    assert list(source.class_names) == ["a", "b b", "人"] and source.num_classes == 3
    assert source.labels().tolist() == [0, 0, 1, 1, 2] == [source.read(i)[1] for i in range(5)]
    assert source.read(3)[0] == (tmp_path / names[3]).read_bytes() and source.where(4) == str(tmp_path / names[4])
    assert RecordImages(tmp_path, source).identity(4) == "人"
    before = source.digests()
    (tmp_path / "a" / "2.png").rename(tmp_path / "a" / "3.png")
    assert open_images(str(tmp_path), None, 0, 1).digests() != before
    (tmp_path / "a" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"a/1.jpg: cannot read the image \(No such file"):
        source.read(0)


def test_test_sets_and_images_in_no_folder_are_left_out_in_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    caplog.set_level(logging.INFO, logger="plsc")
    make(tmp_path, [*TREE, "0.jpg", "held_out/x/1.jpg", "held_out/y/1.jpg"])
    (tmp_path / "lfw.bin").touch()
    with pytest.raises(DataError, match="'held_out' holds folders of images and no images.*name it in set_val_targets"):
        open_images(str(tmp_path), 3, 0, 1)
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    source = open_images(str(tmp_path), 3, 0, 1, test_sets=["lfw", "held_out", str(outside)])
    assert list(source.class_names) == ["a", "b b", "人"] and source.num_images == 5
    assert "images in no subfolder: 1 (such as 0.jpg)" in caplog.text
    assert "test sets of set_val_targets: 1 (such as held_out)" in caplog.text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["images/a/1.jpg", "images/b/1.jpg"], r"'images' seems to hold a whole .*set_dataset_dir\('.*images'\)"),
        (["train/a/1.jpg", "val/a/1.jpg"], r"'train' seems to hold a whole data set"),
        (["1.jpg"], "holds images, but not in a folder for each class"),
        (["a/1.jpg", "b/1.jpg", "c/1.jpg"], r"names 3 classes, but set_class_num says 2; call set_class_num\(3\)"),
    ],
)  # fmt: skip
def test_what_is_no_tree_of_classes_is_one_clear_line(names, words, tmp_path):
    with pytest.raises(DataError, match=words):
        open_images(make(tmp_path, names), 2, 0, 1)


@pytest.mark.parametrize("link", ["0", "a/0", "c/0"])
def test_a_link_to_itself_hides_no_data(link, tmp_path):
    folder = make(tmp_path, ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "c").mkdir()
    os.symlink(os.path.basename(link), tmp_path / link)
    assert format_of(folder) == "folder" and open_images(folder, 2, 0, 1).num_images == 2


def test_classes_txt_fixes_the_numbers_of_folders_and_of_names_in_lists(tmp_path):
    make(tmp_path)
    (tmp_path / "classes.txt").write_text("人\r\ngone\r\na\r\nb b\r\n", encoding="utf-8")
    source = open_images(str(tmp_path), None, 0, 1)
    assert source.labels().tolist() == [2, 2, 3, 3, 0] and source.num_classes == 4
    (tmp_path / "label.txt").write_text("a/1.jpg\t人\na/2.png\tb b\n", encoding="utf-8")
    listed = open_images(str(tmp_path), None, 0, 1)
    assert isinstance(listed, LabelFile) and listed.labels().tolist() == [0, 3]
    assert list(listed.class_names) == ["人", "gone", "a", "b b"]
    (tmp_path / "label.txt").write_text("a/1.jpg 0\na/2.png 3\n")
    assert list(open_images(str(tmp_path), 4, 0, 1).class_names) == ["人", "gone", "a", "b b"]
    assert list(open_images(str(tmp_path), 9, 0, 1).class_names) == []
    (tmp_path / "label.txt").unlink()
    (tmp_path / "classes.txt").write_text("a\n人\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"b b: the class 'b b' is not in .*classes.txt, which numbers the classes"):
        open_images(str(tmp_path), None, 0, 1)


def test_labels_may_be_names(tmp_path):
    make(tmp_path)
    lines = "a/1.jpg pear\n\na/2.png apple\n b b/4.jpg\t\u3000苹果 \nb b/deep/3.jpg pear\n"
    (tmp_path / "label.txt").write_text(lines, encoding="utf-8")
    source = open_images(str(tmp_path), 3, 0, 1)
    assert list(source.class_names) == ["apple", "pear", "苹果"] and source.labels().tolist() == [1, 0, 2, 1]
    assert source.where(3) == f"{tmp_path}/label.txt:5"
    (tmp_path / "label.txt").write_text("a/1.jpg pear\na/2.png 7\n")
    with pytest.raises(DataError, match=r"label.txt:2: label '7' is a number, but the first label, 'pear', is a name"):
        open_images(str(tmp_path), None, 0, 1)
    (tmp_path / "classes.txt").write_text("7\npear\n")
    assert open_images(str(tmp_path), None, 0, 1).labels().tolist() == [1, 0]


def test_names_of_any_bytes_are_classes(tmp_path):
    names = [os.fsdecode(b"\xca\xfd/1.jpg"), "b/1.jpg"]
    source = open_images(make(tmp_path, names), None, 0, 1)
    assert list(source.class_names) == ["b", r"\xca\xfd"] and source.labels().dtype == np.int32
    assert source.read(1) == ((tmp_path / names[0]).read_bytes(), 1)
