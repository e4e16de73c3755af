"""Numbers for TensorBoard and VisualDL, read back with their own libraries."""

import json
import shutil
import struct
from collections import defaultdict

import pytest
from train_glyphs import TinyNet, small_entry

from plsc import Callback
from plsc.engine import scalars
from plsc.errors import ConfigError


class BestLoss(Callback):
    def on_epoch_end(self, run):
        run.record("mine", step=run.progress.step, nested={"loss": run.progress.loss}, word="not a number")


def train(data, output, kind, directory=None, resume=False):
    ins = small_entry(str(data), str(output))
    ins.set_model(TinyNet())
    ins.set_calc_acc(True)
    ins.set_mixed_precision(True, init_loss_scaling=8.0)
    ins.set_save_period(4)
    ins.add_callback(BestLoss())
    ins.set_scalars(kind, directory)
    ins.set_resume(resume)
    return ins.train()


def tensorboard_points(folder):
    """Returns {tag: [(step, value)]} of all files in order, without what a viewer would drop."""
    from tensorboardX.proto.event_pb2 import Event

    points = defaultdict(list)
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                points[value.tag].append((event.step, value.simple_value))
            at += 16 + length
    return points


def visualdl_points(folder):
    from visualdl import LogReader

    (path,) = folder.iterdir()
    reader = LogReader(file_path=str(path))
    tags = reader.get_tags()["scalar"]
    return {tag: [(point.id, point.value) for point in reader.get_data("scalar", tag)] for tag in tags}


def recorded(output):
    """Returns the same of metrics.jsonl."""
    points = defaultdict(list)

    def add(path, step, values):
        for key, value in values.items():
            if isinstance(value, dict):
                add(f"{path}/{key}", step, value)
            elif not isinstance(value, str) and key not in ("step", "epoch", "time"):
                points[f"{path}/{key}"].append((step, pytest.approx(value, rel=1e-6)))

    for record in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()):
        add(record["event"], record["step"], record)
    return points


@pytest.mark.parametrize(
    ("kind", "points_of"),
    [("tensorboard", tensorboard_points), ("visualdl", visualdl_points)],
    ids=["tensorboard", "visualdl"],
)
def test_every_number_is_there_once_even_after_a_resume(kind, points_of, glyphs, tmp_path):
    output = tmp_path / "output"
    train(glyphs, output, kind)
    found = points_of(output / "scalars")
    assert found == recorded(output)
    assert [step for step, _ in found["train/loss"]] == [2, 4, 6, 8, 10, 12]
    assert {"train/lr", "train/images_per_second", "train/loss_scaling", "train/skipped_steps", "train/acc5"} < set(
        found
    )
    assert {"test/glyphs/accuracy", "test/glyphs/tar@1e-3", "mine/nested/loss"} < set(found)

    for name in ("step_8", "step_12", "1"):  # as if the run had died before
        shutil.rmtree(output / name)
    assert train(glyphs, output, kind, resume=True)["steps"] == 12
    assert points_of(output / "scalars") == recorded(output)
    assert [step for step, _ in points_of(output / "scalars")["test/glyphs/accuracy"]] == [6, 12]


def test_a_viewer_shows_the_run_that_started_last(glyphs, tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for _ in range(2):
        train(glyphs, tmp_path / "output", "tensorboard", str(tmp_path / "logs"))
    earlier, later = sorted((tmp_path / "logs").iterdir())
    data = later.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    start = Event.FromString(data[length + 28 : length + 28 + struct.unpack("<Q", data[length + 16 : length + 24])[0]])
    assert start.session_log.status == SessionLog.START and start.step == 1, "drops all points before"
    assert earlier.stat().st_size > 0


def test_what_cannot_work_is_reported_before_the_first_step(glyphs, tmp_path, monkeypatch):
    ins = small_entry(str(glyphs), "")
    with pytest.raises(ConfigError, match="expected one of tensorboard, visualdl"):
        ins.set_scalars("wandb")
    with pytest.raises(ConfigError, match="a folder of this machine"):
        ins.set_scalars("tensorboard", "s3://bucket")
    ins.set_scalars("tensorboard")
    with pytest.raises(ConfigError, match=r"set_scalars\('tensorboard'\), but set_model_save_dir is empty"):
        ins.train()
    ins.set_scalars(None)
    ins._config.check_combination()

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="set_scalars: .*file: cannot write there"):
        train(glyphs, tmp_path / "output", "tensorboard", str(tmp_path / "file"))
    assert not (tmp_path / "output" / "metrics.jsonl").read_text()

    monkeypatch.setitem(scalars.KINDS, "visualdl", "a_package_nobody_has")
    with pytest.raises(ConfigError, match=r"needs the package a_package_nobody_has: pip install '.\[visualdl\]'"):
        ins.set_scalars("visualdl")
