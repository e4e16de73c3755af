"""Collections: names, identities and templates of images, and the errors for images that cannot be read."""

import base64
import os

import numpy as np
import pytest
from PIL import Image

from plsc.data.collection import ArrayImages, Base64Parts, ImageFiles, open_collection, titles_of_numbers
from plsc.errors import DataError

SHAPE = (3, 16, 16)


def image(path, grey=0):
    """Writes a small image of one shade of grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (grey, grey, grey)).save(path)
    return path


def said(images):
    """Returns name, identity and template of each image."""
    return [(images.name(i), images.identity(i), images.template(i)) for i in range(images.num_images)]


def greys(images):
    """Returns the first pixel of each image."""
    return [int(images.pixels(i, SHAPE)[0, 0, 0]) for i in range(images.num_images)]


def parts_of(folder, *parts, names=None):
    """Writes base64 parts with the given lines, and a list of them."""
    names = names or [f"part{number}" for number in range(len(parts))]
    for name, lines in zip(names, parts):
        (folder / name).write_bytes(b"".join(lines))
    (folder / "file_list.txt").write_text("".join(f"{name}\n" for name in names))
    return folder / "file_list.txt"


def line(grey, label, folder):
    """Returns a line of base64 data."""
    return base64.b64encode(image(folder / "line.png", grey).read_bytes()) + b"\t%d\n" % label


def test_a_folder_names_identities_and_templates_and_is_sorted(tmp_path):
    for grey, name in enumerate(("b/t1/2.png", "b/t1/x/1.png", "b/0.PNG", "flat.png", "人 a/\tone two.png")):
        image(tmp_path / name, grey)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    images = open_collection(tmp_path)
    assert said(images) == [
        ("b/0.PNG", "b", ""),
        ("b/t1/2.png", "b", "b/t1"),
        ("b/t1/x/1.png", "b", "b/t1/x"),
        ("flat.png", "", ""),
        ("人 a/\tone two.png", "人 a", ""),
    ]
    assert greys(images) == [2, 0, 1, 3, 4]
    assert images.source == str(tmp_path) and images.where(3) == str(tmp_path / "flat.png")


@pytest.mark.parametrize(
    "lines, names, titles",
    [
        (["a.png 1", "b.png 0"], "cat\n\u732b\n", ["cat", "\u732b"]),
        (["a.png 1", "b.png two"], "cat\n\u732b\n", []),
        (["a.png 1", "b.png 2"], "cat\n\u732b\n", []),
        (["a.png 1", "b.png 0"], None, []),
        (None, "cat\n\u732b\n", []),
    ],
    ids=["integers", "a name", "too few names", "no names", "no list"],
)
def test_classes_txt_names_the_integers_of_a_list(lines, names, titles, tmp_path):
    for name in ("a.png", "b.png", "1/c.png"):
        image(tmp_path / name)
    if lines:
        (tmp_path / "label.txt").write_text("\n".join(lines) + "\n")
    if names:
        (tmp_path / "classes.txt").write_text(names, encoding="utf-8")
    assert list(titles_of_numbers(open_collection(tmp_path))) == titles


@pytest.mark.parametrize("name", ["label.txt", "file_list.txt"])
def test_a_folder_with_a_list_holds_the_images_in_the_list(name, tmp_path):
    image(tmp_path / "b.png"), image(tmp_path / "a.png")
    (tmp_path / name).write_text("b.png 7\n")
    assert said(open_collection(tmp_path)) == [("b.png", "7", "")]
    assert open_collection(tmp_path).where(0) == f"{tmp_path / name}:1: b.png"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("b.png 1\na b.png  人\n", [("b.png", "1", ""), ("a b.png", "人", "")]),
        ("b.png\tx y\na b.png\tx y\tvideo 1\nb.png\tz\t\n",
         [("b.png", "x y", ""), ("a b.png", "x y", "x y/video 1"), ("b.png", "z", "")]),
        ("\ufeffa b.png\n\nb.png\n", [("a b.png", "", ""), ("b.png", "", "")]),
        ("gone.png\nb.png\r\n", [("gone.png", "", ""), ("b.png", "", "")]),
        ("\ufeffb.png 1\r\n\r\na b.png 2\r\n", [("b.png", "1", ""), ("a b.png", "2", "")]),
    ],
    ids=["spaces", "tabs", "paths alone", "the first is missing", "Windows"],
)  # fmt: skip
def test_every_form_of_list_is_read(text, expected, tmp_path):
    image(tmp_path / "b.png", 1), image(tmp_path / "a b.png", 2)
    (tmp_path / "list").write_bytes(text.encode())
    images = open_collection(tmp_path / "list")
    assert said(images) == expected
    assert all(
        images.pixels(i, SHAPE).max() == 1 + (name != "b.png")
        for i, (name, *_) in enumerate(expected)
        if name != "gone.png"
    )


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "list: lists no image"),
        (b"\n \n", "list: lists no image"),
        (b"\xff\xfea\0", "list:1: not UTF-8 text, because it holds a zero byte"),
        ("a.png 1\n".encode("utf-16-le"), "list:1: not UTF-8 text, .*not as UTF-16"),
        (b"a.png 1\n\nb.png\n", "list:3: 'b.png' is not 'path identity'"),
        (b"a.png\t1\nb.png\t\tt\n", r"list:2: 'b.png\\t\\tt' is not"),
        (b"a.png\t1\t2\t3\n", "list:1: .* is not"),
        (b"x" * 9999 + b"\n", f"list:1: '{'x' * 80}' is not"),
        (base64.b64encode(bytes(6000)) + b"\t3\n", "list: holds base64 data itself; name the list of such parts"),
    ],
    ids=["empty", "blank", "bytes", "UTF-16", "no identity", "no identity, tabs", "four words", "long", "a part"],
)
def test_bad_lists_are_refused(content, words, tmp_path):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_collection(tmp_path / "list")
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_images_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        open_collection(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: cannot be read \(No such file"):
        open_collection(tmp_path / "nowhere")
    image(tmp_path / "a.png")
    (tmp_path / "list").write_text("a.png 1\ngone.png 2\n")
    images = open_collection(tmp_path / "list")
    for read in (images.fingerprint, lambda: images.pixels(1, SHAPE)):
        with pytest.raises(DataError, match=r"list:2: gone.png: cannot be read \(No such file"):
            read()
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="list:1: a.png: cannot decode the image"):
        images.pixels(0, SHAPE)


@pytest.mark.parametrize("form", [b"%s 7\n", b"%s\t7\tvideo \xca\xfd\n", b"%s\n"], ids=["blank", "tabs", "paths alone"])
def test_a_list_names_files_by_their_bytes(form, tmp_path):
    raw = "数 据/图聽.png".encode("gbk")  # In UTF-8 the last two bytes of its stem would be a blank.
    place = image(tmp_path / os.fsdecode(raw), 9)
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + form % raw)
    images = open_collection(tmp_path / "list")
    assert os.fsencode(images.name(0)) == raw and images.identity(0) == ("7" if b"7" in form else "")
    assert greys(images) == [9]
    before = images.fingerprint()
    place.rename(tmp_path / "other.png")
    with pytest.raises(
        DataError, match="No such file.*the line is not UTF-8, so if the name of the file is, save the list"
    ):
        images.fingerprint()
    assert images.fingerprint(missing=True) != before


def test_the_fingerprint_depends_on_files_and_list(tmp_path):
    image(tmp_path / "a.png"), image(tmp_path / "b.png")

    def now(text="a.png 1\nb.png 2\n", missing=False):
        (tmp_path / "list").write_text(text)
        return open_collection(tmp_path / "list").fingerprint(missing)

    first = now()
    assert now() == now(missing=True) == first
    found = {first, now("b.png 2\na.png 1\n"), now("a.png 1\nb.png 3\n"), now("a.png\t1\t0\nb.png\t2\n")}
    image(tmp_path / "b.png", 9)
    found.add(now())
    os.unlink(tmp_path / "b.png")
    found.add(now(missing=True))
    assert len(found) == 6


def test_base64_parts(tmp_path):
    lines = [line(grey, 100 + grey, tmp_path) for grey in range(4)]
    path = parts_of(tmp_path, lines[:1], lines[1:3], [lines[3].rstrip(b"\n")], names=["a b", "人", "c"])
    for given in (path, tmp_path):
        images = open_collection(given)
        assert isinstance(images, Base64Parts) and images.source == str(tmp_path)
        assert said(images) == [("a b:1", "100", ""), ("人:1", "101", ""), ("人:2", "102", ""), ("c:1", "103", "")]
        assert greys(images) == [0, 1, 2, 3]
    before = images.fingerprint()
    (tmp_path / "c").write_bytes(lines[0])
    with pytest.raises(DataError, match="c: the part changed"):
        images.pixels(3, SHAPE)
    assert open_collection(path).fingerprint() != before


def test_the_parts_of_a_split_are_a_collection(base64_glyphs):
    images = open_collection(base64_glyphs)
    assert images.name(0) == "base64_rank_0:1" and images.num_images == 96


@pytest.mark.parametrize(
    "damage, words, identity",
    [
        (lambda line: b"!" + line[1:], "a character that is not base64", "1"),
        (lambda line: line[1:], "", "1"),
        (lambda line: b"bm8gaW1hZ2U=\t5\n", "cannot decode the image", "5"),
        (lambda line: b"\n", "blank line", ""),
        (lambda line: line.replace(b"\t1", b""), "no tab", ""),
        (lambda line: line.replace(b"\t1", b"\tx"), "the label is not a number", ""),
        (lambda line: line.replace(b"\n", b"\r\n"), "Windows line end", ""),
    ],
    ids=["alphabet", "cut", "no image", "blank", "no label", "label", "Windows"],
)
@pytest.mark.parametrize("place", [0, 1], ids=["first line", "second line"])
def test_a_damaged_line_is_named_and_the_others_are_read(place, damage, words, identity, tmp_path):
    lines = [line(grey, 1, tmp_path) for grey in (5, 6, 7)]
    lines[place] = damage(lines[place])
    images = open_collection(parts_of(tmp_path, lines))
    with pytest.raises(DataError, match=f"part0:{place + 1}: .*{words}") as caught:
        images.pixels(place, SHAPE)
    assert "\n" not in str(caught.value)
    assert images.identity(place) == identity and images.identity(2) == "1"
    assert images.pixels(2, SHAPE).max() == 7


def test_bad_lists_of_parts_are_refused(tmp_path):
    path = parts_of(tmp_path, [line(1, 1, tmp_path)])
    path.write_text("part0\ngone\n")
    with pytest.raises(DataError, match="file_list.txt:2: cannot read part 'gone'"):
        open_collection(path)
    path.write_text("part0\r\n")
    with pytest.raises(DataError, match="file_list.txt:1: Windows line end"):
        open_collection(path)


def test_an_image_that_is_an_empty_file_does_not_make_a_list_one_of_parts(tmp_path):
    (tmp_path / "a.png").touch()
    image(tmp_path / "b.png")
    (tmp_path / "list").write_text("a.png\nb.png\n")
    assert isinstance(open_collection(tmp_path / "list"), ImageFiles)


def test_arrays_hold_each_image_once():
    pixels = np.arange(3, dtype=np.uint8).repeat(16 * 16 * 3).reshape(3, 16, 16, 3)
    images = ArrayImages("lfw", pixels[[2, 0, 2, 1, 0]])
    assert images.rows.tolist() == [0, 1, 0, 2, 1] and greys(images) == [2, 0, 1]
    assert [images.name(i) for i in range(3)] == ["image 0", "image 1", "image 3"]
    assert images.where(2) == "lfw: image 3"
    assert images.fingerprint() != ArrayImages("lfw", pixels).fingerprint()
