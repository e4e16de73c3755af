"""Training with HDFS: uploads, downloads, and what a user sees when they fail."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hdfs import InsecureClient
from killed_runs import same_tensors
from ranks import HELPERS, ROOT, TIMEOUT, environment, popen_ranks, run_python, start

from plsc import Entry, checkpoint
from plsc.checkpoint import remote
from plsc.checkpoint.download import fetch_checkpoint, fetch_newest, open_store
from plsc.config import Config, Hdfs
from plsc.datasets.conversion import Conversion, convert
from plsc.errors import CheckpointError, ConfigError
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options
from plsc.storage import StorageError, open_hdfs, rpc

BASE = ("with_test=false", "log_period=1", "train_epochs=2")


@pytest.fixture
def place(hdfs, tmp_path):
    """Makes a folder that everybody may write to; its path has a space and Chinese letters."""
    path = f"/训练 {tmp_path.name}"
    hdfs.client().makedirs(path, permission="777")
    return path


def info(hdfs, save=None, load=None, address=None):
    return "hdfs_info=" + json.dumps([address or hdfs.web, "name,passwd", save, load])


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


OWN_DISKS = ("--disks=[0,0,1]", "train_batch_size=8", "sample_ratio=0.5")


@pytest.fixture(scope="module")
def straight(once, glyphs):
    """Returns the folder of an uninterrupted run of three ranks on one disk."""

    def make(folder):
        process = start("train_glyphs.py", 3, glyphs, folder, *BASE, "--disks=[0,0,0]", *OWN_DISKS[1:])
        assert process.returncode == 0, process.stderr[-3000:]

    return once("hdfs-straight", make) / "disk_0"


def test_disks_that_are_not_shared_hold_what_their_ranks_need(glyphs, tmp_path, straight):
    """Two ranks share a disk and the third has its own; the run is killed and resumes to the last bit."""
    options = (*BASE, *OWN_DISKS, "save_period=1", "keep_checkpoints=2", "resume=true")
    killed = start("train_glyphs.py", 3, glyphs, tmp_path, *options, "--kill-rank=2", "--kill-step=7")
    assert killed.returncode == 1
    resumed = start("train_glyphs.py", 3, glyphs, tmp_path, *options)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resumed from" in resumed.stderr and "last bit" not in resumed.stderr
    common, head = ["backbone.safetensors", "meta.json", "optimizer.safetensors"], checkpoint.head_file
    for disk, heads in ((0, [head(0), head(1)]), (1, [head(2)])):
        folder = tmp_path / f"disk_{disk}"
        assert sorted(path.parent.name for path in folder.glob("*/meta.json")) == ["1", "step_8"]
        assert not list(folder.glob(".*"))
        assert files_of(folder / "1") == sorted([*common, *heads])
        assert (folder / "1" / "meta.json").read_bytes() == (tmp_path / "disk_0" / "1" / "meta.json").read_bytes()
        for name in {*common, *heads} - {"meta.json"}:
            assert (folder / "1" / name).read_bytes() == (straight / "1" / name).read_bytes(), name


def test_a_restart_downloads_what_its_own_command_has_trained(hdfs, glyphs, tmp_path, place, monkeypatch):
    """The machine comes back with an empty disk, and the script does not call `set_resume`.

    Another command begins a new run and moves those checkpoints aside.
    """
    script = [HELPERS / "train_glyphs.py", glyphs]
    options = (*BASE, info(hdfs, place), 'hdfs_upload=["epoch"]')
    monkeypatch.setenv("PLSC_LAUNCH", "first")
    for folder, epochs, words in (("a", 1, "uploaded"), ("b", 2, "resumed from")):
        process = run_python(*script, tmp_path / folder, *options, f"train_epochs={epochs}")
        assert process.returncode == 0 and words in process.stderr, process.stderr[-3000:]
        monkeypatch.setenv("PLSC_RESTART", "1")
    monkeypatch.delenv("PLSC_RESTART")
    monkeypatch.setenv("PLSC_LAUNCH", "third")
    earlier = hdfs.client().list(place)
    fresh = [*script, tmp_path / "d", *options, "train_epochs=1"]
    process = run_python(*fresh)
    said = rf"\S*{place} held an earlier run, with 2 checkpoints; it is now in \S*{place}/earlier_1"
    assert process.returncode == 0 and re.search(said, process.stderr), process.stderr[-3000:]
    assert hdfs.client().list(f"{place}/earlier_1") == earlier and hdfs.client().list(place) == ["0", "earlier_1"]
    config = Config(hdfs=Hdfs(hdfs.web, "name,passwd", fs_dir_for_save=place))
    assert fetch_newest(config, open_store(config, threading.Event()), tmp_path / "c", {"fourth"}) is not None
    assert not (tmp_path / "c").exists()


def test_machines_upload_their_parts_and_new_machines_resume_from_them(hdfs, glyphs, tmp_path, place, straight):
    """Three ranks on two disks upload each epoch; both disks are lost; the run resumes on other disks."""
    address = hdfs.address if rpc.is_installed() else hdfs.web
    uploads = (info(hdfs, place, address=address), 'hdfs_upload=["epoch"]')
    options = (*BASE, *OWN_DISKS, *uploads, "keep_checkpoints=1", "resume=true")
    hdfs.client("name").write(f"{place}/7/mine.txt", b"not of plsc")
    first = start("train_glyphs.py", 3, glyphs, tmp_path / "a", *options, "train_epochs=1")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "uploaded" in first.stderr and "NOT" not in first.stderr and "passwd" not in first.stderr
    assert f"connected by {'RPC' if rpc.is_installed() else 'WebHDFS'}" in first.stderr
    client = hdfs.client()
    assert client.list(place) == ["0", "7"]
    names = [checkpoint.head_file(rank) for rank in range(3)]
    assert client.list(f"{place}/0") == sorted(
        [*names, *files_of(straight / "0")[:1], "meta.json", "optimizer.safetensors"]
    )
    process = start("train_glyphs.py", 3, glyphs, tmp_path / "b", *options, "save_period=3", 'hdfs_upload=["step"]')
    assert process.returncode == 0, process.stderr[-3000:]
    assert re.search(r"uploaded \S+/step_", process.stderr)
    assert "downloaded; the checksums are right" in process.stderr and "resumed from" in process.stderr
    assert client.list(place) == ["1", "7"], "the one before was removed, what plsc did not write stays"
    assert client.list(f"{place}/7") == ["mine.txt"]
    got = open_hdfs(hdfs.web, "name,")
    found = remote.open_remote(got, f"{place}/1")
    remote.download(got, found, tmp_path / "1", found.checkpoint.files)
    assert same_tensors(tmp_path / "1", straight / "1")
    # Both disks have what their ranks need, and no more.
    assert not (tmp_path / "b" / "disk_1" / "1" / names[0]).exists()


def files_of_run(output):
    return sorted(path.parent.name for path in output.glob("*/meta.json"))


def act_in_step_three(arguments, act, release_at="holding step 3", each_line=lambda line: None):
    """Runs two ranks and calls `act(process)` while they wait in step 3; returns the exit status and the lines.

    The ranks continue when rank 0 has printed `release_at`. `each_line` is called with every line.
    """
    process = popen_ranks("train_glyphs.py", 2, *arguments, "--hold-step=3")
    lines = []
    for line in process.stderr:
        lines.append(line)
        each_line(line)
        if "holding step 3" in line:
            act(process)
        if release_at in line:
            Path(f"{arguments[1]}.release").touch()
    return process.wait(timeout=TIMEOUT), lines


def resume_through_an_outage(hdfs, data, output, options):
    """Resumes a training while the NameNode is away, until a rank waits for it. Returns the lines of the training."""
    starting = []

    def restart(line):
        if "trying again in" in line and not starting:
            starting.append(threading.Thread(target=hdfs.start))
            starting[0].start()

    status, lines = act_in_step_three((data, output, *options), lambda process: hdfs.kill_namenode(), each_line=restart)
    assert status == 0 and starting and any("resumed from" in line for line in lines), "".join(lines)[-3000:]
    starting[0].join()
    return lines


def test_a_namenode_that_goes_down_and_stays_down(hdfs, glyphs, tmp_path, place):
    """Training continues to its end and reports what is missing; a later run uploads it."""
    options = (*BASE, info(hdfs, place), "resume=true", "train_batch_size=8", "--disks=[0,1]", "loss_type=softmax")
    uploads = (*options, 'hdfs_upload=["epoch", 2]')
    status, lines = act_in_step_three((glyphs, tmp_path, *uploads), lambda process: hdfs.kill_namenode())
    assert status == 1
    said = [line for line in lines if "NOT UPLOADED" in line]
    assert any("epoch 1, step 6" in line for line in lines) and "Traceback" not in "".join(lines)
    assert re.search(
        r"disk_([01])/1, \S+disk_\1/0, which are complete on disk.*Connection refused.*set_resume", said[-1]
    )
    assert any("trying again in" in line for line in lines)
    for disk in (tmp_path / "disk_0", tmp_path / "disk_1"):  # the head is whole on every rank
        assert files_of_run(disk) == ["0", "1"] and checkpoint.open_checkpoint(disk / "1")
    hdfs.start()
    again = start("train_glyphs.py", 2, glyphs, tmp_path, *options, 'hdfs_upload=["epoch"]')
    assert again.returncode == 0 and "all 2 epochs are done" in again.stderr, again.stderr[-3000:]
    assert hdfs.client().list(place) == ["0", "1"]


def test_the_last_checkpoint_is_uploaded_after_sigterm(hdfs, glyphs, tmp_path, place):
    arguments = (glyphs, tmp_path, *BASE, info(hdfs, place), "train_epochs=9")
    status, lines = act_in_step_three(arguments, lambda process: process.terminate(), "received SIGTERM")
    assert status == 128 + signal.SIGTERM
    (name,) = hdfs.client().list(place)
    assert name.startswith("step_") and f"uploaded {tmp_path}/{name} in time" in "".join(lines)


def test_sigterm_ends_the_waiting_for_uploads_at_once(hdfs, glyphs, tmp_path, place):
    began, processes = [], []

    def act(process):
        processes.append(process)
        hdfs.kill_namenode()

    def each_line(line):
        if "trying again in" in line and not began:
            began.append(time.monotonic())
            processes[0].terminate()

    arguments = (glyphs, tmp_path, *BASE, info(hdfs, place), 'hdfs_upload=["end", 300]', "train_epochs=1")
    status, lines = act_in_step_three(arguments, act, each_line=each_line)
    assert status == 128 + signal.SIGTERM and time.monotonic() - began[0] < 60
    assert "stopped by SIGTERM while it was uploaded; run the script again" in "".join(lines)


def prepared(hdfs, *folders, ugi="name,passwd"):
    ins = Entry()
    ins.set_hdfs_info(hdfs.web, ugi, *folders)
    ins.set_checkpoint_dir("unused")
    return ins


def test_a_namenode_that_is_down_is_reported_at_the_start(hdfs, monkeypatch):
    monkeypatch.setattr("plsc.storage.CONNECT_SECONDS", 1.0)
    hdfs.kill_namenode()
    with pytest.raises(StorageError, match="no WebHDFS answers .*Connection refused.*is the NameNode up"):
        prepared(hdfs, "some_dir").train()


def test_folders_that_cannot_be_written_are_reported_at_the_start(hdfs, monkeypatch, place):
    monkeypatch.setattr("plsc.storage.CONNECT_SECONDS", 1.0)
    client = hdfs.client()
    client.makedirs(f"{place}/root's", permission="755")
    client.write(f"{place}/file", b"x")
    client.makedirs(f"{place}/full", permission="777")
    hdfs.set_quota(f"{place}/full", size=1 << 20)
    for folder, words in (
        ("root's", "Permission denied: user=name"),
        ("root's/new", "Permission denied: user=name"),
        ("file", "a file stands where a folder should be"),
        ("full", "quota exceeded"),
    ):
        with pytest.raises(StorageError, match=words):
            prepared(hdfs, f"{place}/{folder}").train()
    hdfs.safe_mode(True)
    with pytest.raises(StorageError, match="safe mode"):
        prepared(hdfs, f"{place}/new").train()
    hdfs.safe_mode(False)
    assert sorted(client.list(place)) == ["file", "full", "root's"]


def test_a_custom_client(hdfs, place):
    hdfs.client().makedirs(f"{place}/root's", permission="755")
    ins = prepared(hdfs, f"{place}/root's", ugi=None)
    ins.set_hdfs_client(InsecureClient(hdfs.web, user="dora"))
    with pytest.raises(StorageError, match="Permission denied: user=dora"):
        ins.train()


def test_weights_from_hdfs(hdfs, glyphs, tmp_path, place, straight):
    """Takes a checkpoint, or the newest of several; refuses changed ones, and a folder that holds another one."""
    client = hdfs.client()
    for name in ("0", "1"):
        client.upload(f"{place}/runs/{name}", str(straight / name), n_threads=4)
    process = start(
        "train_glyphs.py", 2, glyphs, tmp_path / "out", *BASE, "train_epochs=1",
        info(hdfs, None, f"{place}/runs"), f"checkpoint_dir={tmp_path}/model",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    assert f"weights from {tmp_path}/model: backbone loaded; head loaded" in process.stderr
    assert same_tensors(tmp_path / "model", straight / "1") and not list((tmp_path / "model").glob(".*"))

    def config(path, folder):
        return Config(
            hdfs=Hdfs(hdfs.web, "name,", None, f"{place}/{path}"), checkpoint_dir=str(tmp_path / folder), num_classes=12
        )

    fetch_checkpoint(config("runs/0", "first"))
    assert same_tensors(tmp_path / "first", straight / "0")
    with pytest.raises(ConfigError, match=f"first: holds another checkpoint than {hdfs.web}{place}/runs/1; move it"):
        fetch_checkpoint(config("runs", "first"))
    name = f"{place}/runs/1/backbone.safetensors"
    with client.read(name) as reader:
        data = bytearray(reader.read())
    data[-1] ^= 1
    client.write(name, bytes(data), overwrite=True)
    with pytest.raises(checkpoint.DamagedError, match="backbone.safetensors: its sha256 differs from meta.json"):
        fetch_checkpoint(config("runs/1", "changed"))
    client.delete(f"{place}/runs/1/meta.json")
    with pytest.raises(CheckpointError, match="no complete checkpoint there"):
        fetch_checkpoint(config("runs/1", "none"))
    fetch_checkpoint(config("runs", "first"))  # now the newest that is complete


def test_the_password_appears_nowhere(hdfs, glyphs, tmp_path, place):
    """It is not in what is printed or written, nor in the command lines and environments of the processes."""
    password, script = "pa55-w0rd", tmp_path / "script.py"
    (tmp_path / "secret").write_text(password)
    script.write_text(
        f"import os, subprocess, sys; sys.path.insert(0, {str(ROOT / 'tests/helpers')!r})\n"
        "import logging; logging.basicConfig(level=logging.DEBUG)\n"
        "import paddle\nfrom plsc import Entry\nfrom train_glyphs import TinyNet\n"
        "password = open(sys.argv[3]).read()\n"
        f"ins = Entry()\nins.set_dataset_dir({str(glyphs)!r})\nins.set_model_save_dir(sys.argv[1])\n"
        "ins.set_class_num(12)\nins.set_image_shape((3, 32, 32))\nins.set_emb_size(16)\nins.set_with_test(False)\n"
        "ins.set_train_epochs(1)\nins.set_model(TinyNet())\n"
        f"ins.set_hdfs_info({hdfs.web!r}, 'name,' + password, sys.argv[2])\n"
        "print(ins, vars(ins), ins._config, ins._config.hdfs)\n"
        "for value in ('name', password, password + '\\n' + password, 7):\n"
        "    try:\n        ins.set_hdfs_info('nn', value)\n    except Exception as error:\n        print(repr(error))\n"
        "try:\n    ins.set_hdfs_info('https://name:' + password + '@gate', None)\n"
        "except Exception as e:\n    print(repr(e))\n"
        "print(subprocess.run(['env'], capture_output=True, text=True).stdout)\n"
        "print(open('/proc/self/cmdline').read(), open('/proc/self/environ').read())\n"
        "try:\n    ins.train()\nexcept BaseException as error:\n"
        "    import traceback\n    print(repr(error))\n    traceback.print_exc()\n    raise\n"
    )
    hdfs.client().makedirs(f"{place}/root's", permission="755")
    for folder, status, ranks in (("good", 0, "2"), ("root's", 1, "1")):
        arguments = [tmp_path / "o", f"{place}/{folder}", tmp_path / "secret"]
        words = ["-m", "plsc", "run", "--ranks", ranks, script, *arguments]
        if status:  # only what is printed differs
            process = run_python(*words)
        else:  # new processes have command lines and environments of their own
            process = subprocess.run(
                [sys.executable, *words], env=environment(), capture_output=True, text=True, timeout=TIMEOUT
            )
        assert process.returncode == status, process.stderr[-3000:]
        assert "Hdfs(fs_name=" in process.stdout and password not in process.stdout + process.stderr
    assert "Permission denied" in process.stderr
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert len(files) > 5 and all(password.encode() not in path.read_bytes() for path in files)
    store = open_hdfs(hdfs.web, "name," + password)
    assert len(remote.list_remote(store, f"{place}/good")) == 1
    for path in hdfs.folder.glob("*.log"):
        assert password not in path.read_text()


@pytest.fixture(scope="module")
def few_split(few_glyphs, tmp_path_factory):
    """24 images in as many files, so that a rank of two has 12 files and 6 steps of 2 images."""
    folder = tmp_path_factory.mktemp("data") / "split"
    shuffle_base64(Options(str(few_glyphs), "file_list.txt", 24, str(folder), workers=1))
    return folder


ON_FILES = (*BASE, "train_batch_size=2", "num_workers=0", "save_period=1", "keep_checkpoints=2", "resume=true")


def losses_of(output):
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if record["event"] == "train"]


def test_data_on_hdfs_gives_the_losses_of_data_on_disk(hdfs, few_split, tmp_path, place):
    """With a cache that holds all, and with one that is smaller, through a kill and while the NameNode is away."""
    hdfs.client("name").upload(f"{place}/data", str(few_split), n_threads=16)
    # The address names the port of the RPC protocol, as Spark's does; that of WebHDFS is known from set_hdfs_info.
    data, who = f"{hdfs.address}{place}/data", info(hdfs)
    total = sum(path.stat().st_size for path in few_split.glob("base64_rank_*"))
    small = sum(path.stat().st_size for path in few_split.glob("base64_[im]*"))

    def cache(name, size):
        return f"data_cache={json.dumps([str(tmp_path / name), size])}"

    in_turn = 'data_format=["base64", "files"]'
    for name, source, options in (("disk", few_split, ()), ("hdfs", data, (who, cache("all", "1GB")))):
        process = start("train_glyphs.py", 2, source, tmp_path / name, *ON_FILES, in_turn, *options)
        assert process.returncode == 0, process.stderr[-3000:]
    assert "all of them are kept" in process.stderr and "fetching" in process.stderr
    assert len(losses_of(tmp_path / "disk")) == 12 and losses_of(tmp_path / "hdfs") == losses_of(tmp_path / "disk")

    options = (*ON_FILES, who, cache("part", small + int(0.8 * total)))
    killed = start("train_glyphs.py", 2, data, tmp_path / "kill", *options, "--kill-rank=1", "--kill-step=4")
    assert killed.returncode == 1 and "read in turn" in killed.stderr, killed.stderr[-3000:]
    shutil.rmtree(tmp_path / "part")
    lines = resume_through_an_outage(hdfs, data, tmp_path / "kill", options)
    assert same_tensors(tmp_path / "kill" / "1", tmp_path / "disk" / "1")
    assert losses_of(tmp_path / "kill") == losses_of(tmp_path / "disk")
    assert "passwd" not in "".join([*lines, *map(str, (tmp_path / "part").rglob("*"))])


@pytest.fixture(scope="module")
def large_images(few_glyphs, tmp_path_factory):
    """Images of 3 MB, more of which follow than fit into the memory that is kept for those that are read in place."""
    folder = tmp_path_factory.mktemp("large")
    for line in (few_glyphs / "label.txt").read_text().splitlines():
        name = line.rpartition(" ")[0]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((few_glyphs / name).read_bytes().ljust(3_000_000, b"\0"))
    shutil.copy(few_glyphs / "label.txt", folder)
    return folder


@pytest.mark.parametrize("to", ["tar", "recordio", "parquet", "folder", "jpeg"])
def test_data_that_no_cache_can_hold_gives_the_losses_of_data_on_disk(hdfs, large_images, tmp_path, place, to):
    """It is read in place, through a kill and while the NameNode is away."""
    if to == "parquet":
        pytest.importorskip("pyarrow")
    if to == "jpeg":
        shutil.copytree(large_images, tmp_path / "data")
    else:
        shards = 2 if to in ("tar", "parquet") else None
        convert(Conversion(str(large_images), str(tmp_path / "data"), to, shards=shards, workers=1), lambda *a: None)
    hdfs.client("name").upload(f"{place}/data", str(tmp_path / "data"), n_threads=4)
    options = (*ON_FILES, info(hdfs), f"data_cache={json.dumps([str(tmp_path / 'cache'), '1MB'])}")
    straight = start("train_glyphs.py", 2, tmp_path / "data", tmp_path / "disk", *ON_FILES)
    assert straight.returncode == 0, straight.stderr[-3000:]
    data = f"{hdfs.address}{place}/data"
    killed = start("train_glyphs.py", 2, data, tmp_path / "kill", *options, "--kill-rank=1", "--kill-step=4")
    assert killed.returncode == 1 and "read in place" in killed.stderr, killed.stderr[-3000:]
    resume_through_an_outage(hdfs, data, tmp_path / "kill", options)
    assert same_tensors(tmp_path / "kill" / "1", tmp_path / "disk" / "1")
    assert losses_of(tmp_path / "kill") == losses_of(tmp_path / "disk")
    used = sum(path.lstat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*"))
    assert used < 1_000_000, "the images are not on the disk"


def test_several_sets_on_hdfs_give_the_losses_of_sets_on_disk(
    hdfs, few_split, few_glyphs, large_images, tmp_path, place
):
    """One is kept, one is fetched, one is read in place, and one is on the disk; through a kill and an outage."""
    convert(Conversion(str(large_images), str(tmp_path / "large"), "tar", shards=2, workers=1), lambda *a: None)
    more = shutil.copytree(few_split, tmp_path / "more")
    names = {"split": few_split, "few": few_glyphs, "large": tmp_path / "large", "more": more}
    for name in ("split", "few", "large"):
        hdfs.client("name").upload(f"{place}/{name}", str(names[name]), n_threads=16)
    (tmp_path / "sets").mkdir()
    for name in names:
        (tmp_path / "sets" / name).symlink_to(names[name])

    def settings(stored):
        paths = [f"{hdfs.address}{place}/{name}" if name in stored else str(tmp_path / "sets" / name) for name in names]
        return f"dataset_dir={json.dumps({'directory': paths, 'weights': [0.5, 1, 0.25, 0.5]})}", "class_num=48"

    straight = start("train_glyphs.py", 2, "unused", tmp_path / "disk", *ON_FILES, *settings(()))
    assert straight.returncode == 0, straight.stderr[-3000:]
    options = (
        *ON_FILES,
        *settings(("split", "few", "large")),
        info(hdfs),
        f"data_cache={json.dumps([str(tmp_path / 'cache'), '1MB'])}",
    )
    killed = start("train_glyphs.py", 2, "unused", tmp_path / "kill", *options, "--kill-rank=1", "--kill-step=4")
    assert killed.returncode == 1 and killed.stderr.count("read in place") == 1, killed.stderr[-3000:]
    assert killed.stderr.count("all of them are kept") == 1 and "/few to " in killed.stderr
    resume_through_an_outage(hdfs, "unused", tmp_path / "kill", options)
    assert same_tensors(tmp_path / "kill" / "1", tmp_path / "disk" / "1")
    assert losses_of(tmp_path / "kill") == losses_of(tmp_path / "disk")
