"""`plsc data split`: what it holds out, the pairs, and a training that uses both."""

import collections
import json
import logging
import shutil

import numpy as np
import paddle
import pytest
from train_glyphs import TinyNet, small_entry

from plsc import cli
from plsc.data.exclusion import leave_out, read_names
from plsc.data.pair_sets import read_pairs
from plsc.data.pixels import NEWEST
from plsc.data.records import Records
from plsc.data.sources import open_images
from plsc.datasets.split import Wanted, _choose_pairs
from plsc.datasets.split import split as split_records
from plsc.errors import DataError


def split(capsys, *arguments):
    """Returns what `plsc data split --json` prints."""
    assert cli.main(["data", "split", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["glyphs", "base64_glyphs"])
def test_a_network_trains_on_the_rest_and_is_tested_on_what_is_held_out(request, kind, tmp_path, capsys):
    data, output = request.getfixturevalue(kind), tmp_path / "out"
    before = files_of(data)
    made = split(capsys, data, output, "--held-out", 0.25, "--pairs", 40)
    assert made == {"output": str(output), "classes": 3, "images": 24, "pairs": 40, "left": 72, "classes_left": 9}
    assert files_of(data) == before
    whole, kept = open_images(str(data), 12, 0, 1), leave_out(open_images(str(data), 12, 0, 1), output / "exclude.txt")
    assert kept.num_images == 72 and kept.num_classes == 12 and len(set(kept.labels().tolist())) == 9
    held_out = [i for i in range(96) if whole.name(i) in {name for _, name in read_names(output / "exclude.txt")}]
    copied = sorted(content for path, content in files_of(output).items() if len(path.parts) == 3)
    assert copied == sorted(whole.read(i)[0] for i in held_out)
    assert not set(whole.labels()[held_out].tolist()) & set(kept.labels().tolist())

    ins = small_entry(str(data), "")
    ins.set_dataset_dir(str(data), exclude=str(output / "exclude.txt"))
    ins.set_class_num("auto")
    ins.set_val_targets(str(output / "held_out"))
    ins.set_model(TinyNet())
    ins.set_train_epochs(1)
    paddle.seed(0)
    result = ins.train()
    assert result["steps"] == 5 and 0 <= result["test"]["held_out"]["accuracy"] <= 1


def test_pairs_are_balanced_and_different_and_the_seed_decides(glyphs, tmp_path, capsys):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split(capsys, glyphs, tmp_path / name, "--held-out", 0.3, "--pairs", 60, "--seed", seed)
        orders.append((tmp_path / name / "held_out.txt").read_text())
    assert orders[0] == orders[1] != orders[2]
    pairs = read_pairs(tmp_path / "a" / "held_out.txt")
    assert len(pairs.pairs) == 60 and all(pairs.issame[k : k + 2].sum() == 1 for k in range(0, 60, 2))
    assert len({tuple(sorted(pair)) for pair in pairs.pairs.tolist()}) == 60
    for (one, other), same in zip(pairs.pairs, pairs.issame):
        classes = {pairs.images.name(int(i)).split("/")[1] for i in (one, other)}
        assert one != other and len(classes) == (1 if same else 2)


@pytest.mark.parametrize("sizes, pairs", [([2, 2], 2), ([3, 5, 1], 20), ([200, 2, 2, 2], 100), ([40] * 30, 6000)])
def test_pairs_of_any_sizes(sizes, pairs):
    found = _choose_pairs(sizes, Wanted(0.5, pairs, 0, NEWEST))
    of_class = np.repeat(np.arange(len(sizes)), sizes)
    assert len({frozenset(pair[:2]) for pair in found}) == len(found)
    assert all((of_class[one] == of_class[other]) == same and one != other for one, other, same in found)
    counts = collections.Counter(int(of_class[one]) for one, _, same in found if same)
    most = [n * (n - 1) // 2 for n in sizes]
    half = min(pairs // 2, sum(most), sum(sizes[i] * sum(sizes[i + 1 :]) for i in range(len(sizes))))
    assert sum(counts.values()) == len(found) // 2 == half
    # No class has two pairs more than another that could have more.
    assert all(counts[a] <= counts[b] + 1 or counts[b] == most[b] for a in counts for b in range(len(sizes)))


def test_damaged_images_are_no_part_of_the_test_and_earlier_lists_stay(glyphs, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(glyphs, data)
    for folder in (data / "images").iterdir():
        (folder / "0.jpg").write_bytes(b"")
    (tmp_path / "list").write_text("images/0/1.jpg\nimages/1/1.jpg")
    made = split(capsys, data, tmp_path / "out", "--held-out", 0.3, "--pairs", 40, "--exclude", tmp_path / "list")
    names = [name for _, name in read_names(tmp_path / "out" / "exclude.txt")]
    assert names[:2] == ["images/0/1.jpg", "images/1/1.jpg"] and len(names) == 2 + 94 - made["left"]
    assert made["images"] == 94 - made["left"] - 4
    assert read_pairs(tmp_path / "out" / "held_out.txt").images.num_images <= made["images"]


@pytest.mark.parametrize(
    "lines, arguments, words",
    [
        (["a.jpg 0"] * 8, [], "has 1 class, 1 of them with at least two images"),
        (["a.jpg 0", "a.jpg 1", "a.jpg 2", "a.jpg 3"], [], "0 of them with at least two images"),
        ([f"b.jpg {i % 4}" for i in range(8)], [], "too few images that can be decoded"),
        (["a.jpg 0"], ["{data}"], "exists; remove it, or name another"),
        ([f"a.jpg {i % 4}" for i in range(8)], ["{data}/no/where"], "cannot be written"),
        ([f"a.jpg {i % 4}" for i in range(8)], ["{data}/a,b"], "separates names by commas"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_folder(glyphs, tmp_path, capsys, lines, arguments, words):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(glyphs / "images/0/0.jpg", data / "a.jpg")
    (data / "b.jpg").write_bytes(b"damaged")
    (data / "label.txt").write_text("\n".join(lines))
    before = set(tmp_path.rglob("*"))
    output = [one.format(data=data) for one in arguments] or [str(tmp_path / "out")]
    assert cli.main(["data", "split", str(data), *output]) == 1
    assert words in capsys.readouterr().err.splitlines()[-1] and set(tmp_path.rglob("*")) == before


def test_classes_and_images_of_any_name_are_read_back(glyphs, tmp_path):
    names = (".x", "class_000000", "__MACOSX", "lost+found", "label.txt", "classes.txt", "a/b", "a.tar", "x" * 300, "y")
    whole = open_images(str(glyphs), 12, 0, 1)

    class Named(Records):
        class_names, num_images = (*names, "kept", "kept too"), 48
        name = staticmethod(lambda i: (f"{i}/.hidden.jpg", f"{i}/{'z' * 250}", f"a:{i}", f"@{i}\x7f.png")[i // 12])
        where = name
        read = staticmethod(lambda i: (whole.read(i)[0], i % 12))
        labels = staticmethod(lambda: np.arange(48) % 12)
        digests = dict

    made = split_records(
        Named(), tmp_path, tmp_path / "out", Wanted(0.83, 20, 3, NEWEST), advance=lambda done, total: None
    )
    assert made.classes == 10 and open_images(str(tmp_path / "out/held_out"), None, 0, 1).num_images == made.images
    assert made.images == 40 and read_pairs(tmp_path / "out/held_out.txt").images.num_images > 10


def test_an_image_that_no_list_can_name_is_refused(glyphs):
    from plsc.datasets import split as module

    class Tabbed:
        def name(self, i):
            return "a\tb"

    with pytest.raises(DataError, match="tab or line end"):
        module._write_list(Tabbed(), np.arange(1), None, None)


def test_many_pairs_are_counted_with_a_comma(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    _choose_pairs([24, 24, 24], Wanted(0.5, 100_000, 0, NEWEST))
    assert "make only 1,656 pairs;" in caplog.text


def test_an_interrupted_command_leaves_nothing(glyphs, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split_records(
            open_images(str(glyphs), 12, 0, 1), glyphs, tmp_path / "out", Wanted(0.3, 40, 0, NEWEST), interrupt
        )
    assert list(tmp_path.iterdir()) == []
