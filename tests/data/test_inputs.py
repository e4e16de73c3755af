"""What commands read from stores: the same as from a disk, fetched once, and in a cache of bounded size."""

import json
import logging
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from ranks import run_plsc

from plsc import cli
from plsc.config import Config
from plsc.config import DataCache as CacheSetting
from plsc.data import folder_index, store_files, tar_index_file
from plsc.data.collection import open_collection
from plsc.data.inputs import Inputs
from plsc.data.pair_sets import read_pairs
from plsc.datasets import check, conversion
from plsc.datasets.conversion import Conversion, convert
from plsc.datasets.look_alikes import look_alike
from plsc.datasets.opening import open_data
from plsc.engine.build import _left_out
from plsc.errors import ConfigError, DataError
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options
from plsc.storage.data_cache import CachedFolder

LFW = "1\nann 1 2\nann 1 bob 1\n"


@pytest.fixture(scope="module")
def data(glyphs, tmp_path_factory):
    """The glyphs in every format, and lists of some of their images."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(glyphs, root / "jpeg")
    kinds = ["folder", "tar", "base64", "recordio"]
    try:
        import pyarrow  # noqa: F401

        kinds.append("parquet")
    except ImportError:
        pass
    for to in kinds:
        shards = 3 if to in ("tar", "base64", "parquet") else None
        convert(Conversion(str(glyphs), str(root / to), to, shards=shards, workers=1), lambda *a: None)
    shuffle_base64(Options(str(glyphs), "file_list.txt", 12, str(root / "split"), workers=1))
    shutil.copy(glyphs / "classes.txt", root / "split")
    names = [line.rpartition(" ")[0] for line in (glyphs / "label.txt").read_text().splitlines()[:6]]
    (root / "jpeg" / "some.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "jpeg" / "who.txt").write_text("".join(f"{name} person{i % 2}\n" for i, name in enumerate(names)))
    (root / "jpeg" / "pairs.txt").write_text(f"{names[0]} {names[1]} 1\n{names[0]} {names[2]} 0\n")
    for name, source in (("ann_0001", 0), ("ann_0002", 1), ("bob_0001", 2)):
        place = root / "lfw" / "images" / name[:3]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(glyphs / names[source], place / f"{name}.jpg")
    (root / "lfw" / "pairs.txt").write_text(LFW)
    return root


@pytest.fixture
def fetched(monkeypatch):
    """The files that are fetched, in their order."""
    names, download = [], CachedFolder._download

    def count(self, file, *arguments):
        names.append(file.name)
        download(self, file, *arguments)

    monkeypatch.setattr(CachedFolder, "_download", count)
    return names


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """The folder of the default cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "plsc" / "data"


def open_inputs(cache, size=10**9):
    return Inputs(Config(data_cache=CacheSetting(str(cache), size)).place_of)


def contents(records):
    return [(records.name(i), *records.read(i)) for i in range(records.num_images)], records.labels().tolist()


def test_what_is_written_about_damaged_images_names_addresses(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    source = tmp_path / "store" / "x"
    shutil.copytree(data / "jpeg", source)
    name = (source / "label.txt").read_text().splitlines()[3].rpartition(" ")[0]
    (source / name).write_bytes(b"no image")
    address, output = f"file://{source}", tmp_path / "out"
    with open_inputs(tmp_path / "cache") as inputs:
        wanted = Conversion(address, str(output), "tar", skip_damaged=True, workers=2)
        assert convert(wanted, lambda *a: None, inputs=inputs).skipped == 1
        logging.getLogger("plsc").warning("%s/%s: is damaged", inputs.path_of(address), name)
    skipped = (output / "skipped.txt").read_text()
    assert skipped.startswith(f"{name}\t{address}/label.txt:4: ") and str(tmp_path / "cache") not in skipped
    assert caplog.messages[-1] == f"{address}/{name}: is damaged"
    logging.getLogger("plsc").warning("%s", inputs.path_of(address))
    assert caplog.messages[-1] == inputs.path_of(address), "the log is as before"


SOURCES = {
    "jpeg": 98,
    "folder": 97,
    "tar": 3,
    "tar/train-0000{0..1}-of-00003.tar": 2,
    "recordio": 4,
    "recordio/train.rec": 4,
    "base64": 5,
    "base64/file_list.txt": 5,
    "split": 27,
    "parquet": 3,
}


@pytest.mark.parametrize("source", SOURCES)
def test_an_address_gives_what_the_disk_gives_and_is_fetched_once(data, tmp_path, fetched, source):
    if not (data / source.partition("/")[0]).exists():
        pytest.skip("needs pyarrow")
    kind, local = open_data(f"{data}/{source}")
    for _ in range(2):
        with open_inputs(tmp_path / "cache") as inputs:
            found, records = open_data(f"file://{data}/{source}", "auto", inputs)
            assert found == kind and contents(records) == contents(local)
            assert list(records.class_names) == list(local.class_names)
            assert records.digests() == local.digests() or kind == "base64 parts"
    assert len(fetched) == len(set(fetched)) == SOURCES[source], "nothing else, and each file once"


IMAGES = {
    "jpeg": "the images of label.txt",
    "folder": "a folder",
    "folder/classes": "one class",
    "jpeg/some.txt": "a list",
    "jpeg/who.txt": "a list with identities",
    "tar": "tars",
    "base64": "parts",
}


@pytest.mark.parametrize("source", IMAGES)
def test_images_to_embed_are_those_of_the_disk(data, tmp_path, source):
    if source == "folder/classes":
        source = next(path for path in sorted(data.glob("folder/*")) if path.is_dir()).relative_to(data).as_posix()
    local = open_collection(data / source)
    fingerprints = set()
    for cache in ("one", "two"):
        with open_inputs(tmp_path / cache) as inputs:
            images = open_collection(Path(inputs.images(f"file://{data}/{source}")))
            numbers = range(local.num_images)
            assert [images.name(i) for i in numbers] == [local.name(i) for i in numbers]
            assert [images.identity(i) for i in numbers] == [local.identity(i) for i in numbers]
            assert (images.pixels(3, (3, 32, 32)) == local.pixels(3, (3, 32, 32))).all()
            assert inputs.named(images.source) in f"file://{data}/{source}"
            fingerprints.add(images.fingerprint())
    assert len(fingerprints) == 1, "a copy that was fetched again counts as the same, so that work can resume"


def test_test_sets_are_fetched_once_and_alone(data, tmp_path, fetched):
    with open_inputs(tmp_path / "cache") as inputs:
        for _ in range(2):
            folder = Path(*inputs.test_sets([f"file://{data}/jpeg"], "glyphs, pairs,held_out"))
        assert (folder / "glyphs.bin").read_bytes() == (data / "jpeg" / "glyphs.bin").read_bytes()
        assert read_pairs(folder / "pairs.txt").images.num_images == 3
        held_out = len(list((data / "jpeg" / "held_out").rglob("*.jpg")))
        assert len(list((folder / "held_out").rglob("*.jpg"))) == held_out
        assert len(fetched) == len(set(fetched)) == 1 + 1 + 1 + 3 + held_out  # with classes.txt
        assert read_pairs(Path(inputs.images(f"file://{data}/lfw/pairs.txt"))).images.num_images == 3
        with pytest.raises(DataError, match=r"jpeg/agedb.bin: no such test set, nor agedb.txt, nor a folder of images"):
            inputs.test_sets([f"file://{data}/jpeg"], "glyphs,agedb")


def test_what_the_server_no_longer_has_is_not_read(data, tmp_path, fetched):
    folder = tmp_path / "tree"
    shutil.copytree(data / "folder", folder)
    images = sorted(folder.rglob("*.jpg"))
    images[5].rename(images[5].with_suffix(""))  # an image by its content

    def look():
        fetched.clear()
        with open_inputs(tmp_path / "cache") as inputs:
            return open_data(f"file://{folder}", "auto", inputs)[1].num_images, len(fetched)

    assert look() == (96, 97)
    images[0].unlink()
    images[1].write_bytes(images[2].read_bytes())
    assert look() == (95, 1)
    shutil.rmtree(images[-1].parent)
    (folder / "classes.txt").unlink()
    assert look() == (87, 0)


@pytest.mark.parametrize("kind", ["tar", "recordio", "folder"])
def test_indexes_that_plsc_makes_are_not_taken_for_fetched_files(data, tmp_path, monkeypatch, kind):
    for module in (tar_index_file, folder_index):
        monkeypatch.setattr(module, "_FEWEST", 1)
        monkeypatch.setattr(module, "CLOCK", -(10**12))  # as if the files had been there for long
    folder = shutil.copytree(data / kind, tmp_path / kind)
    for path in folder.glob("*.idx"):
        path.unlink()
    for _ in range(2):
        with open_inputs(tmp_path / "cache") as inputs:
            assert open_data(f"file://{folder}", "auto", inputs)[1].num_images == 96
        with open_inputs(tmp_path / "cache") as inputs:
            assert open_collection(Path(inputs.images(f"file://{folder}"))).num_images == 96
    assert open_data(str(folder))[1].num_images == 96
    made = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    made -= {path.relative_to(data / kind) for path in (data / kind).rglob("*") if path.is_file()}
    assert made or kind == "recordio", "next to data that is no copy"


SMALL = 60_000


def test_data_larger_than_the_cache_is_read_in_the_order_of_its_files(data, tmp_path, fetched, capsys):
    address = f"file://{data}/split"
    options = ["--set", f"data_cache=[{tmp_path}/small, {SMALL}]"]
    total = sum(path.stat().st_size for path in (data / "split").glob("base64_rank_*"))
    assert total > 2 * SMALL

    def run(*words):
        fetched.clear()
        status = cli.main(["data", *words])
        images = [name for name in fetched if name.startswith("base64_rank")]
        return status, capsys.readouterr().out, len(images), len(set(images))

    for action in (["info"], ["info", "--all"], ["check"], ["check", "--workers", "8"]):
        status, text, count, different = run(*action, address, *options, "--json")
        assert (status, count, different) == (0, 12, 12), "each file once"
        local = json.loads(run(*action, str(data / "split"), "--json")[1])
        assert {**json.loads(text), "source": None} == {**local, "source": None}
    arguments = ["--to", "tar", "--shards", "3"]
    assert run("convert", address, str(tmp_path / "one"), *arguments, *options)[2:] == (12, 12)
    assert run("convert", str(data / "split"), str(tmp_path / "two"), *arguments)[0] == 0
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert made[0] == made[1]
    assert run("split", address, str(tmp_path / "s1"), "--pairs", "20", *options)[0] == 0
    assert run("split", str(data / "split"), str(tmp_path / "s2"), "--pairs", "20")[0] == 0
    assert (tmp_path / "s1" / "held_out.txt").read_bytes() == (tmp_path / "s2" / "held_out.txt").read_bytes()
    held = sum(path.stat().st_size for path in (tmp_path / "small").glob("plsc_*/files/*"))
    assert held <= SMALL and not list((tmp_path / "small").glob("plsc_claims/*"))


def test_images_that_may_look_alike_are_decoded_once_and_in_order(data, tmp_path, monkeypatch):
    seen = []
    records = open_data(str(data / "split"))[1]
    read = records.read
    monkeypatch.setattr(records, "read", lambda i: seen.append(i) or read(i))
    view = check.View((3, 32, 32), Config().pixels, 1, lambda count: None)
    found = check.Findings([check.RecordImages(data / "split", records)], ["split"], records.labels())
    pairs = np.array([(i, j) for i in range(8) for j in range(8, 12)])
    kept = check._confirmed(found, pairs, view)
    assert seen == sorted(seen) == list(range(12))
    pixels = [found.pixels(i, view) for i in range(12)]
    assert kept.tolist() == [pair for pair in pairs.tolist() if look_alike(*(pixels[i] for i in pair))]


def test_a_conversion_resumes_and_refuses_a_source_that_has_changed(data, tmp_path, capsys, monkeypatch):
    folder, address = tmp_path / "tars", f"file://{tmp_path}/tars"
    shutil.copytree(data / "tar", folder)
    arguments = ["data", "convert", address, str(tmp_path / "out"), "--to", "base64", "--shards", "4", "--workers", "1"]
    make = conversion.make_shard

    def stop_at_two(job, records, number, report):
        if number == 2:
            raise KeyboardInterrupt
        return make(job, records, number, report)

    monkeypatch.setattr(conversion, "make_shard", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        convert_in(arguments)
    monkeypatch.setattr(conversion, "make_shard", make)
    shutil.rmtree(tmp_path / "caches")  # as on another machine
    (folder / "train-00002-of-00003.tar").rename(tmp_path / "away.tar")
    assert cli.main(arguments) == 1
    assert "unfinished conversion that differs in its number of images (96, now 64)" in capsys.readouterr().err
    (tmp_path / "away.tar").rename(folder / "train-00002-of-00003.tar")
    assert cli.main(arguments) == 0
    assert "(2 of them from an earlier run)" in capsys.readouterr().out


def convert_in(arguments):
    """Runs a command without the handling of Ctrl-C."""
    parser = cli.make_parser()
    options = parser.parse_args(arguments)
    options.arguments = arguments
    options.run(options)


def test_lists_come_from_stores_too_and_messages_name_addresses(data, tmp_path, capsys):
    names = (data / "jpeg" / "some.txt").read_text()
    (tmp_path / "out.txt").write_text(names)
    damaged = tmp_path / "damaged"
    shutil.copytree(data / "folder", damaged)
    bad = sorted(damaged.rglob("*.jpg"))[5]
    bad.write_bytes(b"no image")
    assert cli.main(["data", "check", f"file://{damaged}", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["damaged"]
    assert [one["reason"].partition(": ")[0] for one in found] == [f"file://{bad}"]
    words = ["--exclude", f"file://{tmp_path}/out.txt", "--against", f"file://{data}/jpeg/pairs.txt", "--json"]
    assert cli.main(["data", "check", f"file://{data}/jpeg", *words]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 90
    records = open_data(str(data / "jpeg"))[1]
    assert len(_left_out(records, f"file://{tmp_path}/out.txt", Config())) == 6, "in training"
    assert cli.main(["data", "check", str(data / "jpeg"), "--exclude", f"file://{data}/jpeg"]) == 1
    assert "jpeg: is no file; name a single one" in capsys.readouterr().err
    assert cli.main(["data", "convert", f"file://{damaged}", str(tmp_path / "o"), "--to", "tar", "--size", "16"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"file://{bad}: " in error and "plsc_" not in error


def test_without_a_setting_the_log_says_where_the_files_go(data, caches, capfd):
    assert cli.main(["data", "info", f"file://{data}/tar"]) == 0
    assert "fetching 3 files" in (err := capfd.readouterr().err) and f"to {caches}" in err


def wrong(data, tmp_path):
    """Yields words of `plsc data info`, and what the error says."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    down = "hdfs_upload={when: end, retry_seconds: 0}"
    yield [f"file://{tmp_path}/nowhere"], f"nowhere: no such file or folder; plsc fs ls file://{tmp_path} shows"
    yield [f"file://{data}/jpeg/some.doc"], "some.doc: no such file or folder"
    yield ["ftp2://host/x"], "ftp2"
    yield ["s3://key:secret@bucket/x"], "user|key|password"
    yield ["hdfs:///x"], "names no server; write hdfs://host:port/path"
    yield [f"hdfs://127.0.0.1:{port}/x", "--set", down], f"127.0.0.1:{port}.*(not answer|refused|cannot)"
    yield [f"file://{data}/recordio", "--set", f"data_cache=[{tmp_path}/c, 100]"], "100 B is too small.*larger size"
    yield [f"file://{data}/split", "--set", f"data_cache=[{tmp_path}/c, 20000]"], "20 kB is too small: each rank needs"
    yield [f"file://{data}/tar", "--set", "data_cache=[/proc/cache, 1GB]"], "/proc/cache: the data cache cannot be w"
    yield [f"file://{data}/tar/train-{{00002..00003}}-of-00003.tar"], r"\}-of-00003.tar names it; copy it, or correct"
    yield [f"file://{tmp_path}/empty"], "empty: holds no data that plsc can read: neither images, nor a label.txt"


def test_what_cannot_be_read_is_said_in_a_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plsc.storage.CONNECT_SECONDS", 0.0)
    (tmp_path / "empty").mkdir()
    for words, expected in wrong(data, tmp_path):
        assert cli.main(["data", "info", *words]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1 and re.search(expected, lines[0]) and "key:secret" not in lines[0], (words, lines)


def test_too_many_single_files_name_the_command_that_copies_them(data, tmp_path, monkeypatch):
    monkeypatch.setattr(store_files, "_MOST_SINGLE", 50)
    with (
        open_inputs(tmp_path / "cache") as inputs,
        pytest.raises(
            ConfigError, match=rf"97 files are too many .* plsc fs get file://{data}/folder FOLDER, and give"
        ),
    ):
        inputs.data(f"file://{data}/folder")


def test_spark_refuses_a_source_in_a_store(data, tmp_path, capsys):
    words = ["data", "convert", f"file://{data}/tar", str(tmp_path / "o"), "--to", "base64", "--engine", "spark"]
    assert cli.main(words) == 1
    assert "--engine spark reads SOURCE on every machine, and the data cache is on this one" in capsys.readouterr().err


def test_a_full_disk_ends_the_command(data, small_disk, tmp_path, capsys):
    with open(tmp_path / "data.tar", "wb") as stream:
        stream.truncate(2_000_000)
    assert cli.main(["data", "info", f"file://{tmp_path}/data.tar", "--set", f"data_cache=[{small_disk}/c, 1GB]"]) == 1
    assert "there is no room in the data cache for another 2 MB" in capsys.readouterr().err


def test_a_network_reads_stores_in_every_command(data, trained, tmp_path, capsys):
    """Embeds, resumes on another machine, refuses what has changed, and indexes, searches, classifies and tests."""
    folder = tmp_path / "held_out"
    shutil.copytree(data / "jpeg" / "held_out", folder)
    address, out = f"file://{folder}", tmp_path / "embeddings"
    words = ["predict", "--model", str(trained / "net"), "--input", address, "--output", str(out)]
    assert cli.main(words) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"] == address
    shutil.rmtree(tmp_path / "caches")
    before = (out / "embeddings.npy").stat().st_mtime_ns
    assert cli.main(words) == 0 and (out / "embeddings.npy").stat().st_mtime_ns == before
    images = sorted(folder.rglob("*.jpg"))
    images[0].write_bytes(images[1].read_bytes())
    assert cli.main(words) == 1
    assert "images" in capsys.readouterr().err.splitlines()[-1]
    checkpoint = ["--checkpoint", str(trained / "output" / "0")]
    assert cli.main(["classify", *checkpoint, f"file://{images[2]}", "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"file://{images[2]}"
    sets = ["--dataset", f"file://{data}/jpeg", "--targets", "glyphs,pairs", "--gallery", address, "--probes", address]
    assert cli.main(["test", *checkpoint, *sets, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"glyphs", "pairs", "identification"}
    words = ["data", "outliers", str(trained / "output" / "0"), f"file://{data}/tar", "--output", str(tmp_path / "o")]
    assert cli.main([*words, "--against", f"file://{data}/jpeg/glyphs.bin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 96
    pytest.importorskip("faiss")
    index = str(tmp_path / "faces.index")
    assert cli.main(["index", str(out), "--output", index]) == 0
    search = ["search", index, "--model", str(trained / "net"), f"file://{images[2]}"]
    assert cli.main([*search, "--page", str(tmp_path / "page.html"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["image"] == f"file://{images[2]}" and found["hits"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image") == 1 + len(found["hits"]) and f'title="file://{images[2]}"' in page


def test_a_real_hdfs_is_read_by_all_ranks_and_refuses_in_a_line(hdfs, data, trained, tmp_path, capsys, monkeypatch):
    client = hdfs.client()
    for name in ("tar", "folder"):
        client.makedirs(f"/inputs/{name}", permission="777")
        for path in filter(Path.is_file, (data / name).rglob("*")):
            client.upload(f"/inputs/{path.relative_to(data)}", str(path))
    client.makedirs("/closed/x", permission="700")
    client.set_permission("/closed", permission="700")
    monkeypatch.setenv("HADOOP_USER_NAME", "alice")
    source = f"{hdfs.address}/inputs/tar/train-{{00000..00002}}-of-00003.tar"
    assert cli.main(["data", "convert", source, str(tmp_path / "o"), "--to", "base64"]) == 0
    assert cli.main(["data", "convert", str(data / "tar"), str(tmp_path / "p"), "--to", "base64"]) == 0
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("o", "p")]
    assert made[0] == made[1]
    capsys.readouterr()
    assert cli.main(["data", "info", f"{hdfs.address}/closed/x"]) == 1
    assert re.search("error: .*/closed/x: .*(alice|ermission)", capsys.readouterr().err.splitlines()[-1])
    words = ["predict", "--model", str(trained / "net"), "--output"]
    process = run_plsc(*words, tmp_path / "two", "--input", f"{hdfs.address}/inputs/folder", "--ranks", 2)
    assert process.returncode == 0, process.stderr
    assert "[rank 0] fetching 97 files" in process.stderr and "[rank 1] fetching" not in process.stderr
    assert cli.main([*words, str(tmp_path / "one"), "--input", str(data / "folder")]) == 0
    one, two = (np.load(tmp_path / name / "embeddings.npy") for name in ("one", "two"))
    np.testing.assert_allclose(one, two, atol=1e-4)
    assert (tmp_path / "one" / "images.tsv").read_bytes() == (tmp_path / "two" / "images.tsv").read_bytes()


def test_a_real_object_store_is_read_and_a_change_within_a_second_is_noticed(s3, data, tmp_path, capsys, fetched):
    client = s3.client()
    for path in (data / "tar").iterdir():
        client.upload_file(str(path), "bucket", f"inputs/{path.name}")
    for _ in range(2):
        assert cli.main(["data", "info", "s3://bucket/inputs", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["images"] == 96
    assert len(fetched) == 3
    name = "train-00001-of-00003.tar"
    changed = bytearray((data / "tar" / name).read_bytes())
    changed[-1] = 1  # behind the last image
    client.put_object(Bucket="bucket", Key=f"inputs/{name}", Body=bytes(changed))
    assert cli.main(["data", "info", "s3://bucket/inputs", "--json"]) == 0
    assert fetched[3:] == [name]
    assert cli.main(["data", "info", "s3://other/inputs"]) == 1
    assert "s3://other" in capsys.readouterr().err.splitlines()[-1]
