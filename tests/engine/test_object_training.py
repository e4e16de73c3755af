"""Training with S3: data from it, checkpoints to it, and machines that resume from it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from killed_runs import same_tensors
from ranks import ROOT, TIMEOUT, environment, popen_ranks, start

from plsc.checkpoint import remote
from plsc.datasets.conversion import Conversion, convert
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options
from plsc.storage import open_hdfs
from plsc.storage.transfer import put, tree

OPTIONS = (
    "with_test=false",
    "log_period=1",
    "train_epochs=2",
    "train_batch_size=2",
    "num_workers=0",
    "save_period=1",
    "keep_checkpoints=2",
    "resume=true",
    'data_format=["base64", "files"]',
)


def losses_of(output):
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if record["event"] == "train"}


def test_new_machines_resume_to_the_bit_from_s3_with_data_in_s3(s3, few_glyphs, tmp_path):
    """Two ranks are killed in step 9 and their disks are lost; the next ones have nothing but the bucket."""
    shuffle_base64(Options(str(few_glyphs), "file_list.txt", 8, str(tmp_path / "data"), workers=1))
    store = open_hdfs("s3://bucket/training", None)
    put(store, tmp_path / "data", "data")
    straight = start("train_glyphs.py", 2, tmp_path / "data", tmp_path / "straight", *OPTIONS)
    assert straight.returncode == 0, straight.stderr[-3000:]
    options = (
        *OPTIONS,
        f"hdfs_info={json.dumps(['s3://bucket/training', None, 'checkpoints'])}",
        'hdfs_upload=["step"]',
        f"data_cache={json.dumps([str(tmp_path / 'cache'), '1GB'])}",
    )
    data = "s3://bucket/training/data"
    kill = ("--kill-rank=1", "--kill-step=9", "--hold-step=8")
    killed, said = popen_ranks("train_glyphs.py", 2, data, tmp_path / "run", *options, *kill), ""
    for line in killed.stderr:
        said += line
        if "holding step 8" in said and "] uploaded " in said:
            (tmp_path / "run.release").touch()
    assert killed.wait() == 1, said[-3000:]
    (tmp_path / "run.release").unlink()
    found = remote.newest(store, "checkpoints")
    assert found is not None and "fetching" in said
    for lost in ("run", "cache"):
        shutil.rmtree(tmp_path / lost)
    resumed = start("train_glyphs.py", 2, data, tmp_path / "run", *options)
    assert resumed.returncode == 0 and "resumed from" in resumed.stderr, resumed.stderr[-3000:]
    expected, losses = losses_of(tmp_path / "straight"), losses_of(tmp_path / "run")
    assert 0 < len(losses) < 12 and losses == {step: expected[step] for step in losses}
    assert same_tensors(tmp_path / "run" / "1", tmp_path / "straight" / "1")
    kept = {path.parent.name for path in (tmp_path / "run").glob("*/meta.json")}
    assert {one.path for one in remote.list_remote(store, "checkpoints")} == {f"checkpoints/{name}" for name in kept}
    assert {name.split("/")[0] for name in tree(store, "checkpoints")} == kept and s3.unfinished() == []
    store.delete("")


def test_separate_heads_on_sets_in_s3_train_as_on_a_disk(s3, few_glyphs, tmp_path):
    """One set is a folder of images, and is fetched; the other is on the disk."""
    store = open_hdfs("s3://bucket/sets", None)
    convert(Conversion(str(few_glyphs), str(tmp_path / "tree"), "folder", workers=1), lambda *a: None)
    put(store, tmp_path / "tree", "tree")
    runs = {"disk": (str(tmp_path / "tree"), ()), "s3": ("s3://bucket/sets/tree", (tmp_path / "cache",))}
    for name, (first, cache) in runs.items():
        sets = {"directory": [first, str(few_glyphs)], "heads": "separate", "weights": [1, 0.5]}
        options = [f"dataset_dir={json.dumps(sets)}", "class_num=24"]
        options += [f"data_cache={json.dumps([str(one), '1GB'])}" for one in cache]
        done = start("train_glyphs.py", 2, "unused", tmp_path / name, *OPTIONS[:-1], *options)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "fetching 25 files" in done.stderr and len(losses_of(tmp_path / "s3")) == 24
    assert losses_of(tmp_path / "s3") == losses_of(tmp_path / "disk")
    assert same_tensors(tmp_path / "s3" / "1", tmp_path / "disk" / "1")
    store.delete("")


def test_the_secret_appears_nowhere(s3, glyphs, tmp_path):
    """It is not in what is printed or written, nor in the command lines and environments of the processes."""
    key, secret, script = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], tmp_path / "script.py"
    (tmp_path / "secret").write_text(secret)
    script.write_text(
        f"import os, subprocess, sys; sys.path.insert(0, {str(ROOT / 'tests/helpers')!r})\n"
        "import logging; logging.basicConfig(level=logging.DEBUG)\n"
        "import paddle\nfrom plsc import Entry\nfrom train_glyphs import TinyNet\n"
        "secret = open(sys.argv[2]).read()\n"
        f"ins = Entry()\nins.set_dataset_dir({str(glyphs)!r})\nins.set_model_save_dir(sys.argv[1])\n"
        "ins.set_class_num(12)\nins.set_image_shape((3, 32, 32))\nins.set_emb_size(16)\nins.set_with_test(False)\n"
        "ins.set_train_epochs(1)\nins.set_model(TinyNet())\n"
        f"ins.set_hdfs_info('s3://bucket', {key!r} + ',' + secret, 'secret')\n"
        "print(ins, vars(ins), ins._config, ins._config.hdfs)\n"
        "for address in ('s3://k:' + secret + '@bucket', 'gs://bucket', 'nosuch://bucket'):\n"
        f"    try:\n        ins.set_hdfs_info(address, {key!r} + ',' + secret)\n"
        "    except Exception as error:\n        print(repr(error))\n"
        "print(subprocess.run(['env'], capture_output=True, text=True).stdout)\n"
        "print(open('/proc/self/cmdline').read(), open('/proc/self/environ').read())\n"
        "ins.train()\n"
    )
    without = {name: value for name, value in environment().items() if not name.startswith(("AWS_ACC", "AWS_SEC"))}
    process = subprocess.run(
        [sys.executable, "-m", "plsc", "run", "--ranks", "1", script, tmp_path / "o", tmp_path / "secret"],
        env=without, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Hdfs(fs_name=" in process.stdout and secret not in process.stdout + process.stderr
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert len(files) > 5 and all(secret.encode() not in path.read_bytes() for path in files)
    store = open_hdfs("s3://bucket", None)
    assert len(remote.list_remote(store, "secret")) == 1
    assert all(secret.encode() not in b"".join(store.read(f"secret/{name}", 0, one.size))
               for name, one in tree(store, "secret").items())  # fmt: skip


@pytest.mark.parametrize("fault", ["away", "bucket", "secret"])
def test_a_store_that_cannot_be_used_is_one_line_before_the_first_step(s3, few_glyphs, tmp_path, monkeypatch, fault):
    from plsc import storage
    from plsc.checkpoint.download import open_store
    from plsc.config import Config, Hdfs
    from plsc.storage import StorageError

    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    address, words = (
        "s3://bucket",
        {"away": "127.0.0.1:9", "bucket": "no such bucket", "secret": "no credentials"}[fault],
    )
    if fault == "away":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    elif fault == "bucket":
        address = "s3://absent"
    else:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match=words) as error:
        open_store(Config(hdfs=Hdfs(address, None, "checkpoints")))
    assert "\n" not in str(error.value)


def test_ranks_that_do_not_share_a_store_end_before_the_first_step(tmp_path, monkeypatch):
    """The memory of each process is a store of its own; uploads to it would wait for the other ranks in vain."""
    pytest.importorskip("fsspec")
    from plsc import parallel
    from plsc.checkpoint.download import open_store
    from plsc.config import Config, Hdfs
    from plsc.storage import StorageError

    config = Config(hdfs=Hdfs(f"memory://{tmp_path.name}", None, "checkpoints"))
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    store = open_store(config)  # as rank 0, which sees what it writes
    assert store.status("checkpoints") is None  # nothing is left
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "from_rank_0", lambda action, what: "checkpoints/.plsc.written_elsewhere")
    with pytest.raises(StorageError, match="checkpoints: rank 1 does not see what rank 0 writes there; all ranks must"):
        open_store(config)
