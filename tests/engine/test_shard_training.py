"""Training on tars, on real processes."""

import json
from pathlib import Path

import numpy as np

from plsc.data.label_file import read_label_file
from plsc.data.records import Record
from plsc.data.sampler import epoch_indices
from plsc.data.sources import open_images
from plsc.data.tar_shards import TarWriter

OPTIONS = ("train_epochs=1", "log_period=1", "num_workers=2", "with_test=false")


def losses(output):
    events = map(json.loads, (Path(output) / "metrics.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "train"]


def test_losses_are_those_of_the_same_images_in_the_same_order(ranks, glyphs, tmp_path):
    images = read_label_file(str(glyphs), 12)
    (tmp_path / "tars").mkdir()
    for part in range(2):
        writer = TarWriter(tmp_path / "tars" / f"train-{part}.tar", [f"glyph {i}" for i in range(12)])
        for i in range(part, images.num_images, 2):
            writer.add(Record(images.name(i), *images.read(i)))
        writer.close()

    source = open_images(str(tmp_path / "tars"), None, 0, 1)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "images").symlink_to(glyphs / "images")
    rows = np.empty(images.num_images, object)
    order = source.epoch_order(0, 0, 0, 1)
    for row, i in zip(epoch_indices(len(rows), 0, 0, 0, 1).tolist(), order.tolist()):
        assert source.read(i) == images.read(images.paths.index(source.name(i)))
        rows[row] = f"{source.name(i)} {source.labels()[i]}"
    (tmp_path / "list" / "label.txt").write_text("\n".join(rows))

    for name, folder in (("tars", "shards"), ("list", "files")):
        ranks("train_glyphs.py", 1, tmp_path / name, tmp_path / folder, *OPTIONS)
    found = losses(tmp_path / "shards")
    assert len(found) == 96 // 16 and found == losses(tmp_path / "files")
    meta = json.loads((tmp_path / "shards" / "0" / "meta.json").read_text())
    assert meta["class_names"] == [f"glyph {i}" for i in range(12)]
