"""`plsc data check` on glyphs that were spoilt in all ways that it finds."""

import json
import re
import shutil

import pytest
from PIL import Image

from plsc import cli
from plsc.data import exclusion, sources

SHAPE = "--set=image_shape=[3,32,32]"


def check(capsys, *arguments):
    """Returns the exit status, and what `plsc data check --json` prints."""
    status = cli.main(["data", "check", *map(str, arguments), SHAPE, "--json"])
    return status, json.loads(capsys.readouterr().out)


def names(found):
    return [one["name"] for one in found]


@pytest.fixture(scope="module")
def spoilt(glyphs, tmp_path_factory):
    """Glyphs with a fault of each kind."""
    folder = tmp_path_factory.mktemp("data") / "spoilt"
    shutil.copytree(glyphs, folder)
    images = folder / "images"
    (images / "0/0.jpg").write_bytes(b"<html>")
    (images / "0/1.jpg").unlink()
    for target in ("1/1.jpg", "1/2.jpg"):
        shutil.copy(images / "1/0.jpg", images / target)
    Image.open(images / "2/0.jpg").save(images / "3/0.jpg", "PNG")  # the same pixels in another file
    Image.open(images / "4/0.jpg").save(images / "5/0.jpg", quality=70)
    Image.open(images / "6/0.jpg").save(images / "6/1.jpg", quality=70)
    held_out = sorted(path for path in (folder / "held_out").rglob("*.jpg"))
    shutil.copy(held_out[0], images / "7/0.jpg")
    Image.open(held_out[1]).save(images / "8/0.jpg", quality=70)
    with open(folder / "label.txt", "a") as file:
        file.write("images/9/0.jpg 9\n")
    return folder


LEFT_OUT = ["0/0", "0/1", "1/1", "1/2", "2/0", "3/0", "7/0", "8/0"]


def test_each_fault_is_found_and_named(spoilt, tmp_path, capsys):
    status, found = check(capsys, spoilt, "--against", spoilt / "held_out", "--fix", tmp_path / "list", "--workers", 3)
    assert status == 1 and found["images"] == 97  # one has the name of a good image
    assert names(found["damaged"]) == ["images/0/0.jpg", "images/0/1.jpg"]
    assert "a web page" in found["damaged"][0]["reason"] and "No such file" in found["damaged"][1]["reason"]
    same = sorted(names(group) for group in found["same"])
    assert same == [
        ["images/1/0.jpg", "images/1/1.jpg", "images/1/2.jpg"],
        ["images/2/0.jpg", "images/3/0.jpg"],
        ["images/9/0.jpg", "images/9/0.jpg"],
    ]
    alike = [names(pair) for pair in found["alike"]]
    assert ["images/5/0.jpg", "images/4/0.jpg"] in alike and ["images/6/1.jpg", "images/6/0.jpg"] in alike
    assert sorted(names(found["in_tests"])) == ["images/7/0.jpg", "images/8/0.jpg"]
    assert {one["test"] for one in found["in_tests"]} == {str(spoilt / "held_out")}
    assert found["fix"] == {"list": str(tmp_path / "list"), "images": 8, "unnamed": 1}
    listed = sorted(name for _, name in exclusion.read_names(tmp_path / "list"))
    assert listed == [f"images/{name}.jpg" for name in LEFT_OUT]

    # Without the images on the list nothing is left to report but the second line of one image.
    status, found = check(capsys, spoilt, "--exclude", tmp_path / "list", "--against", spoilt / "held_out")
    assert found["images"] == 89 and not found["damaged"] and not found["in_tests"] and len(found["same"]) == 1
    lines = (spoilt / "label.txt").read_text().splitlines()
    assert len(lines) == 97  # nothing is changed


def test_the_text_gives_numbers_and_the_first_of_each_kind(spoilt, capsys):
    assert cli.main(["data", "check", str(spoilt), SHAPE, "--against", str(spoilt / "glyphs.bin")]) == 1
    said = capsys.readouterr().out
    assert "97 images checked" in said and "cannot be decoded: 2\n" in said and "inside a class: 3\n" in said
    assert re.search(
        r"images/2/0.jpg \(class 2 \('.*[A-Z]'\)\) = images/3/0.jpg \(class 3 \('.*[A-Z]'\)\)\n", said
    )  # with the classes' names


def test_data_without_faults_gives_status_0_and_an_empty_list_that_trains(glyphs, tmp_path, capsys):
    status, found = check(capsys, glyphs, "--against", glyphs / "glyphs.bin", "--fix", tmp_path / "list")
    assert status == 0 and found["same"] == found["damaged"] == found["in_tests"] == []
    assert (tmp_path / "list").read_bytes() == b""
    assert exclusion.leave_out(sources.open_images(str(glyphs), 12, 0, 1), tmp_path / "list").num_images == 96


def test_a_list_of_base64_data_names_lines(base64_glyphs, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(base64_glyphs, folder)
    part = folder / "base64_rank_1"
    lines = part.read_bytes().splitlines(keepends=True)
    lines[3] = b"!" + lines[3][1:]
    part.write_bytes(b"".join(lines))
    status, found = check(capsys, folder, "--fix", tmp_path / "list")
    assert status == 0 and names(found["damaged"]) == ["base64_rank_1:4"]
    kept = exclusion.leave_out(sources.open_images(str(folder), 12, 0, 1), tmp_path / "list")
    assert kept.num_images == 95 and all(kept.read(i) for i in range(95))


def test_the_list_and_the_format_of_the_settings_count_and_options_win_over_them(glyphs, tmp_path, capsys):
    (tmp_path / "a").write_text("images/0/0.jpg\n")
    (tmp_path / "b").write_text("images/0/0.jpg\nimages/1/0.jpg\n")
    config = tmp_path / "settings.yaml"
    config.write_text(f"dataset_dir: {{directory: elsewhere, exclude: {tmp_path / 'a'}}}\ndata_format: folder\n")
    for words, images in (
        ([], 96),
        (["--config", config, "--format", "jpeg"], 95),
        (["--config", config, "--set", "data_format=jpeg", "--exclude", tmp_path / "b"], 94),
        (["--set", "data_format=tar", "--format", "jpeg"], 96),
    ):
        assert check(capsys, glyphs, *words)[1]["images"] == images
    words = [
        "data",
        "split",
        str(glyphs),
        str(tmp_path / "out"),
        "--held-out=0.3",
        "--pairs=4",
        "--config",
        str(config),
    ]
    assert cli.main([*words, "--format=jpeg"]) == 0 and "images of 4 classes" in capsys.readouterr().out
    assert [name for _, name in exclusion.read_names(tmp_path / "out" / "exclude.txt")][0] == "images/0/0.jpg"
    for action in (["check"], ["split"]):
        words = ["data", *action, str(glyphs), *[str(tmp_path / "new")] * (action == ["split"])]
        assert cli.main([*words, "--set", "dataset_dir=zzz"]) == 2
        assert "SOURCE names the data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "action", [["info"], ["convert", "out", "--to=tar"], ["check"], ["split", "out"], ["check", "--against"]]
)
def test_an_address_with_a_password_is_refused_without_showing_it(action, glyphs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = "hdfs://me:pw@nn/d"
    words = [str(glyphs), *action[1:], address] if "--against" in action else [address, *action[1:]]
    assert cli.main(["data", action[0], *words]) == 1
    said = capsys.readouterr().err
    assert "error: address: the address holds a user or a password" in said and "pw" not in said
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 6])
def test_data_of_one_image_again_and_again(tmp_path, glyphs, capsys, count):
    for i in range(count):
        shutil.copy(glyphs / "images/0/0.jpg", tmp_path / f"{i}.jpg")
    (tmp_path / "label.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(count)))
    status, found = check(capsys, tmp_path, "--fix", tmp_path / "list")
    assert status == 0 and found["fix"]["images"] == count - 1 and len(found["same"]) == (count > 1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{glyphs}", "--fix", "{glyphs}/label.txt"], "label.txt exists; remove it, or name another"),
        (["{glyphs}", "--fix", "{tmp}/nowhere/list"], "nowhere/list: cannot be written"),
        (["{tmp}"], "holds no training data"),
        (["{glyphs}", "--against", "{tmp}/missing.bin"], "missing.bin: cannot read the verification set"),
        (["{glyphs}", "--exclude", "{tmp}/missing"], "missing: cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_file(glyphs, tmp_path, capsys, arguments, words):
    filled = [one.format(glyphs=glyphs, tmp=tmp_path) for one in arguments]
    assert cli.main(["data", "check", *filled, SHAPE]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0] and list(tmp_path.iterdir()) == []
