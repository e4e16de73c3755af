"""Training on data with damaged images, and without the images of a list."""

import json
import logging
import shutil

import numpy as np
import paddle
import pytest
from ranks import start
from train_glyphs import TinyNet, small_entry

from plsc.config import Config, DataCache
from plsc.engine import build
from plsc.engine.build import open_source
from plsc.engine.damaged import DamagedImages
from plsc.errors import DataError


@pytest.fixture
def damaged(glyphs, tmp_path):
    """The glyphs with an image that is cut off, one that is empty, and one that is missing; and their names."""
    folder = tmp_path / "data"
    shutil.copytree(glyphs, folder)
    names = [line.split()[0] for line in (folder / "label.txt").read_text().splitlines()][5::30][:3]
    for name, size in zip(names, (200, 0, None)):
        path = folder / name
        if size is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:size])
    return folder, names


def train(data, output, epochs=2, most=3, resume=False, exclude=None):
    """Returns what `train` returned and the weights."""
    ins = small_entry(str(data), str(output))
    ins.set_dataset_dir(str(data), exclude=exclude)
    paddle.seed(0)
    model = TinyNet(norm=False)
    ins.set_model(model)
    ins.set_train_epochs(epochs)
    ins.set_step_boundaries([100])
    ins.set_with_test(False)
    ins.set_skip_damaged(most)
    ins.set_resume(resume)
    return ins.train(), [one.numpy() for one in model.parameters()]


def listed(output):
    return [line.split("\t")[0] for line in (output / "damaged.txt").read_text().splitlines()]


def test_damaged_images_are_skipped_named_once_and_listed_also_over_a_resume(damaged, tmp_path, capsys):
    data, names = damaged
    whole, weights = train(data, tmp_path / "whole")
    assert whole["steps"] == 12 and sorted(listed(tmp_path / "whole")) == sorted(names)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "damaged image " in line]
    assert len(warnings) == 3 and "damaged image 3 of at most 3 is skipped: " in warnings[2]

    train(data, tmp_path / "half", epochs=1)
    (tmp_path / "half" / "damaged.txt").write_text("images/of/steps/after/the/checkpoint.jpg\n")
    capsys.readouterr()
    resumed, same = train(data, tmp_path / "half", resume=True)
    assert resumed["steps"] == 12 and all(np.array_equal(*pair) for pair in zip(weights, same))
    assert listed(tmp_path / "half") == listed(tmp_path / "whole")
    assert "damaged image " not in capsys.readouterr().err

    # The list leaves them out of another run.
    shutil.copy(tmp_path / "half" / "damaged.txt", tmp_path / "list.txt")
    result, _ = train(data, tmp_path / "rest", most=0, exclude=tmp_path / "list.txt")
    assert result["steps"] == 12 and not (tmp_path / "rest" / "damaged.txt").exists()
    record = json.loads((tmp_path / "rest" / "run.json").read_text())
    assert record["settings"]["exclude"] == str(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "most, words", [(0, "missing|cannot"), (2, r"set_skip_damaged\(2\): at least 3 images cannot")]
)
def test_one_damaged_image_too_many_ends_the_run(damaged, tmp_path, most, words):
    with pytest.raises(DataError, match=words):
        train(damaged[0], tmp_path / "run", most=most)


def test_ranks_count_together(damaged, tmp_path):
    data, names = damaged
    done = start("train_glyphs.py", 2, data, tmp_path / "end", "skip_damaged=2", "with_test=false")
    lines = [line for line in done.stderr.splitlines() if "set_skip_damaged(2): at least 3 images" in line]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("is skipped: ") == 2 and sorted(listed(tmp_path / "end")) == sorted(names)


def test_the_last_line_names_a_setting_that_takes_the_list(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    damaged = DamagedImages(3, tmp_path)
    damaged.load_state({"a.jpg": "is empty"})
    damaged.on_train_end(None)
    assert "damaged images that were skipped: 1; " in caplog.text and "damaged.txt lists them" in caplog.text
    assert "set_dataset_dir(exclude=...)" in caplog.text


def test_remote_data_is_drawn_by_classes_without_the_images_of_a_list(base64_glyphs, tmp_path):
    (tmp_path / "list").write_text("base64_rank_0:1\n")
    shared = {"num_classes": 12, "sampler": "balanced", "exclude": str(tmp_path / "list")}
    remote = Config(
        dataset_dir=f"file://{base64_glyphs}", data_cache=DataCache(str(tmp_path / "cache"), 10**9), **shared
    )
    remote.check_combination()
    sources = [open_source(config) for config in (remote, Config(dataset_dir=str(base64_glyphs), **shared))]
    orders = [one.epoch_order(0, 0, 0, 1).tolist() for one in sources]
    assert orders[0] == orders[1] and len(sources[0].labels()) == 95
    assert [sources[0].read(i) for i in orders[0][:9]] == [sources[1].read(i) for i in orders[0][:9]]
    sources[0].close()
    assert not list((tmp_path / "cache").glob("plsc_claims/*"))


def test_only_rank_0_compares_the_names_of_all_images_with_a_list(monkeypatch):
    class Source:
        num_images = 9  # and no names

    monkeypatch.setattr(build.parallel, "from_rank_0", lambda find, what: np.array([2, 5]))
    assert build._left_out(Source(), "nowhere", Config()).tolist() == [2, 5]
