import argparse
import json

import pytest
from ranks import run_plsc

from plsc import Entry, settings
from plsc.config import Config
from plsc.errors import ConfigError


def read(*arguments):
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    return settings.read_options(parser.parse_args(arguments))


def test_every_setting_has_a_setter_that_sets_it_and_a_field():
    for name, setter in settings.SETTERS.items():
        assert callable(getattr(Entry, setter)) and hasattr(Config(), name), name


def test_options_win_over_the_file_and_over_the_script(tmp_path, monkeypatch):
    file = tmp_path / "small.yaml"
    file.write_text(
        "train_batch_size: 8\nimage_shape: [3, 32, 32]\nmixed_precision: {use_fp16: true, simulate: true}\n"
    )
    chosen = read("--config", str(file), "--set", "train_batch_size=16", "--set", "model_save_dir=", "--set", "lr=1e-3")
    assert chosen["train_batch_size"] == 16 and chosen["lr"] == 1e-3
    for name, value in settings.to_environment(chosen).items():
        monkeypatch.setenv(name, value)
    ins = Entry()
    ins.set_train_batch_size(128)
    ins.set_image_shape((3, 112, 112))
    ins.set_test_batch_size(5)
    config = ins._prepare()
    assert ins.train_batch_size == 16 and ins.test_batch_size == 5
    assert config.image_shape == (3, 32, 32) and config.mixed_precision.simulate and config.model_save_dir == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "batch"], "expected NAME=VALUE"),
        (["--set", "train_batchsize=3"], "did you mean 'train_batch_size'"),
        (["--set", "colour=3"], "the settings are train_batch_size, "),
        (["--set", "image_shape=[3"], "not YAML"),
        (["--config", "nowhere.yaml"], "cannot be read"),
    ],
)
def test_what_is_no_setting_is_said(arguments, words):
    with pytest.raises(ConfigError, match=words):
        read(*arguments)


@pytest.mark.parametrize(
    "content, words", [("- 1\n", "name: value"), ("classes: 3\n", "num_classes"), ("a: [", "YAML")]
)
def test_a_bad_file_is_said(tmp_path, content, words):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read("--config", str(tmp_path / "bad.yaml"))


def test_a_refused_value_ends_a_script_with_one_line(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("from plsc import Entry\nEntry()\n")
    process = run_plsc("run", "--set", "num_classes=-3", script)
    assert process.returncode == 1 and "set_class_num(-3): expected an integer" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("value", [{"use": True}, [True, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
def test_arguments_a_setter_does_not_have_are_said(monkeypatch, value):
    monkeypatch.setenv("PLSC_SETTINGS", json.dumps({"mixed_precision": value}))
    with pytest.raises(ConfigError, match="mixed_precision="):
        Entry()
