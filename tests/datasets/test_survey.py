"""`plsc data info` says of every kind of data what it holds, and what is damaged."""

import base64
import json
import os

import numpy as np
import pytest
from made_images import encode

from plsc import cli
from plsc.datasets import survey
from plsc.datasets.opening import open_data


@pytest.fixture
def folder(tmp_path):
    """Images of classes 0 (1 image), 2 (3 images) and 3 (5 images), of which two are damaged."""
    lines, parts = [], []
    for i, label in enumerate([0, 2, 2, 2, 3, 3, 3, 3, 3]):
        data = encode(np.full((4 + i, 8, 3), i, np.uint8), "PNG" if i % 2 else "JPEG")
        data = b"no image" if i in (4, 7) else data
        (tmp_path / f"{i}.x").write_bytes(data)
        lines.append(f"{i}.x {label}\n")
        parts.append(base64.b64encode(data) + b"\t%d\n" % label)
    (tmp_path / "label.txt").write_text("".join(lines))
    (tmp_path / "part 1").write_bytes(b"".join(parts[:4]))
    (tmp_path / "part 2").write_bytes(b"".join(parts[4:]).rstrip(b"\n"))
    (tmp_path / "file_list.txt").write_text("part 1\npart 2\n")
    return tmp_path


@pytest.mark.parametrize("words, name", [([], "jpeg"), (["--format", "base64"], "base64 parts")])
def test_info_counts_images_classes_sizes_and_damage(folder, words, name, capsys):
    assert cli.main(["data", "info", str(folder), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["images"], found["classes"], found["used_classes"]) == (name, 9, 4, 3)
    assert found["images_per_class"] == {
        "smallest": {"class": "0", "images": 1},
        "largest": {"class": "3", "images": 5},
        "median": 3.0,
        "histogram": [{"from": k, "to": 2 * k - 1, "classes": 1} for k in (1, 2, 4)],
    }
    assert found["kinds"] == {"JPEG": 4, "PNG": 3} and found["width"] == [8, 8] and found["height"] == [4, 12]
    assert found["bytes"] == sum((folder / f"{i}.x").stat().st_size for i in range(9)) and found["examined"] == 9
    assert found["damaged"] == 2 and "not an image" in found["first_damaged"][0]

    assert cli.main(["data", "info", str(folder), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: {name}" and lines[1].startswith("images   9 (")
    assert lines[2] == "classes  4, of which 3 have images"
    assert lines[3] == "images per class: 1 (class 0) to 5 (class 3), median 3" and lines[4].endswith("# 1 class")
    assert lines[-5:-2] == ["kinds    JPEG 4, PNG 3", "pixels   8 wide, 4 to 12 high", "damaged  2"]


def test_some_images_are_examined_or_all_in_several_processes(folder, monkeypatch, capsys):
    monkeypatch.setattr(survey, "SAMPLE", 4)
    monkeypatch.setattr(survey, "_TASK", 2)
    monkeypatch.setattr(survey.threads, "cores", lambda: 3)
    records = {}
    for words in ([], ["--all"]):
        assert cli.main(["data", "info", str(folder), "--json", *words]) == 0
        records[bool(words)] = json.loads(capsys.readouterr().out)
    assert records[False]["examined"] == 4 and records[True]["examined"] == 9
    assert records[True]["damaged"] == 2 and records[True]["kinds"] == {"JPEG": 4, "PNG": 3}
    assert [one.partition(":")[2][0] for one in records[True]["first_damaged"]] == ["5", "8"]


@pytest.mark.parametrize(
    "change, place, says",
    [
        (lambda line: line.replace(b"\t", b" "), 1, "part 1:2: no tab"),
        (lambda line: line.replace(b"\t", b"\t-"), 6, "part 2:3: the label is negative"),
        (lambda line: b"\n", 0, "part 1:1: blank line"),
        (lambda line: line[:-1] + b"\r\n", 8, "part 2:5: Windows line end"),
        (lambda line: line[2:], 2, "part 1:3: the base64 has a wrong length"),
    ],
)
def test_a_damaged_line_of_base64_is_an_image_without_a_label(folder, change, place, says, capsys):
    name, first = ("part 1", 0) if place < 4 else ("part 2", 4)
    lines = (folder / name).read_bytes().splitlines(True)
    lines[place - first] = change(lines[place - first])
    (folder / name).write_bytes(b"".join(lines))
    _, records = open_data(str(folder / "file_list.txt"))
    assert records.num_images == 9 and records.labels()[place] == -1
    assert cli.main(["data", "info", str(folder / "file_list.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["damaged"] == 3 and any(says in one for one in found["first_damaged"])
    assert sum(one["classes"] for one in found["images_per_class"]["histogram"]) == found["used_classes"]


def test_lines_longer_than_a_read_and_reads_that_end_anywhere(folder, monkeypatch):
    from plsc.datasets import unsplit

    whole = open_data(str(folder), "base64")[1]
    expected = [whole.read(i) for i in range(9)]
    for chunk in (1, 7, 100, 5000):
        monkeypatch.setattr(unsplit, "_CHUNK", chunk)
        records = open_data(str(folder), "base64")[1]
        assert [records.read(i) for i in range(9)] == expected
        assert records.labels().tolist() == [label for _, label in expected]
    assert records.name(5) == "part 2:2" and records.where(5) == f"{folder}/part 2:2"


@pytest.mark.parametrize(
    "name, words",
    [
        ("empty", "empty: holds no training data, because the folder is empty; check the path"),
        ("deep", "deep: holds no training data, but 'a'; give one of these: base64"),
        ("flat", "flat: holds images, but not in a folder for each class"),
        ("flat/1.jpg", "1.jpg: is an image; name the folder that holds a folder of images for each class"),
        ("flta", "flta: holds no training data (no such file or folder); did you mean '{folder}/flat'?"),
        ("no/flat", "no/flat: holds no training data (no such file or folder); check the path"),
        ("broken", "broken: is a link to 'nowhere', which is missing; correct the link"),
        ("all.zip", "all.zip: is a zip archive; unpack it"),
        ("all.lst", "all.lst: is a list for MXNet's im2rec; name the .rec file"),
        ("lfw.bin", "lfw.bin: is no training data; a verification set belongs into set_val_targets"),
        ("all.pdf", "all.pdf: holds no training data; give one of these: base64"),
        ("-", "-: training data is not read from the standard input"),
        ("locked", "locked: cannot be listed (Permission denied); give this user the permission"),
    ],
)
@pytest.mark.parametrize("action", ["info", "check"])
def test_what_is_no_data_set_is_named_as_what_it_is(tmp_path, capsys, monkeypatch, name, words, action):
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep/a/b").mkdir(parents=True)
    for file in ("flat/1.jpg", "all.zip", "all.lst", "lfw.bin", "all.pdf", "locked/x"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "broken").symlink_to("nowhere")
    scandir, listdir = os.scandir, os.listdir

    def refusing(call):
        def listed(path="."):
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", path)
            return call(path)

        return listed

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", action, name]) == 1
    said = capsys.readouterr().err
    assert words.format(folder=tmp_path) in said and said.startswith("plsc: error: ") and said.count("\n") == 1
