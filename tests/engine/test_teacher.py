import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file
from train_glyphs import TinyNet, small_entry

from plsc import Callback, Predictor
from plsc.checkpoint import BACKBONE, head_file
from plsc.engine.forecast import BackboneSize, OptimizerSize, forecast, workload_of
from plsc.errors import CheckpointError, ConfigError, DataError, TrainingError
from plsc.models import build_model
from plsc.search.embeddings import EmbeddingsWriter, open_embeddings


def entry(data, output, **settings):
    """An entry that trains a tiny network for one epoch of six steps, with the same random weights each time."""
    ins = small_entry(str(data), str(output))
    paddle.seed(0)
    ins.set_model(TinyNet(norm=False))
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_log_period(1)
    for name, value in {"scale": 8.0, "num_workers": 0, **settings}.items():
        getattr(ins, f"set_{name}")(value)
    return ins


def taught(data, output, *teacher, **settings):
    """Trains with a teacher; returns the records of the steps."""
    ins = entry(data, output, **settings)
    ins.set_teacher(*teacher)
    ins.train()
    return records(output)


def records(output):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == "train"]


def parts(trained, title="teacher"):
    return [one["losses"][title] for one in trained]


def weights(output, epoch="0"):
    return {**load_file(output / epoch / BACKBONE), **load_file(output / epoch / head_file(0))}


def folder_of(path, names, vectors, flip=False):
    writer = EmbeddingsWriter(path, {"count": len(names), "emb_dim": vectors.shape[1], "flip": flip, "images": "1"})
    writer.append(vectors)
    writer.finish((name, "") for name in names)
    writer.close()
    return str(path)


@pytest.fixture(scope="module")
def known(glyphs, tmp_path_factory):
    """A folder of random embeddings of the size of the tiny network, which needs no network to be made."""
    names = [line.split()[0] for line in (glyphs / "label.txt").read_text().splitlines()]
    vectors = np.random.default_rng(0).normal(size=(len(names), 16)).astype("float32")
    return folder_of(tmp_path_factory.mktemp("teacher") / "known", names[::-1], vectors[::-1])


@pytest.mark.core
def test_all_kinds_of_sources_teach_the_same(glyphs, trained, tmp_path):
    """Among them embeddings that predict wrote, which must be found by image for the losses to agree."""
    layer = build_model("MobileFaceNet", 32, (3, 32, 32))
    layer.set_state_dict({n: paddle.to_tensor(v) for n, v in load_file(trained / "output" / "0" / BACKBONE).items()})
    modes = [one.training for one in layer.sublayers(include_self=True)]
    names = [line.split()[0] for line in (glyphs / "label.txt").read_text().splitlines()]
    vectors = Predictor(trained / "net").embed([glyphs / name for name in names])
    sources = {
        "checkpoint": str(trained / "output" / "0"),
        "export": str(trained / "net"),
        "layer": layer,
        "embeddings": folder_of(tmp_path / "known", names, vectors),
    }
    found = {}
    for kind, source in sources.items():
        found[kind] = taught(glyphs, tmp_path / kind, source, 5.0, "relation")
        meta = json.loads((tmp_path / kind / "0" / "meta.json").read_text())
        assert meta["teaching"] == "relation, weight 5, with the head" and len(meta["teacher"]) == 16
    assert modes == [one.training for one in layer.sublayers(include_self=True)]
    assert all(one.grad is None for one in layer.parameters())
    expected = found.pop("checkpoint")
    for kind, trained_by in found.items():
        for title in ("head", "teacher"):
            np.testing.assert_allclose(parts(trained_by, title), parts(expected, title), rtol=1e-4, err_msg=kind)
    for one in expected:
        assert one["loss"] == pytest.approx(one["losses"]["head"] + 5.0 * one["losses"]["teacher"])
    run = json.loads((tmp_path / "layer" / "run.json").read_text())
    assert run["settings"]["teacher"]["source"] == "MobileFaceNet"


def test_a_student_begins_as_without_a_teacher_and_learns_from_it(glyphs, known, tmp_path):
    alone = entry(glyphs, tmp_path / "alone", train_epochs=4)
    alone.train()
    trained = taught(glyphs, tmp_path / "taught", known, 30.0, train_epochs=4)
    assert records(tmp_path / "alone")[0]["loss"] == trained[0]["losses"]["head"]
    assert np.mean(parts(trained)[-3:]) < np.mean(parts(trained)[:3]) - 0.05


def test_without_the_head_only_the_backbone_moves(glyphs, known, tmp_path):
    class Watch(Callback):
        def on_train_begin(self, run):
            self.centres, self.conv = run.head.weight.numpy(), run.backbone.conv.weight.numpy()

    watch = Watch()
    ins = entry(glyphs, tmp_path)
    ins.add_callback(watch)
    ins.set_teacher(known, 30.0, head=False)
    ins.train()
    assert all(one["loss"] == pytest.approx(30.0 * one["losses"]["teacher"]) for one in records(tmp_path))
    assert "head" not in records(tmp_path)[0]["losses"]
    assert np.abs(weights(tmp_path)["conv.weight"] - watch.conv).max() > 1e-3
    np.testing.assert_array_equal(weights(tmp_path)["weight"], watch.centres)
    assert not weights(tmp_path)["weight/velocity"].any()


@pytest.mark.parametrize("optimizer", [None, "AdamW"])
def test_accumulated_batches_are_taught_as_one_large_batch(glyphs, known, tmp_path, optimizer):
    found = []
    for batch, times in ((32, 1), (8, 4)):
        ins = entry(glyphs, tmp_path / str(times), train_batch_size=batch, gradient_accumulation=times)
        ins.set_teacher(known, 30.0)
        if optimizer:
            ins.set_optimizer(lambda given: paddle.optimizer.AdamW(0.01, parameters=given))
        ins.train()
        found.append((parts(records(tmp_path / str(times))), weights(tmp_path / str(times))))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    for name, value in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_mixed_precision_scales_the_loss_of_the_teacher_too(glyphs, known, tmp_path):
    plain = taught(glyphs, tmp_path / "plain", known, 30.0)
    ins = entry(glyphs, tmp_path / "mixed")
    ins.set_mixed_precision(True, 1024.0, simulate=True)
    ins.set_teacher(known, 30.0)
    ins.train()
    np.testing.assert_allclose(parts(records(tmp_path / "mixed")), parts(plain), rtol=1e-2)


class Blind(paddle.nn.Layer):
    """A teacher whose embeddings are not finite from its second batch on."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def forward(self, images):
        self.batches += len(images) > 2  # the dry run has two images
        embedding = images.flatten(1)[:, :16]
        return embedding * float("nan") if self.batches > 1 else embedding


def test_a_step_without_a_finite_loss_of_the_teacher_is_skipped(glyphs, tmp_path):
    with pytest.raises(TrainingError, match="16 of 16 embeddings of the teacher are not finite"):
        taught(glyphs, tmp_path, Blind(), max_skipped_steps=3)
    assert [one["skipped_steps"] for one in records(tmp_path)] == [0, 1, 2, 3][: len(records(tmp_path))]


def test_a_resumed_run_keeps_its_teacher(glyphs, known, tmp_path, capsys):
    taught(glyphs, tmp_path, known, 30.0)
    more = {"resume": True, "train_epochs": 2}
    with pytest.raises(CheckpointError, match="the run had the teacher [0-9a-f]{16}, and set_teacher gives it no"):
        entry(glyphs, tmp_path, **more).train()
    made = open_embeddings(Path(known))
    again = folder_of(tmp_path / "again", made.names, made.vectors, flip=True)
    with pytest.raises(CheckpointError, match="restore the call and the teacher, or start a new run"):
        taught(glyphs, tmp_path, again, 30.0, **more)
    assert "last bit" not in capsys.readouterr().err
    assert len(taught(glyphs, tmp_path, known, 20.0, **more)) == 12
    assert "set_teacher was cosine, weight 30, with the head and is cosine, weight 20" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(glyphs, known, tmp_path):
    model = TinyNet()
    small = folder_of(tmp_path / "small", ["images/0/0.jpg"], np.ones((1, 16), "float32"))
    cases = [
        (("/nowhere",), {}, ConfigError, "holds no export, no checkpoint and no embeddings"),
        (("zoo:glyphs",), {}, ConfigError, "128 numbers and those of set_emb_size.16. do not; choose kind='relation'"),
        (("zoo:glyphs",), {"image_shape": (3, 40, 40)}, ConfigError, "takes images of shape .3, 32, 32., and"),
        ((small,), {}, DataError, "has no embeddings of 95 of 96 images of the data, such as 'images/0/1.jpg'"),
        ((known,), {"augmentation": True}, ConfigError, "plsc predict --flip, which averages both, or call"),
        ((model,), {"model": model}, ConfigError, "shares weights with the model of set_model"),
        ((known, 1.0, "cosine", False), {"calc_acc": True}, ConfigError, "the head is not computed, so"),
    ]
    names = [line.split()[0] for line in (glyphs / "label.txt").read_text().splitlines()]
    most = folder_of(tmp_path / "most", names[:-1], np.ones((len(names) - 1, 16), "float32"))
    uneven = tmp_path / "uneven"
    uneven.mkdir()
    (uneven / "images").symlink_to(glyphs / "images")
    (uneven / "label.txt").write_text("".join(f"{name} {int(k > 5)}\n" for k, name in enumerate(names)))
    for seed in (6, 7):  # whose first epoch does not draw the last image
        drawn = {"sampler": "balanced", "seed": seed, "dataset_dir": str(uneven)}
        cases.append(((most,), drawn, DataError, "has no embeddings of 1 of 96 images of the data"))
    for teacher, settings, kind, words in cases:
        with pytest.raises(kind, match=words):
            taught(glyphs, tmp_path / "output", *teacher, **settings)
    ins = entry(glyphs, tmp_path / "output")
    ins.train_reader = [[(np.zeros((3, 32, 32), "float32"), 0)]]
    ins.set_teacher(known)
    with pytest.raises(ConfigError, match="those of train_reader have none"):
        ins.train()
    with pytest.raises(ConfigError, match="expected the folder of an export"):
        ins.set_teacher(3)


def test_a_forecast_counts_the_weights_of_a_teacher(trained, known):
    ins = small_entry("data", "output")

    def made(source):
        ins.set_teacher(source)
        size, optimizer = BackboneSize(1, 1, 1), OptimizerSize("SGD", 0.0)
        return forecast(workload_of(ins._config, size, optimizer=optimizer, ranks=1, process=0, on_cpu=False))

    checkpoint, files = trained / "output" / "0", [trained / "net" / name for name in ("inference.pdiparams",)]
    expected = {
        None: 0,
        known: 0,
        paddle.nn.Linear(3, 5): 4 * 20,
        str(checkpoint): (checkpoint / BACKBONE).stat().st_size,
    }
    for source, size in expected.items():
        assert made(source).teacher == size and made(source).total == made(None).total + size
    assert made(str(trained / "net")).teacher >= sum(path.stat().st_size for path in files)
    assert not any("teacher" in line for line in made(None).lines()) and "  teacher 80 B: weights" in "".join(
        made(paddle.nn.Linear(3, 5)).lines()
    )
