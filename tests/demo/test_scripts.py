"""The scripts of demo/, as a user starts them, at a small size."""

import json

import numpy as np
from killed_runs import same_tensors
from ranks import ROOT, run_plsc

SMALL = (
    "num_classes=12", "train_image_num=96", "train_batch_size=16", "train_epochs=1", "log_period=1", "emb_dim=16",
)  # fmt: skip


def run(script, data, output, *arguments, ranks=1, sizes=(), cwd=None):
    """Runs a script with the settings that suit the glyphs of the tests; returns its records and what it printed."""
    command = ["run", "--ranks", ranks, "--config", ROOT / "demo" / "glyphs.yaml"]
    place = [] if cwd else [f"model_save_dir={output}"]
    for text in (*SMALL, f"dataset_dir={data}", *place, *sizes):
        command += ["--set", text]
    process = run_plsc(*command, ROOT / "demo" / script, *arguments, folder=cwd)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return list(records), process.stdout + process.stderr


def test_custom_reader(glyphs, tmp_path):
    records, said = run(
        "custom_reader.py", glyphs, tmp_path, "--data_dir", glyphs, ranks=2, sizes=["model_name=GlyphNet"]
    )
    # As written, every rank reads every image, and float pixels are not normalised: both are said.
    assert "same first batch on several ranks" in said and "normalise" in said
    assert [record["step"] for record in records if record["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert "glyphs" in records[-1]


def test_custom_model(glyphs, tmp_path):
    records, _ = run(
        "custom_model.py",
        glyphs,
        tmp_path,
        ranks=2,
        sizes=["image_shape=[3, 16, 16]", "train_batch_size=48", "emb_dim=512"],
    )
    assert [record["event"] for record in records] == ["train", "test"] and np.isfinite(records[0]["loss"])
    meta = json.loads((tmp_path / "0" / "meta.json").read_text())
    assert meta["model"] == "ResNet" and meta["num_classes"] == 12 and meta["step"] == 1


def test_mixed_precision(glyphs, tmp_path):
    records, said = run("mixed_precision.py", glyphs, tmp_path, sizes=["model_name=GlyphNet", "emb_dim=16"])
    assert "precision" in said and all(record["loss_scaling"] == 1 for record in records if record["event"] == "train")


def test_early_stopping(glyphs, tmp_path):
    """Nothing is learnt at such a rate, so before long two tests in a row are no better than the best."""
    records, said = run(
        "early_stopping.py", glyphs, tmp_path, glyphs, sizes=["lr=1e-30", "train_epochs=9", "emb_dim=128"]
    )
    since = [record["since"] for record in records if record["event"] == "early_stopping"]
    assert since[-2:] == [1, 2] and len(since) < 9
    assert "glyphs: no better than" in said and not (tmp_path / str(len(since))).exists()


def test_hdfs_there_and_back(hdfs, glyphs, tmp_path):
    """The second script starts from what the first has uploaded."""
    hdfs.client().delete("/user/name/some_dir", recursive=True)
    address = hdfs.address.rsplit(":", 1)[0] + ":" + hdfs.web.rsplit(":", 1)[1]
    sizes = ["model_name=GlyphNet", "train_epochs=2", "with_test=false"]
    run("hdfs_upload.py", glyphs, tmp_path / "saved_model", address, ranks=2, sizes=sizes, cwd=tmp_path)
    assert hdfs.client().list("/user/name/some_dir") == ["0", "1"]
    _, said = run("hdfs_download.py", glyphs, tmp_path / "output", address, ranks=2, sizes=sizes, cwd=tmp_path)
    assert "weights from saved_model: backbone loaded; head loaded" in said
    assert same_tensors(tmp_path / "saved_model", tmp_path / "saved_model" / "1")
