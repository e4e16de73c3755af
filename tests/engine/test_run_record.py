"""The file `run.json`, which records the settings and the machine of a run."""

import json
import os

import pytest
from train_glyphs import TinyNet, small_entry

from plsc import Callback, Entry
from plsc.engine.run_record import write_run_record
from plsc.errors import ConfigError


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_records_its_settings_its_machine_and_how_often_it_was_resumed(glyphs, tmp_path):
    def train(epochs, resume):
        ins = small_entry(str(glyphs), str(tmp_path))
        ins.set_model(TinyNet())
        ins.add_callback(Callback())
        ins.set_train_epochs(epochs)
        ins.set_resume(resume)
        ins.train()
        return record_of(tmp_path)

    first = train(1, False)
    assert first["resumed"] == 0 and first["resumed_at"] is None and first["ranks"] == 1
    assert first["steps_per_epoch"] == 6
    settings, machine = first["settings"], first["machine"]
    assert settings["num_classes"] == 12 and settings["image_shape"] == [3, 32, 32]
    augmentation = settings["augmentation"]
    assert augmentation["mirror"] is False and augmentation["rotate"] == 0.0 and augmentation["blur"] == [0.0, 2.0]
    assert first["objects"] == {"model": "TinyNet", "callbacks": ["Callback"]}
    assert not set(settings) & {"model", "callbacks", "locked"}
    assert machine["cores"] >= 1 and machine["memory"] > 1e8 and machine["gpu"] is None
    assert all(machine[name] for name in ("system", "python", "paddle", "plsc"))

    second = train(2, True)
    third = train(3, True)
    assert (second["resumed"], third["resumed"]) == (1, 2)
    assert third["run"] == first["run"] and third["started"] == first["started"]
    afresh = train(1, False)
    assert afresh["resumed"] == 0 and afresh["run"] != first["run"]


def test_credentials_are_not_recorded(tmp_path):
    ins = Entry()
    ins.set_hdfs_info("hdfs://namenode:9000", "somebody,secret", "checkpoints")
    write_run_record(tmp_path, ins._config, "abc", True, None)
    text = (tmp_path / "run.json").read_text()
    assert "somebody" not in text and "secret" not in text and "fs_ugi" not in text
    assert json.loads(text)["settings"]["hdfs"] == {
        "fs_name": "hdfs://namenode:9000",
        "fs_dir_for_save": "checkpoints",
        "fs_checkpoint_dir": None,
        "auth": None,
        "keytab": None,
    }
    assert json.loads(text)["resumed"] == 1, "on a machine that does not know of earlier starts"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match="run.json: cannot write there .*set_model_save_dir"):
        write_run_record(tmp_path / "missing", Entry()._config, "abc", False, None)
