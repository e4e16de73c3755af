"""Addresses in stores, as arguments of the commands."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from made_images import encode
from ranks import TIMEOUT, environment, run_plsc
from run_folders import make_run

from plsc import cli, zoo
from plsc.commands import places
from plsc.data.place import Place
from plsc.data.remote import open_images
from plsc.datasets import remote_staging
from plsc.errors import DataError
from plsc.storage import StorageError, StorageUnavailableError, objects, open_hdfs
from plsc.storage.address import Address, split_address
from plsc.storage.transfer import put, tree

ZOO = zoo.place_of("zoo:glyphs")


@pytest.fixture(autouse=True)
def working(tmp_path, monkeypatch):
    """The folder in which commands make their working folders."""
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def memory(monkeypatch):
    """The address of a store in the memory of this process, which commands that end with it refuse."""
    pytest.importorskip("fsspec")
    monkeypatch.setattr(Address, "is_fleeting", False)
    return "memory://store"


@pytest.fixture(params=["hdfs", "s3", "file"])
def there(request, tmp_path):
    """The address of a folder in a store."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    server = request.getfixturevalue(request.param)
    if request.param == "s3":
        return f"s3://bucket/{tmp_path.name}"
    return f"{server.web.replace('http', 'webhdfs')}/{tmp_path.name}"


def store_of(address):
    """Returns the store of an address, and the path in it."""
    found = split_address("x", address)
    return (open_hdfs(found.server if found.scheme != "file" else "file:///", None), found.path)


def files_at(address):
    """Returns the bytes of all files under an address by their names."""
    store, path = store_of(address)
    found = tree(store, path)
    return {name: b"".join(store.read(f"{path}/{name}", 0, one.size)) for name, one in found.items()}


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_images(folder, classes):
    """Makes a folder of two images for each class."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for k in range(2):
            (folder / name / f"{k}.png").write_bytes(encode(np.full((8, 8, 3), 100 + k, np.uint8)))


@pytest.fixture
def plsc(capsys, working, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "disabled", True)  # how the store is connected

    def run(*words, status=0, says=""):
        assert cli.main([*map(str, words)]) == status, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert says in (err if status else out) and str(working) not in out + err
        assert status == 0 or (err.startswith("plsc: error: ") and err.count("\n") == 1), err
        return out

    return run


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "samples"
    zoo.write_samples("glyphs", folder)
    return folder


def test_a_chain_of_commands_in_a_store_gives_what_it_gives_on_a_disk(there, samples, tmp_path, working, plsc):
    pytest.importorskip("faiss")
    store, path = store_of(there)
    put(store, ZOO, f"{path}/19")
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(ZOO, here / "19")
    images = ("--input", samples / "unseen")
    outputs, is_slow = {}, not there.startswith("file:")
    for place in (here, there):
        page = ("--page", f"{place}/page.html")
        said = [
            plsc("predict", f"--model={place}/19", *images, "--output", f"{place}/embeddings"),
            plsc("index", f"{place}/embeddings", "--output", f"{place}/all.index"),
            plsc("convert-checkpoint", f"{place}/19", f"{place}/two ranks", "--ranks", 2),
        ]
        for words in (
            ()
            if is_slow
            else (
                ("search", f"{place}/all.index", "--checkpoint", f"{place}/19", samples / "queries", *page),
                ("search", f"{place}/all.index", "--checkpoint", f"{place}/19", samples / "queries", *page, "--top", 1),
                ("classify", "--checkpoint", f"{place}/two ranks", samples / "trained", "--top", 1),
                ("data", "split", samples / "trained", f"{place}/held", "--held-out", 0.2, "--pairs", 20),
                ("data", "check", samples / "trained", "--fix", f"{place}/fix.txt"),
            )
        ):
            said.append(plsc(*words))
        said = [one.replace(str(place), "PLACE") for one in said]
        advice = re.compile("(ins.set_|Fetch it before training: plsc fs get PLACE/held held_out).*\n")
        outputs[place] = [advice.sub("", one) for one in said]
    assert outputs[here] == outputs[there]
    assert outputs[there][0] == "PLACE/embeddings: 40 embeddings of 128 numbers\n"
    ours = {name: data for name, data in files_in(here).items() if not name.startswith(("19/", "two ranks/meta"))}
    theirs = {name: data for name, data in files_at(there).items() if not name.startswith(("19/", "two ranks/meta"))}
    assert theirs == ours and all(str(working).encode() not in data for data in theirs.values())
    assert not any(folder for _, _, folder in os.walk(working))
    # What is there stays, if the command would not replace it on a disk.
    for words in (
        ("predict", "--model", "zoo:glyphs", *images, "--output", f"{there}/embeddings"),
        ("export", "--checkpoint", "zoo:glyphs", "--output", f"{there}/19"),
        ("zoo", "glyphs", "--samples", f"{there}/embeddings"),
        ("convert-checkpoint", f"{there}/19", f"{there}/two ranks", "--ranks", 2),
        ("data", "check", samples, "--fix", f"{there}/all.index.tsv"),
        ("data", "convert", samples, f"{there}/19", "--to", "tar"),
        ("data", "convert", samples, f"{there}/19", "--to", "folder"),
    )[: 2 if is_slow else 9]:
        plsc(*words, status=1, says="already exists")
    there_alone = ("--output", f"{there}/all.index.tsv")
    plsc("index", f"{there}/embeddings", *there_alone, status=1, says="no complete output is there")
    assert {name: data for name, data in files_at(there).items() if name in theirs} == theirs


@pytest.mark.parametrize(
    "words, says",
    [
        (("predict", "--checkpoint", "nosuch://x/19", "--input", "x", "--output", "y"), "does not know nosuch://"),
        (("predict", "--checkpoint", "file:///", "--input", "x", "--output", "y"), "names the whole store"),
        (("predict", "--checkpoint", "file:///gone", "--input", "x", "--output", "y"), "no such file or folder"),
        (("predict", "zoo:glyphs", "--input", "x", "--output", "hdfs://me:pw@host/x"), "holds a user or a password"),
        (("convert-checkpoint", "file:///a", "file:///a", "--ranks", "2"), "is named twice"),
        (("convert-checkpoint", "hdfs:///a", "b", "--ranks", "2"), "names no server"),
        (("export", "--checkpoint", "zoo:glyphs", "--output", "file:///proc/x/y"), "/proc"),
        (("test", "--checkpoint", "x", "--dataset", "x", "--embeddings", "s3://b/x"), "name a folder of this machine"),
        (("data", "convert", "x", "file:///tmp/x", "--to", "tar", "--engine", "spark"), "all machines share"),
        (("index", "x", "--output", "file:///tmp/x", "--set", "emb_dim=3"), "takes hdfs_upload alone"),
        (("data", "convert", "file:///tmp/x", "file:///tmp/x/y", "--to", "folder"), "a folder outside file:///tmp/x"),
        (("data", "convert", "/tmp/x", "file:///tmp/x/y", "--to", "tar"), "is the source, or a folder in it"),
        (("data", "convert", "file:///tmp/x", "/tmp/x/y", "--to", "tar"), "is the source, or a folder in it"),
        (("index", "x", "--output", "memory://x/y"), "what is in memory:// ends with this command"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_done(words, says, capsys, working):
    if words[:2] == ("predict", "zoo:glyphs"):
        words = ("predict", "--checkpoint", *words[1:])
    assert cli.main([*words]) == (2 if "--set" in words else 1)
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and "pw" not in err.replace("password", "")
    assert not any(files for _, _, files in os.walk(working))


def test_a_folder_that_must_not_be_written_is_found_out_first(hdfs, tmp_path, plsc, monkeypatch):
    monkeypatch.setenv("HADOOP_USER_NAME", "eve")
    address = f"{hdfs.web.replace('http', 'webhdfs')}/{tmp_path.name}"
    store, path = store_of(address)
    store.mkdirs(path)
    hdfs.client().set_permission(path, "555")
    plsc("index", tmp_path / "gone", "--output", f"{address}/x/y.index", status=1, says="ermission")
    assert not store.list(path)


def test_for_how_long_a_command_tries_again():
    words = ["index", "x", "--output", "y", "--set", "hdfs_upload=[epoch,7]"]
    assert places._Stores(cli.make_parser().parse_args(words))._login.patience == 7


def test_an_output_that_was_not_uploaded_stays_and_is_uploaded_by_the_same_command(
    samples, tmp_path, monkeypatch, capsys, working, memory
):
    there, sent = f"{memory}/{tmp_path.name}", []
    words = ["predict", "--checkpoint", "zoo:glyphs", "--input", str(samples / "unseen"), "--output", f"{there}/e"]
    words += ["--set", "hdfs_upload=[end,0]"]
    write = objects.ObjectStorage.write

    def failing(self, path, chunks, size):
        if path.endswith("manifest.json"):
            raise StorageUnavailableError("the server is down")
        sent.append(path)
        write(self, path, chunks, size)

    monkeypatch.setattr(objects.ObjectStorage, "write", failing)
    assert cli.main(words) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    kept = next(working.rglob("embeddings.npy"))
    assert "NOT UPLOADED: the server is down; the output is complete in" in err and str(kept.parent) in err
    assert f"upload it to {there}/e" in err
    monkeypatch.setattr(objects.ObjectStorage, "write", write)
    # A kill in the middle leaves files without the one that makes them complete, and a mark.
    store, path = store_of(f"{there}/e")
    put(store, kept.parent, path, last=())
    store.delete(f"{path}/manifest.json")
    write(store._storage, os.path.join(os.path.dirname(path), ".e.uploading"), lambda: [b""], 0)
    before = kept.stat().st_mtime_ns
    copied = []
    monkeypatch.setattr(places, "_upload", lambda *a, upload=places._upload: (copied.append(a[2]), upload(*a)))
    capsys.readouterr()
    assert cli.main(words) == 0, capsys.readouterr().err
    assert sorted(files_at(there)) == ["e/embeddings.npy", "e/images.tsv", "e/manifest.json"]
    assert before and len(copied) == 1 and not any(files for _, _, files in os.walk(working))


def test_a_report_reads_the_files_of_a_run_and_no_checkpoint(tmp_path, plsc, monkeypatch):
    there, seen = f"file://{tmp_path}/store", []

    def make_report(runs, output, png):
        seen.extend(sorted(path.name for run in runs for path in run.iterdir()))
        output.write_text("page")
        return {"report": str(output), "bytes": 1, "png": [], "runs": []}

    monkeypatch.setattr("plsc.report.make.make_report", make_report)
    make_run(tmp_path / "store/run")
    (tmp_path / "store/run/19").mkdir()
    for _ in range(2):
        plsc("report", f"{there}/run", "--output", f"{there}/page.html", says=f"{there}/page.html: ")
    assert files_at(there)["page.html"] == b"page"
    assert seen == 2 * ["lfw_pairs.npz", "metrics.jsonl", "run.json"]


@pytest.mark.parametrize(
    "options",
    ["--to tar --shards 4", "--to parquet --shards 3", "--to base64 --shards 4", "--to base64 --ranks 2",
     "--to recordio", "--to folder"],
)  # fmt: skip
def test_data_is_converted_to_a_store_as_to_a_folder(options, samples, tmp_path, plsc, memory):
    if "parquet" in options:
        pytest.importorskip("pyarrow")
    here, there = tmp_path / "here", f"{memory}/{tmp_path.name}"
    words = ("data", "convert", samples / "trained", *options.split(), "--workers")
    plsc(*words, 2, here)
    plsc(*words, 2 if "tar" in options else 1, f"{there}/data", says=f"{there}/data: 40 images of 10 classes")
    assert files_at(there) == {f"data/{name}": data for name, data in files_in(here).items()}


# `plsc` whose conversions make no shard after the fourth.
HELD = """
import sys, time
from plsc import cli
from plsc.datasets import conversion

make_shard = conversion.make_shard

def held(job, records, number, report):
    while number > 3:
        report(0)
        time.sleep(0.01)
    return make_shard(job, records, number, report)

conversion.make_shard = held
sys.exit(cli.main())
"""


@pytest.mark.parametrize("kind", ["hdfs", "s3"])
def test_a_killed_conversion_resumes_and_gives_the_same_bytes(kind, request, samples, tmp_path, plsc, working):
    server = request.getfixturevalue(kind)
    there = f"{server.web.replace('http', 'webhdfs')}/data" if kind == "hdfs" else "s3://bucket/data"
    there += f"/{tmp_path.name}"
    words = ["data", "convert", str(samples / "trained"), f"{there}/tar", "--to", "tar", "--shards", "20"]
    store, path = store_of(there)
    hidden = f"{path}/.tar.converting"
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *words, "--workers", "2"],
        env={**environment(), **os.environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT
    while store.status(f"{hidden}/records") is None or len(store.list(f"{hidden}/records")) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    if kind == "hdfs":
        process.kill()
    else:
        with server.hanging():  # Ctrl-C waits for no server
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            assert process.wait(TIMEOUT) == 130 and time.monotonic() - began < 30
    out, err = process.communicate()
    assert "Traceback" not in err, err
    kept = len(store.list(f"{hidden}/records"))
    assert 2 <= kept <= 4 and store.status(f"{path}/tar") is None
    said = json.loads(plsc(*words, "--json"))
    assert said["kept"] >= 2 and said["shards"] == 20
    plsc("data", "convert", samples / "trained", tmp_path / "here", "--to", "tar", "--shards", 20)
    assert files_at(there) == {f"tar/{name}": data for name, data in files_in(tmp_path / "here").items()}
    assert not any(files for _, _, files in os.walk(working))


def test_the_disk_holds_few_shards_of_a_conversion_to_a_store(samples, tmp_path, plsc, monkeypatch, memory):
    ship, seen = remote_staging.RemoteStaging._ship, []

    def slow(self, number, room):
        made = [path for path in self.folder.iterdir() if path.name.startswith("shard-")]
        seen.append(len(made))
        time.sleep(0.02)
        ship(self, number, room)

    monkeypatch.setattr(remote_staging.RemoteStaging, "_ship", slow)
    words = ("--to", "tar", "--shards", 20, "--workers", 1)
    plsc("data", "convert", samples / "trained", f"{memory}/{tmp_path.name}", *words)
    assert len(seen) == 20 and max(seen) <= 3


def test_a_conversion_that_was_killed_while_it_was_published_is_finished(samples, tmp_path, plsc, monkeypatch, memory):
    here, there = tmp_path / "here", f"{memory}/{tmp_path.name}"
    words = ("data", "convert", samples / "trained", "--to", "base64", "--shards", 4)
    plsc(*words, here)
    copy, copied = objects.ObjectStorage._each, []

    def failing(self, method, items, *harmless, seconds=None):
        items = list(items)
        if method == "cp_file" and not copied:
            copied.extend(items[:2])
            copy(self, method, copied)
            raise StorageError("killed")
        copy(self, method, items, *harmless, seconds=seconds)

    monkeypatch.setattr(objects.ObjectStorage, "_each", failing)
    plsc(*words, f"{there}/data", status=1, says="killed")
    found = files_at(there)
    assert "data/file_list.txt" not in found and ".data.converting/last/file_list.txt" in found
    assert sum(name.startswith("data/") for name in found) == 2
    with pytest.raises(DataError, match="plsc data convert has not finished it"):
        place = Place(split_address("x", f"{there}/data"), tmp_path / "cache", 10**9)
        open_images(place, None, "auto", None, 1)
    plsc(*words, "--shards", 3, f"{there}/data", status=1, says="differs in its shards")
    plsc(*words, f"{there}/data")
    assert files_at(there) == {f"data/{name}": data for name, data in files_in(here).items()}


@pytest.mark.parametrize(
    "words",
    [
        ["data", "info", "s3:/bucket/data"],
        ["data", "check", "s3//bucket/data"],
        ["data", "convert", "s3:/bucket/data", "new", "--to", "tar"],
        ["data", "convert", "data", "s3:/bucket/new", "--to", "tar"],
        ["data", "split", "data", "s3;//bucket/new"],
        ["predict", "--model", "zoo:glyphs", "--input", "s3:/bucket/data", "--output", "new"],
        ["predict", "--model", "zoo:glyphs", "--input", "data", "--output", "hdfs:/host/new"],
        ["index", "s3:/bucket/embeddings", "--output", "new"],
        ["index", "data", "--output", "s3:/bucket/index"],
        ["export", "--checkpoint", "s3:/bucket/19", "--output", "new"],
        ["classify", "--checkpoint", "zoo:glyphs", "s3:/bucket/1.jpg"],
        ["zoo", "glyphs", "--samples", "s3:/bucket/samples"],
        ["report", "s3:/bucket/run"],
    ],
)
def test_an_address_with_a_typing_error_is_not_taken_for_a_path(plsc, tmp_path, monkeypatch, words):
    make_images(tmp_path / "data", ("ant", "bee"))
    monkeypatch.chdir(tmp_path)
    plsc(*words, status=1, says="is not an address; did you mean '")
    assert sorted(os.listdir(tmp_path)) == ["data", "working"]


@pytest.mark.parametrize(
    "words",
    [["data", "convert", "data", "", "--to", "tar"], ["index", "", "--output", "x"], ["report", ""]],
)
def test_an_empty_path_is_not_the_current_folder(plsc, words):
    plsc(*words, status=1, says="the path is empty; name a file or a folder")


@pytest.mark.parametrize("command", ["convert", "split"])
def test_a_new_data_set_does_not_go_into_its_source_in_a_store(plsc, tmp_path, command):
    make_images(tmp_path / "data", ("ant", "bee"))
    options = ["--to", "tar"] if command == "convert" else []
    for source, output in (
        (f"file://{tmp_path}/data", f"file://{tmp_path}/data/ant/new"),
        (tmp_path / "data", f"file://{tmp_path}/data/new"),
        (f"file://{tmp_path}/data", tmp_path / "data/new"),
    ):
        plsc("data", command, source, output, *options, status=1, says="is the source, or a folder in it; give")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["ant", "bee"]


def test_a_wrong_folder_is_refused_before_its_files_are_fetched(plsc, tmp_path, monkeypatch):
    (tmp_path / "run/19").mkdir(parents=True)
    (tmp_path / "run/19/meta.json").write_text("{}")
    (tmp_path / "run/large").write_text("large")
    monkeypatch.setattr(places, "_get", lambda *_: pytest.fail("something was fetched"))
    address = f"file://{tmp_path}/run"
    large = f"{address}/large: is not a checkpoint or an export"
    network = f"{address}: is not a checkpoint or an export, as it holds no meta.json or inference_meta.json; name"
    plsc("classify", "--checkpoint", address, ZOO / "samples.zip", status=1, says=network)
    plsc("export", "--checkpoint", f"{address}/large", "--output", tmp_path / "net", status=1, says=large)
    plsc("index", address, "--output", tmp_path / "x", status=1, says="holds no manifest.json; name another folder\n")
    plsc("report", address, status=1, says="is not the folder of a run, as it holds no metrics.jsonl")


def test_what_another_command_finished_meanwhile_is_seen_before_anything_is_done(plsc, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    claimed = places.claimed

    def claimed_late(target):
        (tmp_path / "made").write_text("by the command that had the claim before")
        return claimed(target)

    monkeypatch.setattr(places, "claimed", claimed_late)
    words = ("data", "check", tmp_path / "data", "--fix", f"file://{tmp_path}/made")
    plsc(*words, status=1, says=f"file://{tmp_path}/made: already exists")
    assert (tmp_path / "made").read_text().startswith("by the command")


def test_an_input_is_listed_once_and_looked_at_once_more_at_the_end(plsc, tmp_path, monkeypatch, memory):
    make_run(tmp_path / "run")
    store, path = store_of(f"{memory}/{tmp_path.name}")
    put(store, tmp_path / "run", path)
    listed = []
    monkeypatch.setattr("plsc.storage.transfer.tree", lambda *a: (listed.append(a[1]), tree(*a))[1])
    monkeypatch.setattr(places, "tree", lambda *a: (listed.append(a[1]), tree(*a))[1])
    places._get(store, path, tmp_path / "copy")
    assert len(listed) == 2 and files_in(tmp_path / "copy") == files_in(tmp_path / "run")


@pytest.mark.parametrize(
    "words, says",
    [
        (["data", "convert", "{data}", "{there}/out", "--to", "tar"], "No space left on device"),
        (["data", "convert", "{data}", "{there}/out", "--to", "folder"], "No space left on device"),
        (["convert-checkpoint", "zoo:glyphs", "{there}/out", "--ranks", "2"], "No space left on device"),
        (["zoo", "glyphs", "--samples", "{there}/out"], "No space left on device"),
        (["export", "--checkpoint", "zoo:glyphs", "--output", "{there}/out"], "full (0 MB left)?"),
        (["export", "--checkpoint", "{there}/19", "--output", "{here}/out"], "are to be downloaded, but its disk has"),
    ],
)
def test_a_full_folder_of_temporary_files_is_named(words, says, small_disk, samples, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(small_disk))
    (small_disk / "of others").write_bytes(bytes(990_000))
    shutil.copytree(ZOO, tmp_path / "store/19")
    there = f"file://{tmp_path}/store"
    words = [word.format(data=samples / "trained", there=there, here=tmp_path) for word in words]
    assert cli.main(words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    address = f"{there}/19" if f"{there}/19" in words else f"{there}/out"
    assert says in line and f"{small_disk}/plsc-" in line and line.startswith("plsc: error: ")
    ending = f"what is there for the time of the command is {address}: make room there, or set TMPDIR to a folder on a"
    assert ending in line


def test_a_full_data_cache_and_a_full_output_are_named(small_disk, samples):
    (small_disk / "of others").write_bytes(bytes(1_040_000))
    data = f"file://{samples}/trained"
    for words, place, advice in (
        (["data", "check", data, "--set", f"data_cache=[{small_disk}/c,1GB]"], f"{small_disk}/c", "--set data_cache"),
        (["data", "convert", samples / "trained", small_disk / "x", "--to", "tar"], small_disk / "x", "free some"),
        (["zoo", "glyphs", "--samples", f"file://{small_disk}/x"], f"file://{small_disk}/", "make room"),
    ):
        process = run_plsc(*words)
        line = process.stderr.splitlines()[-1]
        assert process.returncode == 1
        assert f"{place}" in line and "No space left on device" in line and advice in line and "TMPDIR" not in line
