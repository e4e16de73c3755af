"""Whole runs on real processes, on glyph images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from ranks import HELPERS, ROOT, TIMEOUT, start
from safetensors.numpy import load_file
from train_glyphs import TinyNet

from plsc import Entry
from plsc.checkpoint import BACKBONE, head_file
from plsc.errors import ConfigError
from plsc.heads import Margin, Target
from plsc.models.base_model import BaseModel


def result_of(output, rank=0):
    return json.loads((output / f"result_{rank}.json").read_text())


def events(output, kind):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == kind]


@pytest.mark.parametrize("loss_type", [pytest.param("dist_arcface", marks=pytest.mark.core), "softmax"])
def test_two_ranks_train_test_and_save(ranks, glyphs, tmp_path, loss_type):
    process = ranks("train_glyphs.py", 2, glyphs, tmp_path, f"loss_type={loss_type}", "calc_acc=true")
    first, second = result_of(tmp_path), result_of(tmp_path, 1)
    assert first["steps"] == 6 and first["epochs"] == 2 and first["skipped_steps"] == 0
    assert first["test"] == second["test"] and first["loss"] == second["loss"]
    assert {"accuracy", "std", "tar@1e-3", "xnorm", "auc", "eer", "at_far"} < set(first["test"]["glyphs"])
    trained = events(tmp_path, "train")
    assert [record["step"] for record in trained] == [2, 4, 6]
    assert all(0 <= record["acc1"] <= record["acc5"] <= 1 for record in trained)
    assert len(events(tmp_path, "test")) == 2
    assert "12 classes" in process.stderr and "96 images" in process.stderr and "ETA" in process.stderr
    meta = json.loads((tmp_path / "1" / "meta.json").read_text())
    assert meta["num_classes"] == 12 and meta["ranks"] == 2
    shards = 2 if loss_type == "dist_arcface" else 1
    rows = [load_file(tmp_path / "1" / head_file(rank))["weight"] for rank in range(shards)]
    assert np.concatenate(rows).shape == (12, 16)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "loss_type",
    [
        pytest.param("dist_arcface", marks=pytest.mark.core),
        "arcface",
        "dist_softmax",
        "adaface",
        "dist_curricularface, a teacher",
    ],
)
def test_any_number_of_ranks_trains_the_same_weights_on_the_same_global_batch(ranks, glyphs, tmp_path, loss_type):
    weights, losses = [], []
    loss_type, _, teacher = loss_type.partition(", ")
    teacher = ['teacher=["zoo:glyphs", 20.0, "relation"]'] if teacher else []
    shards = 1 if not loss_type.startswith("dist_") else None
    for world, batch in ((1, 24), (2, 12), (3, 8)):
        output = tmp_path / str(world)
        ranks(
            "train_glyphs.py", world, glyphs, output, f"train_batch_size={batch}", "train_epochs=1", "log_period=1",
            "with_test=false", "--no-norm", "scale=8.0", f"loss_type={loss_type}", *teacher,
        )  # fmt: skip
        parts = [load_file(output / "0" / head_file(rank)) for rank in range(shards or world)]
        head = {
            f"head {name}": np.concatenate([part[name] for part in parts]) for name in ("weight", "weight/velocity")
        }
        weights.append({**load_file(output / "0" / BACKBONE), **head})
        losses.append([record["loss"] for record in events(output, "train")])
    assert len(losses[0]) == 4 and weights[0]["head weight"].shape == (12, 16)
    for other_weights, other_losses in zip(weights[1:], losses[1:]):
        np.testing.assert_allclose(other_losses, losses[0], rtol=1e-4)
        for name, value in weights[0].items():
            np.testing.assert_allclose(other_weights[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("options", [[], ["sample_ratio=0.9"], ["gradient_clip=0.5", "mixed_precision=[true, 64.0]"]])
def test_accumulated_batches_train_as_one_large_batch(ranks, glyphs, tmp_path, options):
    results = {}
    # 96 images: the last step of an epoch has fewer batches than the others, and its last batch fewer images.
    for name, world, batch, times in (("large", 1, 36, 1), ("one", 1, 9, 4), ("two", 2, 6, 3), ("three", 3, 4, 3)):
        if options and (name == "one") != ("sample_ratio=0.9" in options) and name != "large":
            continue  # sampling draws other classes on other ranks
        output = tmp_path / name
        process = ranks(
            "train_glyphs.py", world, glyphs, output, f"train_batch_size={batch}", f"gradient_accumulation={times}",
            "log_period=1", "with_test=false", "--no-norm", "scale=8.0", "lr=4.0", "calc_acc=true", *options,
        )  # fmt: skip
        assert "(36 in all), 3 steps per epoch" in process.stderr
        parts = [load_file(output / "1" / head_file(rank))["weight"] for rank in range(world)]
        weights = {**load_file(output / "1" / BACKBONE), "head": np.concatenate(parts)}
        results[name] = (events(output, "train"), weights)
    expected, weights = results.pop("large")
    assert [record["step"] for record in expected] == [1, 2, 3, 4, 5, 6]
    for name, (trained, other) in results.items():
        for key in ("loss", "lr", "acc1"):
            found, wanted = ([record[key] for record in records] for records in (trained, expected))
            np.testing.assert_allclose(found, wanted, rtol=1e-5, err_msg=f"{name}: {key}")
        for key, value in weights.items():
            np.testing.assert_allclose(other[key], value, rtol=1e-4, atol=1e-5, err_msg=f"{name}: {key}")


def test_accumulation_with_an_optimizer_that_needs_whole_gradients(glyphs):
    losses = []
    for batch, times in ((48, 1), (12, 4)):
        ins = small_entry(glyphs)
        ins.set_model(NormFree())
        ins.set_train_batch_size(batch)
        ins.set_gradient_accumulation(times)
        ins.set_train_epochs(2)
        ins.set_optimizer(lambda parameters: paddle.optimizer.Adam(1e-3, parameters=parameters))
        losses.append(ins.train()["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_bad_micro_batch_drops_the_whole_step(ranks, glyphs, tmp_path):
    # 6 batches a rank, 3 a step; the last batch of the second step is bad on one rank.
    ranks(
        "train_glyphs.py", 2, glyphs, tmp_path, "--poison-rank=1", "--poison-from=5", "--batches=6",
        "gradient_accumulation=3", "train_epochs=1", "log_period=1", "with_test=false",
    )  # fmt: skip
    assert [record["skipped_steps"] for record in events(tmp_path, "train")] == [0, 1]
    tensors = load_file(tmp_path / "0" / BACKBONE)
    assert all(np.isfinite(value).all() for value in tensors.values())


def test_a_checkpoint_of_two_ranks_starts_one_and_three(ranks, glyphs, tmp_path):
    ranks("train_glyphs.py", 2, glyphs, tmp_path / "first", "with_test=false", "train_epochs=1")
    source = tmp_path / "first" / "0"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    whole = np.concatenate([load_file(source / head_file(rank))["weight"] for rank in range(2)])
    for world in (1, 3):
        # A learning rate that changes nothing: what was loaded is what is saved.
        output = tmp_path / str(world)
        ranks(
            "train_glyphs.py", world, glyphs, output, f"checkpoint_dir={source}", "lr=1e-30", "with_test=false",
            "train_epochs=1",
        )  # fmt: skip
        rows = [load_file(output / "0" / head_file(rank))["weight"] for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(rows), whole)
    assert before == {path.name: path.read_bytes() for path in source.iterdir()}


def test_a_warm_start_with_other_classes_needs_set_head_init(ranks, glyphs, tmp_path):
    ranks("train_glyphs.py", 2, glyphs, tmp_path / "first", "with_test=false", "train_epochs=1")
    source = tmp_path / "first" / "0"
    options = (f"checkpoint_dir={source}", "class_num=15", "lr=1e-30", "with_test=false", "train_epochs=1")
    refused = start("train_glyphs.py", 2, glyphs, tmp_path / "refused", *options)
    assert refused.returncode == 1
    assert "num_classes 12, set_class_num says 15" in refused.stderr.splitlines()[-1]
    assert "set_head_init" in refused.stderr.splitlines()[-1]
    for init, words in (
        ("keep-common", "classes 0 to 11 loaded; head weight: classes 12 to 14 are fresh"),
        ("fresh", "head is fresh, 15 classes; the head of the checkpoint is ignored"),
    ):
        process = ranks("train_glyphs.py", 2, glyphs, tmp_path / init, *options, f"head_init={init}")
        assert f"weights from {source}: backbone loaded; " in process.stderr and words in process.stderr
        whole, old = (
            np.concatenate([load_file(folder / head_file(rank))["weight"] for rank in range(2)])
            for folder in (tmp_path / init / "0", source)
        )
        assert whole.shape == (15, 16) and np.array_equal(whole[:12], old) == (init == "keep-common")


def test_ranks_with_uneven_readers_all_finish(ranks, glyphs, tmp_path):
    ranks("train_glyphs.py", 3, glyphs, tmp_path, "--uneven", "with_test=false", "train_epochs=2")
    assert [result_of(tmp_path, rank)["steps"] for rank in range(3)] == [8, 8, 8]  # the longest reader has 4 batches


FLOAT16 = 'mixed_precision=[true, 128.0, 1000, 2, 2.0, 0.5, true, null, "float16", true]'  # simulated


@pytest.mark.parametrize(
    "poison",
    [
        ["--poison=nan"],
        ["--poison=1e6", FLOAT16],  # 1e6 is infinite in float16
        pytest.param(["--poison=gradient", FLOAT16], marks=pytest.mark.core),
    ],
)
def test_a_step_that_is_not_finite_on_one_rank_leaves_no_trace_on_any(ranks, glyphs, tmp_path, poison):
    saved = {}
    for name, batches in (("clean", 3), ("poisoned", 5)):  # the fourth and the fifth batch are bad
        output = tmp_path / name
        ranks(
            "train_glyphs.py", 3, glyphs, output, f"--batches={batches}", "--poison-rank=1", "--poison-from=3",
            "train_epochs=1", "with_test=false", "log_period=1", "loss_type=dist_adaface", *poison,
        )  # fmt: skip
        saved[name] = {path.name: load_file(path) for path in (output / "0").glob("*.safetensors")}
    clean, poisoned = (result_of(tmp_path / name) for name in ("clean", "poisoned"))
    assert (clean["skipped_steps"], poisoned["steps"], poisoned["skipped_steps"]) == (0, 5, 2)
    assert poisoned["loss"] == clean["loss"]
    trained = events(tmp_path / "poisoned", "train")
    assert [record["skipped_steps"] for record in trained] == [0, 0, 0, 1, 2]
    assert "loss" not in trained[-1]
    # backbone with BatchNorm's statistics, optimizer, three shards with momentum and state
    assert len(saved["clean"]) == 5
    for name, tensors in saved["clean"].items():
        for key, value in tensors.items():
            np.testing.assert_array_equal(saved["poisoned"][name][key], value, err_msg=f"{name}: {key}")
    scaling = json.loads((tmp_path / "poisoned" / "0" / "meta.json").read_text())["loss_scaling"]
    assert scaling == {"scale": 64.0 if FLOAT16 in poison else 1.0, "good_steps": 0, "bad_steps": 0}


def test_too_many_skipped_steps_end_every_rank_with_one_line(glyphs, tmp_path):
    bad = ("--poison-rank=1", "--poison-from=1", "--batches=9")
    process = start("train_glyphs.py", 3, glyphs, tmp_path, *bad, "max_skipped_steps=3", "with_test=false")
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert "step 4: 3 steps in a row" in last and "rank 1: its images are not finite" in last
    assert "Traceback" not in process.stderr and not (tmp_path / "0").exists()


@pytest.mark.parametrize("loss_type", ["dist_arcface", "softmax"])
def test_clipping_is_the_same_on_any_number_of_ranks(ranks, glyphs, tmp_path, loss_type):
    weights = {}
    for name, world, batch, clip in (
        ("one", 1, 24, 0.5),
        ("two", 2, 12, 0.5),
        ("three", 3, 8, 0.5),
        ("free", 1, 24, 1e6),
    ):
        output = tmp_path / name
        ranks(
            "train_glyphs.py", world, glyphs, output, f"train_batch_size={batch}", "train_epochs=1", "with_test=false",
            "--no-norm", "scale=8.0", f"gradient_clip={clip}", f"loss_type={loss_type}", "lr=20.0",
        )  # fmt: skip
        shards = world if loss_type.startswith("dist_") else 1
        parts = [load_file(output / "0" / head_file(rank))["weight"] for rank in range(shards)]
        weights[name] = {**load_file(output / "0" / BACKBONE), "head": np.concatenate(parts)}
    for name in ("two", "three"):
        for key, value in weights["one"].items():
            np.testing.assert_allclose(weights[name][key], value, rtol=1e-3, atol=1e-5, err_msg=f"{name}: {key}")
    assert any(np.abs(weights["free"][key] - value).max() > 1e-3 for key, value in weights["one"].items())


@pytest.mark.core
def test_an_overflow_on_one_rank_is_skipped_on_all_and_the_scale_recovers(ranks, glyphs, tmp_path):
    process = ranks(
        "train_glyphs.py", 3, glyphs, tmp_path,
        "mixed_precision=[true, 1e30, 4, 1, 2.0, 0.001, true, null, \"float16\", true]",
        "train_epochs=10", "with_test=false", "log_period=1", "train_batch_size=16", "--no-norm", "scale=8.0",
    )  # fmt: skip
    trained = events(tmp_path, "train")
    scales = [record["loss_scaling"] for record in trained]
    skipped = [record["skipped_steps"] for record in trained]
    assert scales[0] == 1e30 and 4 <= skipped[-1] < 15, "an oversized scale costs steps, and recovers"
    for before, after, count, next_count in zip(scales, scales[1:], skipped, skipped[1:]):
        assert after < before or next_count == skipped[-1] or count == next_count
    assert "simulated" in process.stderr and "scale" in process.stderr
    meta = json.loads((tmp_path / "9" / "meta.json").read_text())
    assert meta["skipped_steps"] == skipped[-1] and meta["loss_scaling"]["scale"] > 1
    assert trained[-1]["loss"] < trained[skipped[-1]]["loss"]


@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_a_loss_scale_that_is_a_power_of_two_changes_no_bit(ranks, glyphs, tmp_path, scale):
    saved = []
    for name, options in (("plain", []), ("scaled", [f"mixed_precision=[true, {scale}]"])):
        ranks("train_glyphs.py", 2, glyphs, tmp_path / name, "with_test=false", "train_epochs=1", *options)
        saved.append({path.name: load_file(path) for path in (tmp_path / name / "0").glob("*.safetensors")})
    for file, tensors in saved[0].items():
        for key, value in tensors.items():
            np.testing.assert_array_equal(saved[1][file][key], value)


@pytest.mark.parametrize("world", [1, 3])
def test_sampled_classes_train_and_save(ranks, glyphs, tmp_path, world):
    process = ranks(
        "train_glyphs.py", world, glyphs, tmp_path, "sample_ratio=0.5", "loss_type=dist_magface", "head_chunk=2"
    )
    assert "0.5 of them in each step" in process.stderr and "updates its rows in chunks" in process.stderr
    rows = [load_file(tmp_path / "1" / head_file(rank)) for rank in range(world)]
    assert all(np.isfinite(value).all() for part in rows for value in part.values())
    assert all(np.abs(part["weight/velocity"]).max() > 0 for part in rows)


def test_a_failing_rank_ends_all_and_its_error_is_last(glyphs, tmp_path):
    process = start("train_glyphs.py", 3, glyphs, tmp_path, "--fail-rank=1", "with_test=false")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == "RuntimeError: the reader broke here"
    assert "plsc: rank 1 ended with status 1" in process.stderr


def test_bad_labels_end_every_rank_with_one_line(glyphs, tmp_path):
    process = start("train_glyphs.py", 2, glyphs, tmp_path, "class_num=5", "with_test=false")
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert "label.txt:" in last and "set_class_num" in last
    assert "Traceback" not in process.stderr


@pytest.mark.core
def test_paddles_launcher_works(glyphs, tmp_path):
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    command += ["--log_dir", str(tmp_path / "log"), str(HELPERS / "train_glyphs.py"), str(glyphs), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    logs = "".join(path.read_text() for path in Path(tmp_path, "log").glob("workerlog.*"))
    assert process.returncode == 0, process.stderr[-2000:] + logs[-3000:]
    assert result_of(tmp_path)["test"] == result_of(tmp_path, 1)["test"]


class NormFree(BaseModel):
    """A network without BatchNorm that has the same weights each time."""

    def __init__(self):
        super().__init__()
        paddle.seed(0)
        self.fc = paddle.nn.Linear(3 * 32 * 32, 16)

    def build_network(self, input, label, is_train):
        return self.fc(input.flatten(1))


def small_entry(glyphs):
    ins = Entry()
    ins.set_dataset_dir(str(glyphs))
    ins.set_class_num(12)
    ins.set_image_shape((3, 32, 32))
    ins.set_train_batch_size(48)
    paddle.seed(0)
    ins.set_model(TinyNet())
    ins.set_emb_size(16)
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(None)
    return ins


def test_a_custom_margin(glyphs):
    class Squared(Margin):
        def target(self, cosine, norm, state):
            gap = 1.0 - cosine
            return Target(cosine - 0.2 * gap * gap, 1.0 + 0.4 * gap)

    ins = small_entry(glyphs)
    ins.set_loss_type(Squared())
    assert np.isfinite(ins.train()["loss"])
    ins.set_margin(0.3)
    with pytest.raises(ConfigError, match="dist_squared.*no such margin"):
        ins.train()


@pytest.mark.core
def test_an_optimizer_that_needs_whole_gradients_gets_them(glyphs):
    losses = {}
    for name, optimizer in {
        "sgd": lambda parameters: paddle.optimizer.SGD(0.1, parameters=parameters),
        "clipped": lambda parameters: paddle.optimizer.SGD(
            0.1, parameters=parameters, grad_clip=paddle.nn.ClipGradByGlobalNorm(1e9)
        ),
        "clipped one by one": lambda parameters: paddle.optimizer.SGD(
            0.1, parameters=parameters, grad_clip=paddle.nn.ClipGradByNorm(1e9)
        ),
        "adam": lambda parameters: paddle.optimizer.Adam(1e-3, parameters=parameters),
    }.items():
        ins = small_entry(glyphs)
        ins.set_train_epochs(2)
        ins.set_optimizer(optimizer)
        losses[name] = ins.train()["loss"]
    # Norms that clip nothing reach the same numbers in other ways.
    assert losses["clipped"] == pytest.approx(losses["sgd"], rel=1e-5)
    assert losses["clipped one by one"] == pytest.approx(losses["sgd"], rel=1e-5) and losses["adam"] != losses["sgd"]


def test_a_frozen_head_does_not_change(glyphs, tmp_path):
    ins = small_entry(glyphs)
    ins.set_model_save_dir(str(tmp_path))
    ins.set_distfc_attr(paddle.ParamAttr(trainable=False, initializer=paddle.nn.initializer.Constant(0.5)))
    ins.train()
    assert (load_file(tmp_path / "0" / head_file(0))["weight"] == 0.5).all()


def test_a_frozen_head_still_trains_its_bias(glyphs, tmp_path):
    ins = small_entry(glyphs)
    ins.set_model_save_dir(str(tmp_path))
    ins.set_loss_type("dist_softmax")
    ins.set_distfc_attr(paddle.ParamAttr(trainable=False))
    ins.train()
    assert np.abs(load_file(tmp_path / "0" / head_file(0))["bias"]).max() > 0


@pytest.mark.core
def test_a_frozen_backbone_trains_its_head(glyphs, tmp_path):
    losses = []
    for epochs in (1, 4):
        ins = small_entry(glyphs)
        model = NormFree()
        for parameter in model.parameters():
            parameter.stop_gradient = True
        ins.set_model(model)
        ins.set_loss_type("dist_softmax")
        ins.set_train_epochs(epochs)
        losses.append(ins.train()["loss"])
    assert losses[1] < losses[0]


@pytest.mark.core
def test_train_twice_then_test_in_one_process(few_glyphs, tmp_path):
    ins = small_entry(few_glyphs)
    ins.set_model_name("GlyphNet")
    ins.set_with_test(True)
    ins.set_model_save_dir(str(tmp_path))
    ins.set_val_targets("glyphs")
    first, second = ins.train(), ins.train()
    assert first["loss"] == second["loss"], "a second run starts from the beginning"
    tested = ins.test()
    assert tested == second["test"]
    other = Entry()
    for name, value in (("dataset_dir", str(few_glyphs)), ("image_shape", (3, 32, 32)), ("emb_size", 16)):
        getattr(other, f"set_{name}")(value)
    other.set_model_save_dir(None)
    other.set_val_targets("glyphs")
    other.set_model_name("GlyphNet")
    other.set_checkpoint_dir(second["checkpoint"])
    again, before = other.test()["glyphs"], tested["glyphs"]
    assert again.pop("at_far") == before.pop("at_far")
    assert again == pytest.approx(before, abs=1e-6)
