"""Trainings whose class centres are kept in bfloat16: what they save, and where they may begin."""

import json
import logging
import shutil

import numpy as np
import paddle
import pytest
from glyph_sets import write_set
from train_glyphs import TinyNet

from plsc import Entry, cli
from plsc.checkpoint import HeadFiles, head_file, open_checkpoint
from plsc.errors import CheckpointError, ConfigError
from plsc.machine.bfloat16 import BFLOAT16, bfloat16_of, floats_of_bfloat16

OLD, NEW = [5, 2, 9, 0, 11, 3, 7], [3, 1, 11, 8, 0, 5]  # characters in the order of their numbers
KEPT = {0: 5, 2: 4, 4: 3, 5: 0}  # numbers of the characters that both have


def entry(data, save_dir=None, optimizer=None, **settings):
    settings = {"image_shape": [3, 32, 32], "emb_dim": 15, "train_batch_size": 16, "with_test": False, **settings}
    settings = {"num_classes": "auto", "train_epochs": 1, "augmentation": {"mirror": False}, **settings}
    if optimizer is None:
        settings = {"lr": 0.5, **settings}
    ins = Entry(settings={"dataset_dir": str(data), "head_dtype": "bfloat16", **settings})
    paddle.seed(0)
    model = TinyNet(norm=False)
    model.fc = paddle.nn.Linear(8 * 8 * 8, 15)
    ins.set_model(model)
    if optimizer is not None:
        ins.set_optimizer(optimizer)
    ins.set_model_save_dir(None if save_dir is None else str(save_dir))
    return ins


@pytest.fixture(scope="module")
def places(glyphs, tmp_path_factory):
    """The data sets, and a checkpoint of the first of them in either type."""
    base = tmp_path_factory.mktemp("types")
    write_set(base / "old", glyphs, OLD)
    write_set(base / "new", glyphs, NEW)
    for kind in ("float32", "bfloat16"):
        entry(base / "old", base / kind, head_dtype=kind).train()
    return base


def read(folder, name="weight"):
    """Returns a matrix of the head in float32, and whether it is stored in bfloat16."""
    found = open_checkpoint(folder)
    with HeadFiles(found) as files:
        rows = np.concatenate([part.copy() for part in files.rows(name, 0, found.meta["num_classes"])])
        return rows, files.dtype(name) == BFLOAT16


def nearest(values):
    return floats_of_bfloat16(bfloat16_of(values))


def test_centres_and_momentum_are_saved_in_two_bytes_and_the_type_can_be_changed(places, tmp_path, caplog, capsys):
    for kind in ("float32", "bfloat16"):
        for name in ("weight", "weight/velocity"):
            assert read(places / kind / "0", name)[1] == (kind == "bfloat16")
        assert open_checkpoint(places / kind / "0").meta["head_dtype"] == kind
    caplog.set_level(logging.INFO)
    shutil.copytree(places / "bfloat16", tmp_path / "run")
    again = entry(places / "old", tmp_path / "run", head_dtype="float32", resume=True, train_epochs=2)
    with pytest.raises(CheckpointError, match="in bfloat16, and set_head_dtype says float32"):
        again.train()
    words = ["convert-checkpoint", str(tmp_path / "run" / "0"), str(tmp_path / "other" / "0"), "--head-dtype"]
    assert cli.main([*words, "float32"]) == 0
    for name in ("weight", "weight/velocity"):
        wide, narrow = read(tmp_path / "other" / "0", name), read(places / "bfloat16" / "0", name)
        np.testing.assert_array_equal(wide[0], narrow[0])
        assert (wide[1], narrow[1]) == (False, True)
    back = [words[0], str(tmp_path / "other" / "0"), str(tmp_path / "back"), "--ranks", "1", "--head-dtype", "bfloat16"]
    assert cli.main(back) == 0
    assert (tmp_path / "back" / head_file(0)).read_bytes() == (places / "bfloat16" / "0" / head_file(0)).read_bytes()
    entry(places / "old", tmp_path / "other", head_dtype="float32", resume=True, train_epochs=2).train()
    assert "resumed from" in caplog.text and not read(tmp_path / "other" / "1")[1]
    with pytest.raises(SystemExit):
        cli.main(words[:3])
    assert "--ranks or --head-dtype" in capsys.readouterr().err


@pytest.mark.parametrize("init", ["checkpoint", "keep-common", "by-name", "from-embeddings"])
def test_a_warm_start_from_float32_is_rounded_to_the_nearest(init, places, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    is_new = init not in ("checkpoint", "keep-common")
    settings = {"checkpoint_dir": str(places / "float32" / "0"), "head_init": init, "lr": 1e-30}
    entry(places / ("new" if is_new else "old"), tmp_path / "begun", **settings).train()
    assert "class centres, in float32, are rounded to the nearest bfloat16" in caplog.text
    found, old = read(tmp_path / "begun" / "0")[0], nearest(read(places / "float32" / "0")[0])
    if not is_new:
        np.testing.assert_array_equal(found, old)
        return
    np.testing.assert_array_equal(found[list(KEPT)], old[list(KEPT.values())])
    assert found[[1, 3]].any(axis=1).all()


def test_every_command_reads_them(trained, glyphs, tmp_path, capsys):
    wide, narrow = trained / "output" / "0", tmp_path / "narrow"
    images = [str(path) for path in sorted(glyphs.glob("images/1/*.jpg"))[:3]]
    write_set(tmp_path / "more", glyphs, [1])
    words = ["convert-checkpoint", str(wide), str(narrow), "--head-dtype", "bfloat16"]
    assert cli.main(words) == 0
    answers = []
    for folder in (wide, narrow):
        capsys.readouterr()
        assert cli.main(["classify", "--checkpoint", str(folder), *images, "--top", "1", "--json"]) == 0
        answers.append([one["classes"][0]["number"] for one in json.loads(capsys.readouterr().out)])
        assert (
            cli.main(["add-classes", str(folder), str(tmp_path / "more"), str(tmp_path / f"more-{folder.name}")]) == 0
        )
    assert answers[0] == answers[1]
    (rows, is_narrow), (exact, _) = read(tmp_path / "more-narrow"), read(tmp_path / "more-0")
    assert is_narrow and open_checkpoint(tmp_path / "more-narrow").meta["head_dtype"] == "bfloat16"
    np.testing.assert_allclose(rows, exact, rtol=1 / 256, atol=1e-4)


@pytest.mark.parametrize(
    "optimizer, attr",
    [
        (lambda parameters: paddle.optimizer.Rprop(parameters=parameters), None),
        (lambda parameters: paddle.optimizer.Lamb(parameters=parameters), None),
        (None, paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(0.1))),
    ],
)
def test_what_cannot_move_or_make_them_is_refused(optimizer, attr, places):
    ins = entry(places / "old", optimizer=optimizer)
    if attr is not None:
        ins.set_distfc_attr(attr)
    with pytest.raises(ConfigError, match=r"set_head_dtype\('bfloat16'\)"):
        ins.train()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adagrad", "RMSProp", "Lion"])
def test_optimizers_that_move_each_element_by_itself_move_them(name, places, tmp_path, recwarn):
    from plsc import optim

    kind = getattr(paddle.optimizer, name, None) or getattr(optim, name)
    result = entry(
        places / "old",
        tmp_path / "run",
        lambda parameters: kind(learning_rate=1e-3, parameters=parameters),
        train_epochs=2,
    ).train()
    assert np.isfinite(result["loss"]) and read(tmp_path / "run" / "1")[1]
    assert not [one for one in recwarn if "FP16" in str(one.message)]
    assert json.loads((tmp_path / "run" / "1" / "meta.json").read_text())["head_dtype"] == "bfloat16"
