import contextlib
import errno
import json
import os
import platform
import shutil
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from PIL import Image
from ranks import start

from plsc import Entry
from plsc.engine import resume
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.weights.safetensors_file import SafetensorsFile

BASE = ("train_epochs=3", "save_period=1", "log_period=2", "num_workers=2", "calc_acc=true")
FLOAT16 = 'mixed_precision=[true, 1e30, 2, 1, 2.0, 0.001, true, null, "float16", true]'  # overflows at first
PLATEAU = 'schedule=["plateau", 2.0, 0.0, 0, 0]'  # it follows the score of the tests
BFLOAT16 = 'head_dtype="bfloat16"'
PXK = 'sampler=["pxk", 4]'
TERMS = (
    "class_margins=[0.4, 0.3, 0.2, 0.1, 0.4, 0.3, 0.2, 0.1, 0.4, 0.3, 0.2, 0.1]",
    'class_weights="balanced"',
    "interclass_filter=0.3",
    "label_smoothing=0.1",
)
CASES = {
    "mirror, rotation, dropout, sampling": (
        1,
        7,
        [
            "augmentation=[true, 10, 0.1]",
            "--dropout=0.3",
            "sample_ratio=0.5",
            "loss_type=dist_adaface",
            "ema=0.9",
            *TERMS,
            BFLOAT16,
        ],
    ),
    "two ranks, loss scaling, dropout, bfloat16 centres": (2, 4, [FLOAT16, "--dropout=0.3", PXK, "ema=0.99", BFLOAT16]),
    "three ranks, AdamW, clipping, unfreezing, a teacher, sub-centres in bfloat16": (
        3,
        6,  # the second step after the unfreezing
        [
            "--optimizer=AdamW",
            "gradient_clip=0.5",
            "sub_centers=2",
            "train_batch_size=8",
            "ema=0.5",
            'trainable={"0": "fc.*", "1": "all"}',
            'teacher=["zoo:glyphs", 9.0, "relation"]',
            *TERMS,
            BFLOAT16,
        ],
    ),
    "base64, accumulation, a plateau, end of an epoch, a teacher": (
        1,
        9,
        [
            "gradient_accumulation=3",
            "--dropout=0.3",
            'sampler=["balanced"]',
            'teacher=["zoo:glyphs", 9.0, "relation", false]',
            "calc_acc=false",
            PLATEAU,
        ],
    ),
    "a reader that draws": (2, 9, ["--global-random-reader", "--dropout=0.3", "loss_type=dist_softmax"]),
    "base64, softmax on every rank, the last step": (2, 9, ["loss_type=softmax"]),
}


def tensors_of(folder):
    files = [SafetensorsFile(path) for path in sorted(folder.glob("*.safetensors"))]
    return {file.path.name: {name: file.read(name) for name in file.shapes} for file in files}


def records_of(output):
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in one.items() if key not in ("images_per_second", "time")} for one in records]


def assert_same_run(output, expected):
    """Checks that the last checkpoints are the same to the bit, and so is what was logged."""
    for name in ("2",):
        wanted, found = tensors_of(expected / name), tensors_of(output / name)
        assert wanted.keys() == found.keys()
        for file, tensors in wanted.items():
            assert tensors.keys() == found[file].keys()
            for key, value in tensors.items():
                np.testing.assert_array_equal(found[file][key], value, err_msg=f"{file}: {key}")
    # The metrics file holds speeds, so its size differs.
    metas = [json.loads((folder / "2" / "meta.json").read_text()) for folder in (output, expected)]
    assert all(meta["progress"].pop("metrics_size") > 0 for meta in metas)
    for key in (
        "progress",
        "callbacks",
        "schedule",
        "loss_scaling",
        "skipped_steps",
        "sampling_step",
        "test",
        "step",
        "sha256",
    ):
        assert metas[0][key] == metas[1][key], key
    assert records_of(output) == records_of(expected)


CORE = "two ranks, loss scaling, dropout, bfloat16 centres"  # the case that also runs on the oldest Paddle


assert CORE in CASES


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.core) if case == CORE else case for case in CASES]
)
def test_a_killed_run_resumes_to_the_last_bit(glyphs, base64_glyphs, tmp_path, case):
    ranks, step, options = CASES[case]
    data = base64_glyphs if "base64" in case else glyphs
    straight = start("train_glyphs.py", ranks, data, tmp_path / "straight", *BASE, *options)
    assert straight.returncode == 0, straight.stderr[-3000:]
    output = tmp_path / "killed"
    kill = (f"--kill-rank={ranks - 1}", f"--kill-step={step}")
    killed = start("train_glyphs.py", ranks, data, output, *BASE, *options, *kill, "resume=true")
    assert killed.returncode == 1 and "killed by signal 9" in killed.stderr
    resumed = start("train_glyphs.py", ranks, data, output, *BASE, *options, "resume=true")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resumed from" in resumed.stderr and "last bit" not in resumed.stderr
    assert_same_run(output, tmp_path / "straight")
    results = [json.loads((tmp_path / name / "result_0.json").read_text()) for name in ("straight", "killed")]
    for result in results:
        result.pop("images_per_second"), result.pop("checkpoint")
    assert results[0] == results[1]
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_a_finished_run_has_nothing_left_to_do(ranks, glyphs, tmp_path):
    first = ranks("train_glyphs.py", 1, glyphs, tmp_path, "resume=true", "with_test=false")
    assert "nothing to resume" in first.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    again = ranks("train_glyphs.py", 1, glyphs, tmp_path, "resume=true", "with_test=false")
    assert "all 2 epochs are done" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    more = ranks("train_glyphs.py", 1, glyphs, tmp_path, "resume=true", "with_test=false", "train_epochs=3")
    assert "epoch 2, step 0" in more.stderr and (tmp_path / "2" / "meta.json").exists()
    assert [record["step"] for record in records_of(tmp_path)] == [2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_the_newest_is_the_one_written_last(ranks, glyphs, tmp_path):
    """The second run in the folder has not come as far as the first."""
    options = ("with_test=false", "num_workers=0")
    ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "train_epochs=3", "save_period=4")
    ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "train_epochs=1", "seed=5")
    process = ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "train_epochs=2", "seed=5", "resume=true")
    assert (
        f"resumed from {tmp_path / '0'}: epoch 1, step 0; 6 steps" in process.stderr
        and "last bit" not in process.stderr
    )


def bytes_of(folder):
    """Returns the content of all tensor files below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("clock", [-3600, 86400])
def test_clocks_do_not_decide_which_checkpoint_is_the_newest(ranks, glyphs, tmp_path, clock):
    """A run is resumed on a machine with another clock; then a new run in the same folder begins with a third one."""
    options = ("with_test=false", "num_workers=0", "keep_checkpoints=2")

    def train(*more):
        return ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, *more).stderr

    train("train_epochs=2")
    train("train_epochs=3", "resume=true", f"--clock={clock}")
    assert sorted(path.parent.name for path in tmp_path.glob("*/meta.json")) == ["1", "2"]
    assert f"resumed from {tmp_path / '2'}: epoch 3, step 0; 18 steps" in train("train_epochs=3", "resume=true")
    train("train_epochs=1", "seed=5", f"--clock={-2 * abs(clock)}")
    for path in tmp_path.glob("*/meta.json"):
        os.utime(path.parent, (1.0, 1.0) if path.parent.name == "0" else None)  # as a copy may have it
    after = train("train_epochs=2", "seed=5", "resume=true")
    assert f"resumed from {tmp_path / '0'}: epoch 1, step 0; 6 steps" in after and "last bit" not in after


def test_checkpoints_of_earlier_versions_come_in_the_order_in_which_they_were_written(ranks, glyphs, tmp_path):
    options = ("with_test=false", "num_workers=0")
    ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "train_epochs=3", "save_period=4")
    for name, written in (("1", 3e9), ("0", 1e9), ("2", 2e9), ("step_4", 3e9), ("step_8", 2e9)):
        path = tmp_path / name / "meta.json"
        meta = json.loads(path.read_text())
        meta["written"] = written
        del meta["began"], meta["launches"]
        path.write_text(json.dumps(meta))
    again = ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "train_epochs=3", "resume=true")
    assert f"resumed from {tmp_path / '1'}: epoch 2, step 0; 12 steps" in again.stderr
    assert json.loads((tmp_path / "2" / "meta.json").read_text())["began"] == 3e9
    last = ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "train_epochs=3", "resume=true")
    assert f"resumed from {tmp_path / '2'}: epoch 3, step 0; 18 steps" in last.stderr


@pytest.mark.parametrize("lost", [0, 1])
def test_the_checkpoints_of_every_disk_count(ranks, glyphs, tmp_path, lost):
    """A rank that lacks the newest checkpoint does not decide alone, and one that lost all does not start afresh."""
    options = ("with_test=false", "num_workers=0", "--disks=[0,1]")
    ranks("train_glyphs.py", 2, glyphs, tmp_path, *options, "train_epochs=2")
    expected, disk, other = bytes_of(tmp_path), tmp_path / f"disk_{lost}", tmp_path / f"disk_{1 - lost}"
    shutil.rmtree(disk / "1")
    process = ranks("train_glyphs.py", 2, glyphs, tmp_path, *options, "train_epochs=2", "resume=true")
    assert f"rank {lost}: {disk / '1'}: is missing on {platform.node()}, but rank {1 - lost} has it" in process.stderr
    assert f"resumed from {tmp_path / 'disk_0' / '0'}: epoch 1, step 0" in process.stderr
    assert bytes_of(tmp_path) == expected, "the lost part of the last checkpoint was trained again"
    shutil.rmtree(disk)
    before = bytes_of(other)
    process = start("train_glyphs.py", 2, glyphs, tmp_path, *options, "train_epochs=3", "resume=true")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert f"rank {lost}: {disk / '1'}: is missing on {platform.node()}, but rank {1 - lost} has it" in last
    assert "nothing was changed" in last and bytes_of(other) == before and not bytes_of(disk)


@pytest.mark.parametrize("file", ["meta.json", "dist@head@rank@00001.safetensors"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(ranks, glyphs, tmp_path, file):
    options = ("train_epochs=2", "with_test=false", "save_period=1")
    ranks("train_glyphs.py", 2, glyphs, tmp_path / "run", *options)
    expected = tensors_of(tmp_path / "run" / "1")
    damaged = tmp_path / "run" / "1" / file
    content = bytearray(damaged.read_bytes())
    content[-30] ^= 1
    damaged.write_bytes(content) if file != "meta.json" else damaged.write_text("{")
    process = ranks("train_glyphs.py", 2, glyphs, tmp_path / "run", *options, "resume=true")
    assert f"{damaged}: " in process.stderr and "trying the checkpoint before" in process.stderr
    assert "resumed from" in process.stderr and "step_6" in process.stderr
    for name, tensors in expected.items():
        for key, value in tensors.items():
            np.testing.assert_array_equal(tensors_of(tmp_path / "run" / "1")[name][key], value)


def test_when_all_checkpoints_are_damaged_the_run_ends_and_changes_nothing(glyphs, tmp_path):
    start("train_glyphs.py", 1, glyphs, tmp_path, "with_test=false")
    for epoch in ("0", "1"):
        (tmp_path / epoch / "optimizer.safetensors").unlink()
    before = sorted(path.name for path in tmp_path.glob("*/*"))
    process = start("train_glyphs.py", 1, glyphs, tmp_path, "with_test=false", "resume=true")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "no checkpoint can be resumed" in process.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.glob("*/*")) == before


def test_resuming_with_other_settings_is_refused(glyphs, tmp_path):
    start("train_glyphs.py", 1, glyphs, tmp_path, "with_test=false")
    for option, words in (
        ("class_num=13", "num_classes 12, set_class_num says 13"),
        ("loss_type=dist_softmax", "no bias in it"),
        ("--optimizer=Adam", "only in the optimizer of this run"),
    ):
        process = start("train_glyphs.py", 1, glyphs, tmp_path, "with_test=false", "resume=true", option)
        assert process.returncode == 1 and words in process.stderr.splitlines()[-1], process.stderr[-2000:]


class Small(paddle.nn.Layer):
    """A network of one layer."""

    def __init__(self, detached=False):
        super().__init__()
        self.fc, self.detached = paddle.nn.Linear(768, 4), detached

    def forward(self, images):
        embedding = self.fc(images.flatten(1))
        return embedding.detach() if self.detached else embedding


def small(save_dir, model=None, **settings):
    """An entry that trains a small network for one epoch of two steps, in this process."""
    ins = Entry(settings={"num_classes": 3, "image_shape": [3, 16, 16], "emb_dim": 4, "with_test": False, **settings})
    ins.set_model(model or Small())
    ins.set_model_save_dir(str(save_dir))
    ins.set_train_epochs(1)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), dtype=np.uint8)
    ins.train_reader = [[(pixels[i], i % 3) for i in part] for part in ((0, 1, 2), (3, 4, 5))]
    return ins


def test_a_new_run_moves_an_earlier_one_aside_and_brings_it_back_if_it_saves_nothing(tmp_path, capsys):
    names = ["apple", "苹果", "pear"]
    small(tmp_path, class_names=names).train()
    assert (tmp_path / "classes.txt").read_text() == "apple\n苹果\npear\n"
    assert json.loads((tmp_path / "0" / "meta.json").read_text())["class_names"] == names
    (tmp_path / "notes.txt").touch()
    first = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "run.json", "0/meta.json")}

    with pytest.raises(ConfigError, match="Small: its embeddings carry no gradient, so fc.weight"):
        small(tmp_path, Small(detached=True)).train()
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
    assert not (tmp_path / "earlier_1").exists()
    assert f"the earlier run is in {tmp_path} again" in capsys.readouterr().err

    small(tmp_path).train()
    assert {name: (tmp_path / "earlier_1" / name).read_bytes() for name in first} == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0",
        "earlier_1",
        "metrics.jsonl",
        "notes.txt",
        "run.json",
    ]
    assert f"held an earlier run, with 1 checkpoint; it is now in {tmp_path}/earlier_1" in capsys.readouterr().err
    small(tmp_path).train()
    small(tmp_path, resume=True).train()
    assert (tmp_path / "earlier_2").is_dir() and not (tmp_path / "earlier_3").exists()


def earlier_run(folder):
    """Makes files like those of an earlier run; returns the paths and contents of all files in the folder."""
    for name in ("0/meta.json", "1/meta.json", "scalars/events.1", "metrics.jsonl", "a_pairs.npz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return contents_of(folder)


def contents_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_that_a_failed_run_has_begun_do_not_keep_the_earlier_ones_from_coming_back(tmp_path):
    first = earlier_run(tmp_path)
    with contextlib.ExitStack() as resources:
        resume._set_aside(tmp_path, SimpleNamespace(saved=[]), resources)
        (tmp_path / "scalars").mkdir()
        (tmp_path / "scalars" / "events.2").write_text("new")
        (tmp_path / "metrics.jsonl").write_text("new")
    assert contents_of(tmp_path) == {**first, "scalars/events.2": "new"}


def test_checkpoints_of_which_the_writer_does_not_know_stay_apart_from_the_earlier_ones(tmp_path):
    first = earlier_run(tmp_path)
    with contextlib.ExitStack() as resources:
        resume._set_aside(tmp_path, SimpleNamespace(saved=[]), resources)
        (tmp_path / "step_5").mkdir()
        (tmp_path / "step_5" / "meta.json").write_text("new")  # published as another rank failed
    assert contents_of(tmp_path / "earlier_1") == first


@pytest.mark.parametrize("moved", range(5))
def test_a_move_that_fails_leaves_the_earlier_run_where_it_was(tmp_path, monkeypatch, moved):
    first, rename, names = earlier_run(tmp_path), os.rename, []

    def fail(source, target):
        names.append(source.name)
        if len(names) > moved:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with contextlib.ExitStack() as resources, pytest.raises(ConfigError, match="cannot be moved to earlier_1"):
        resume._set_aside(tmp_path, SimpleNamespace(saved=[]), resources)
    assert contents_of(tmp_path) == first and not (tmp_path / "earlier_1").exists()
    assert not any(name.isdigit() for name in names[:3])  # checkpoints move last


def test_a_run_that_began_with_a_checkpoint_it_has_moved_aside_can_be_resumed(tmp_path):
    ins = small(tmp_path)
    ins.set_train_epochs(2)
    ins.train()
    small(tmp_path, checkpoint_dir=str(tmp_path / "1")).train()
    assert not (tmp_path / "1").exists()
    ins = small(tmp_path, checkpoint_dir=str(tmp_path / "1"), resume=True)
    ins.set_train_epochs(2)
    assert ins.train()["steps"] == 4


def test_a_resumed_run_keeps_the_names_of_its_classes(tmp_path):
    small(tmp_path, class_names=["a", "b", "c"]).train()
    ins = small(tmp_path, resume=True)
    ins.set_train_epochs(2)
    ins.train()
    assert json.loads((tmp_path / "1" / "meta.json").read_text())["class_names"] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="set_class_names gives 2 names for 3 classes"):
        small(tmp_path, class_names=["a", "b"]).train()
    with pytest.raises(ConfigError, match=r"set_class_num\('auto'\) cannot count the classes of a train_reader"):
        small(tmp_path, num_classes="auto").train()


def test_a_frozen_network_trains_its_head_alone(tmp_path):
    model = Small(detached=True)
    for parameter in model.parameters():
        parameter.stop_gradient = True
    assert small(tmp_path, model).train()["steps"] == 2


def test_a_seed_that_does_not_reach_a_network_is_reported_once(tmp_path, capsys):
    for drawn_with, words in ((3, 1), (5, 0)):
        paddle.seed(drawn_with)
        ins = small("", seed=5)
        ins.train()
        ins.train()
        assert capsys.readouterr().err.count("set_seed(5) does not reach the first weights of Small") == words


def test_classes_are_counted_for_a_training(tmp_path):
    for number in (0, 2):
        Image.new("RGB", (16, 16), (number * 90, 9, 9)).save(tmp_path / f"{number}.png")
    (tmp_path / "label.txt").write_text("0.png 0\n2.png 2\n")
    ins = small(tmp_path / "out", num_classes="auto", dataset_dir=str(tmp_path))
    ins.train_reader = None
    ins.train()
    assert json.loads((tmp_path / "out" / "0" / "meta.json").read_text())["num_classes"] == 3


def test_a_resumed_run_finds_its_classes_under_the_same_numbers(tmp_path, capsys):
    data, output = tmp_path / "data", tmp_path / "output"
    for name in ("ant/1.png", "bee/1.png", "cow/1.png", "cow/2.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (50, 0, 0)).save(data / name)

    def entry(**settings):
        ins = small(output, num_classes="auto", dataset_dir=str(data), **settings)
        ins.train_reader = None
        return ins

    entry().train()
    assert (output / "classes.txt").read_text() == "ant\nbee\ncow\n"
    assert json.loads((output / "0" / "meta.json").read_text())["class_names"] == ["ant", "bee", "cow"]
    (data / "bee").rename(data / "dog")  # one class is lost, and one is gained
    with pytest.raises(CheckpointError, match=r"class 1 was 'bee' in the run, and is .cow. in the data.*copy .*class"):
        entry(resume=True).train()
    shutil.copy(output / "classes.txt", data)
    with pytest.raises(DataError, match=r"dog: the class 'dog' is not in .*classes.txt"):
        entry(resume=True).train()
    (data / "dog").rename(tmp_path / "dog")
    resumed = entry(resume=True)
    resumed.set_train_epochs(2)
    assert resumed.train()["epochs"] == 2  # without the images of a class, but with the same numbers
    (data / "classes.txt").write_text("cow\nbee\nant\n")
    capsys.readouterr()
    entry(checkpoint_dir=str(output / "1")).train()
    assert "class 0 is 'ant' in the checkpoint and 'cow' in the data" in capsys.readouterr().err
