"""Test sets from folders and lists."""

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from plsc.data.pair_sets import PairSet, read_pairs
from plsc.data.test_sets import GallerySet, IdentitySet, find_sets, read_gallery
from plsc.errors import DataError

SHAPE = (3, 16, 16)


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (value, 255 - value, 7)).save(path)


def lfw(folder, people, images, lines, where="", suffix=".jpg"):
    """Writes files in the layout of LFW: `pairs.txt`, and a folder for each person."""
    for person in people:
        for number in range(1, images + 1):
            picture(folder / where / person / f"{person}_{number:04d}{suffix}", 10 * number)
    (folder / "pairs.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder / "pairs.txt"


LINES = ["2\t2", "A\t1\t2", "B\t1\t3", "A\t1\tB\t2", "B\t3\tC\t1", "C\t1\t2", "A\t2\t3", "C\t3\tA\t1", "B\t1\tA\t3"]


@pytest.mark.parametrize("where, suffix", [("", ".jpg"), ("images", ".png"), ("lfw", ".jpg")])
def test_lfw_pairs_keep_their_folds(tmp_path, where, suffix):
    found = read_pairs(lfw(tmp_path, "ABC", 3, LINES, where, suffix))
    names = [found.images.name(i) for i in range(found.images.num_images)]
    assert found.name == "pairs" and found.templates is None and len(names) == len(set(names)) == 9
    shown = [tuple(names[i] for i in pair) for pair in found.pairs]
    assert shown[0] == (f"A/A_0001{suffix}", f"A/A_0002{suffix}")
    assert shown[3] == (f"B/B_0003{suffix}", f"C/C_0001{suffix}")
    assert found.issame.tolist() == [True, True, False, False] * 2
    assert found.folds.tolist() == [0] * 4 + [1] * 4
    assert {found.images.identity(i) for i in range(9)} == {"A", "B", "C"}
    assert found.images.pixels(0, SHAPE).shape == (16, 16, 3)


def test_lfw_pairs_with_one_number_form_one_fold(tmp_path):
    found = read_pairs(lfw(tmp_path, "AB", 2, ["2", "A 1 2", "B 2 1", "A 1 B 1", "B 2 A 2"]))
    assert found.folds.tolist() == [0] * 4 and found.issame.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "lines, words",
    [
        (LINES[:-1], "holds 7 pairs, but its first line says 2 folds of 2 same and 2 different"),
        ([*LINES[:2], "B\tx\t3", *LINES[3:]], r"pairs.txt:3: .* is not 'name 1 4'"),
        ([*LINES[:3], "A\t1\t2", *LINES[4:]], r"pairs.txt:4: .* is not 'name 1 other 2'"),
        ([*LINES[:3], "A\t1\tD\t1", *LINES[4:]], r"pairs.txt:4: there is no image .*D_0001.jpg"),
        (["2\t2", "D\t1\t2", *LINES[2:]], "no image D/D_0001.jpg .* nor in its subfolders images and lfw"),
    ],
)
def test_bad_lfw_pairs_are_named(tmp_path, lines, words):
    with pytest.raises(DataError, match=words):
        read_pairs(lfw(tmp_path, "ABC", 3, lines))


def test_pairs_of_images_and_of_folders(tmp_path):
    for name in ("a.png", "b c.png", "d/1.png", "d/2.png"):
        picture(tmp_path / name)
    (tmp_path / "p.txt").write_bytes("\ufeffa.png\tb c.png\t1\r\n\r\nb c.png\ta.png\t0\r\n".encode())
    alone = read_pairs(tmp_path / "p.txt")
    assert alone.templates is None and alone.folds is None
    assert alone.pairs.tolist() == [[0, 1], [1, 0]] and alone.issame.tolist() == [True, False]
    (tmp_path / "t.txt").write_text("a.png d 1\nd a.png 0\n")
    found = read_pairs(tmp_path / "t.txt")
    assert [found.images.name(i) for i in range(3)] == ["a.png", "d/1.png", "d/2.png"]
    assert found.templates.tolist() == [0, 1, 1] and found.pairs.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    "text",
    [b"\xef\xbb\xbf%s\tb\t1\n\xef\xbb\xbfb\t%s\t0\n", b"%s b 1\r\n\r\nb %s 0\r\n", b"%s b 1\rb %s 0\r",
     b"  %s \t b \t 1\n \t\n b\t%s\t0\n"],
    ids=["marks", "Windows", "Mac", "blanks"],
)  # fmt: skip
def test_pairs_are_read_like_other_lists_and_name_any_bytes(tmp_path, text, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    caplog.set_level(logging.INFO, logger="plsc")
    raw = "数".encode("gbk")
    for name in (os.fsdecode(raw) + "/1.png", "b/1.png", "b/2.png", "b/.x/3.png"):
        picture(tmp_path / name)
    (tmp_path / "p.txt").write_bytes(text % (raw, raw))
    found = read_pairs(tmp_path / "p.txt")
    assert [os.fsencode(found.images.name(i)) for i in range(3)] == [raw + b"/1.png", b"b/1.png", b"b/2.png"]
    assert found.pairs.tolist() == [[0, 1], [1, 0]] and found.issame.tolist() == [True, False]
    assert {one.getMessage() for one in caplog.records} == {
        f"{tmp_path / 'p.txt'}: 3 images; left out: hidden: 1 (such as .x)"
    }


@pytest.mark.parametrize(
    "text, words",
    [
        ("a.png a.png 1\na.png a.png\n", "p.txt:2: 'a.png a.png' is not 'one other 1'"),
        ("a.png a.png 2\n", "p.txt:1: .* is not 'one other 1' or 'one other 0'"),
        ("a.png none.png 1\n", "p.txt:1: .*none.png is neither an image nor a folder"),
        ("a.png empty 1\n", "empty: holds no image"),
        ("\n \n", "lists no image"),
    ],
)
def test_bad_pairs_are_named(tmp_path, text, words):
    picture(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        read_pairs(tmp_path / "p.txt")


def test_a_target_names_a_file_of_pairs_or_a_folder(glyphs, tmp_path):
    shutil.copy(glyphs / "glyphs.bin", tmp_path)
    for name in ("people/x/1.png", "people/x/2.png", "people/y/1.png", "glyphs/z/1.png"):
        picture(tmp_path / name)
    (tmp_path / "p.txt").write_text("people/x/1.png people/y/1.png 0\n")
    binary, pairs, folder = find_sets(str(tmp_path), "glyphs, p.txt,people,", SHAPE)
    assert [one.name for one in (binary, pairs, folder)] == ["glyphs", "p", "people"]
    assert isinstance(binary, PairSet) and isinstance(pairs, PairSet) and isinstance(folder, IdentitySet)
    assert folder.labels.tolist() == [0, 0, 1]
    # Each image occurs once, and each pair stays.
    assert len(binary.pairs) == len(binary.issame) == 40 and binary.images.num_images < 80
    for place in ("p.txt", "train-{0..9}.tar", "*.parquet"):  # they lie next to the files of a data set
        assert find_sets(str(tmp_path / place), "people", SHAPE)[0].name == "people"
    assert find_sets([str(tmp_path / "nowhere"), str(tmp_path)], "people", SHAPE)[0].name == "people"
    with pytest.raises(
        DataError, match="none.bin: no such verification set, nor none.txt, nor a folder of images none"
    ):
        find_sets(str(tmp_path), "none", SHAPE)
    (tmp_path / "x.tar").touch()
    for data in ("x.tar", "train-{0..9}.tar", "*.parquet"):  # the sets lie next to the files of the data
        assert [one.name for one in find_sets(str(tmp_path / data), "people", SHAPE)] == ["people"]
    with pytest.raises(DataError, match="two test sets are called 'p'"):
        find_sets(str(tmp_path), "p,p.txt", SHAPE)
    picture(tmp_path / "people" / "stray.png")
    with pytest.raises(DataError, match="stray.png: the image has no identity"):
        find_sets(str(tmp_path), "people", SHAPE)


def test_gallery_and_probes_have_templates_and_identities(tmp_path):
    for name in ("known/b/1.png", "known/b/2.png", "known/a/1.png", "p/1.png", "p/2.png", "p/3.png", "p/4.png"):
        picture(tmp_path / name)
    (tmp_path / "p.txt").write_text("p/1.png\tb\tfirst\np/2.png\tz\np/3.png\tb\tfirst\np/4.png\ta\n")
    found = read_gallery(tmp_path / "known", tmp_path / "p.txt")
    assert isinstance(found, GallerySet)
    assert found.gallery_templates.tolist() == [0, 1, 1] and found.gallery_identities.tolist() == [0, 1]
    assert found.probe_templates.tolist() == [0, 1, 0, 2] and found.probe_identities.tolist() == [1, -1, 0]
    with pytest.raises(DataError, match="the image has no identity"):
        read_gallery(tmp_path / "p", tmp_path / "p.txt")
    # A subfolder in the folder of an identity is a template.
    for name in ("q/a/one/1.png", "q/a/one/2.png", "q/a/two/1.png", "q/a/3.png", "q/c/4.png"):
        picture(tmp_path / name)
    found = read_gallery(tmp_path / "known", tmp_path / "q")
    assert found.probe_templates.tolist() == [0, 1, 1, 2, 3] and found.probe_identities.tolist() == [0, 0, 0, -1]
    assert np.array_equal(np.unique(found.probe_templates), np.arange(len(found.probe_identities)))


def test_a_missing_set_names_those_of_the_folder_and_what_to_do(tmp_path):
    with pytest.raises(DataError, match="cannot be listed"):
        find_sets(str(tmp_path / "nowhere"), "lfw", SHAPE)
    for name in ("images/1.png", "people/x/1.png"):
        picture(tmp_path / name)
    (tmp_path / "label.txt").touch()
    with pytest.raises(DataError, match=r"lfw.bin: no such .* holds no test sets|holds people \(folder\)") as caught:
        find_sets(str(tmp_path), "lfw", SHAPE)
    for word in ("holds people (folder);", "set_val_targets", "--targets", "set_with_test(False)"):
        assert word in str(caught.value)
    for name in ("a.bin", *(f"z{number}.bin" for number in range(9))):
        (tmp_path / name).touch()
    # Lists that other commands write are no test sets.
    for name, line in (
        ("pairs", "images/1.png\tpeople/x/1.png\t1"),
        ("exclude", "images/1.png\theld out for a test"),
        ("leave_out", "images/1.png\tfar from class 2, nearest to 3"),
        ("names", "someone"),
    ):
        (tmp_path / f"{name}.txt").write_text(f"{line}\n")
    (tmp_path / "nothing.txt").touch()
    with pytest.raises(DataError, match=r"holds a, pairs, people \(folder\), z0, z1, z2, z3, z4 and 4 more;"):
        find_sets(str(tmp_path), "lfw", SHAPE)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 5000,
        f"{'9' * 5000} 2\na 1 1\n",
        f"1\na 1 {'9' * 5000}\na 1 b 1\n",
        f"{'a' * 3000} b 1\n",
        "[" * 3000,
        f"1\n{'a' * 3000} 1 2\na 1 b 1\n",
    ],
)
def test_long_words_of_a_pairs_file_are_refused_in_one_short_line(text, tmp_path):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(DataError, match=r"p\.txt") as caught:
        read_pairs(tmp_path / "p.txt")
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_a_target_that_is_too_long_for_a_name_is_missing(tmp_path):
    with pytest.raises(DataError, match="no such verification set"):
        find_sets(str(tmp_path), "a" * 3000, (3, 16, 16))
