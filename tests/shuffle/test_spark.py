"""The Spark engine gives the same order and bytes as the local one, which other tests check."""

import base64
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest

from plsc.data.place import Place
from plsc.data.remote import open_images as open_remote_images
from plsc.data.sources import open_images
from plsc.errors import ConfigError, DataError
from plsc.shuffle import command as base64_command
from plsc.shuffle import local as base64_shuffle
from plsc.shuffle import plan as base64_plan
from plsc.shuffle import scan as base64_scan
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options
from plsc.storage.address import split_address
from plsc.storage.login import Login

BLOCK = 4096
needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None, reason="needs PySpark and Java"
)


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes blocks of 4 kB in both engines, and tasks of two blocks. Returns the function of the Spark engine."""
    from plsc.shuffle import spark as base64_spark
    from plsc.shuffle import spark_tasks as base64_spark_tasks

    for module in (base64_plan, base64_scan, base64_shuffle, base64_spark_tasks):
        monkeypatch.setattr(module, "BLOCK", BLOCK)
    monkeypatch.setattr(base64_spark, "SPLIT_BYTES", 2 * BLOCK)
    return base64_spark.shuffle_on_spark


def line(rng, size):
    """Returns a good line of `size` bytes, which must be at least 9."""
    digits = (size - 2) % 4 or 4
    image = base64.b64encode(rng.randbytes((size - 2 - digits) // 4 * 3))
    return b"%s\t%0*d\n" % (image, digits, rng.randrange(10**digits))


def part(rng, blocks):
    """Returns lines that fill some blocks. Every other block begins with a line, and some lines span several blocks."""
    lines, size = [], 0
    for block in range(1, blocks):
        while block * BLOCK - size > 2000:
            lines.append(line(rng, rng.randrange(9, 1900)))
            size += len(lines[-1])
        if block % 2 and block * BLOCK - size >= 9:
            lines.append(line(rng, block * BLOCK - size))
            size = block * BLOCK
    return [*lines, line(rng, 3 * BLOCK), line(rng, 50)]


def make(folder, seed=0):
    rng = random.Random(seed)
    folder.mkdir()
    texts = [b"".join(part(rng, 5)), b"".join(part(rng, 2)), line(rng, 9)]
    texts[1] = texts[1][:-1]  # no newline at the end
    for number, text in enumerate(texts):
        (folder / f"part {number} 数据").write_bytes(text)
    (folder / "list").write_text("".join(f"part {number} 数据\n" for number in range(len(texts))))
    return folder


def contents(folder, prefix):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(prefix)}


def options(data, output, nranks=4, **more):
    return Options(str(data), "list", nranks, str(output), seed=more.pop("seed", 7), **more)


@needs_spark
def test_the_same_files_as_the_local_engine_and_the_same_bad_lines(spark, small_blocks, tmp_path):
    found = spark.sparkContext.parallelize([0], 1).map(
        lambda _: __import__("importlib.util").util.find_spec("plsc") is None
    )
    assert found.first()  # otherwise the test would not notice what executors lack
    data, bad = make(tmp_path / "data"), tmp_path / "bad"
    shutil.copytree(data, bad)
    lines = (bad / "part 0 数据").read_bytes().splitlines(True)
    lines[4] = lines[4].replace(b"\t", b"\t-")
    lines[9] = b"\n"
    lines[11] = b"\xff" + lines[11][1:]
    lines[12] = lines[12][:-1] + b"\r\n"
    lines[-1] = lines[-1].replace(b"\t", b" ")
    (bad / "part 0 数据").write_bytes(b"".join(lines))
    messages = []
    for run in (shuffle_base64, small_blocks):
        before = contents(bad, "")
        with pytest.raises(DataError) as caught:
            run(options(bad, bad, workers=1))
        messages.append(str(caught.value))
        assert contents(bad, "") == before  # nothing was made or left behind
    assert messages[0] == messages[1] and ":5: the label is negative" in messages[0]

    wanted = shuffle_base64(options(bad, tmp_path / "local", workers=1, skip_errors=True)).manifest
    made = small_blocks(options(bad, tmp_path / "spark", skip_errors=True)).manifest
    assert made == wanted and made.padding and made.skipped == 5
    assert contents(tmp_path / "spark", "") == contents(tmp_path / "local", "")

    # Files that hold nothing but a copy replace those.
    (data / "list").write_text("part 2 数据\n")
    for run, output in ((shuffle_base64, "local"), (small_blocks, "spark")):
        run(options(data, tmp_path / output, workers=1, seed=8))
    assert contents(tmp_path / "spark", "") == contents(tmp_path / "local", "")
    assert len(contents(tmp_path / "spark", "base64_rank_")) == 4
    with pytest.raises(DataError, match="none of its parts has a good line"):  # none of the images can be decoded
        small_blocks(options(data, tmp_path / "checked", skip_errors=True, check=True))


@needs_spark
def test_on_hdfs_as_on_the_local_disk_whatever_the_partitions(spark, small_blocks, tmp_path, hdfs, monkeypatch):
    from plsc.shuffle import spark as base64_spark

    monkeypatch.setattr(base64_spark, "SPLIT_BYTES", 3 * BLOCK)
    data = make(tmp_path / "data")
    shuffle_base64(options(data, tmp_path / "local", workers=1))
    client, folder = hdfs.client(), "/base64 数据"
    client.upload(folder, str(data))
    address = f"{hdfs.address}{folder}"
    # A run that was killed while it published its files leaves this.
    client.write(f"{folder}/.base64_shuffle-1/publishing.json", json.dumps(["base64_rank_0", "base64_manifest.json"]))
    client.write(f"{folder}/base64_rank_0", b"half")

    small_blocks(Options(address, "list", 4, seed=7))
    local = contents(tmp_path / "local", "")
    names = set(client.list(folder))
    assert names == set(local) | {path.name for path in data.iterdir()}
    for name, content in local.items():
        with client.read(f"{folder}/{name}") as reader:
            assert reader.read() == content
    # Training reads what Spark has written.
    place = Place(split_address("set_dataset_dir", address), tmp_path / "cache", 10**9, Login(hdfs.web))
    records, _ = open_remote_images(place, None, "auto", None, in_flight=1)
    on_disk = open_images(str(tmp_path / "local"), None, 0, 1)
    assert [records.read(i) for i in range(on_disk.num_images)] == [on_disk.read(i) for i in range(on_disk.num_images)]
    records.close()

    client.write(f"{folder}/base64_rank_5", b"mine")
    with pytest.raises(DataError, match="base64_rank_5: was not made by this tool"):
        small_blocks(Options(address, "list", 6))
    with pytest.raises(DataError, match="cannot read the list of parts .no such file"):
        small_blocks(Options(address, "other", 6))
    client.delete(f"{folder}/part 1 数据")
    with pytest.raises(DataError, match="list:2: cannot read part 'part 1 数据' .no such file"):
        small_blocks(Options(address, "list", 4))
    client.write(f"{folder}/list", "part 2 数据", overwrite=True)
    client.write(f"{folder}/part 2 数据", "\ufeffAAAA\t1\n".encode(), overwrite=True)
    with pytest.raises(DataError, match="part 2 数据: Spark reads other bytes than the file holds"):
        small_blocks(Options(address, "list", 4))
    assert set(client.list(folder)) == names - {"part 1 数据"} | {"base64_rank_5"}


@needs_spark
def test_inputs_that_spark_cannot_use_are_reported(spark, small_blocks, tmp_path):
    data = make(tmp_path / "data")
    (data / "part,1").write_bytes((data / "part 2 数据").read_bytes())
    (data / "list").write_text("part,1\n")
    with pytest.raises(ConfigError, match="part,1: Spark cannot use a path"):
        small_blocks(options(data, tmp_path / "out"))
    (data / "list").write_text("part.gz\n")
    os.rename(data / "part,1", data / "part.gz")
    with pytest.raises(DataError, match="Spark failed .*; its log says more") as caught:
        small_blocks(options(data, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot write there .*--output_dir"):
        small_blocks(options(data, "hdfs://127.0.0.1:1/none"))


@pytest.mark.parametrize(
    "path, says",
    [
        ("/data/_part", "begin with '_' or '.'"),
        ("hdfs://host:9000/data/.part", "begin with '_' or '.'"),
        ("/data/12:30/part", "contains ':'"),
        ("hdfs://host:9000/data/a:b", "contains ':'"),
        ("/data/part\udcca", "not UTF-8"),
        ("/data/part,1", "contains one of"),
        ("/_data/.hidden/part_1", None),
        ("hdfs://host:9000/数据/part", None),
    ],
)
def test_names_that_hadoop_cannot_read_are_reported_before_spark_starts(path, says):
    from plsc.shuffle.spark import _check_part

    with pytest.raises(ConfigError, match=says) if says else contextlib.nullcontext() as caught:
        _check_part(path)
    assert not says or str(caught.value).startswith(f"{path}: Spark ") and "rename it" in str(caught.value)


@needs_spark
def test_a_user_without_a_name_is_reported_before_java_fails(monkeypatch, capsys):
    from pyspark.sql import SparkSession

    monkeypatch.setattr(SparkSession, "getActiveSession", staticmethod(lambda: None))
    monkeypatch.setattr(os, "geteuid", lambda: 2_000_111_222)
    assert base64_command.main(["--data_dir=.", "--file_list=list", "--nranks=2", "--engine=spark"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("plsc: error: --engine spark: user 2000111222 has no entry in /etc/passwd")
    assert error.count("\n") == 1


@needs_spark
def test_exceptions_that_pyspark_translates_are_one_line():
    from pyspark.errors import IllegalArgumentException

    from plsc.shuffle.spark_session import spark_errors

    with (
        pytest.raises(
            DataError,
            match="^Spark failed .*Relative path in absolute URI.*; its log says more, and nothing was changed$",
        ),
        spark_errors(),
    ):
        raise IllegalArgumentException("Relative path in absolute URI: a:b\nat java.lang.Thread.run(Thread.java)")


@pytest.mark.parametrize("option", ["--memory=1GB", "--workers=2", "--tmp_dir=.", "--compress-tmp"])
def test_options_of_the_local_engine_are_refused(option, capsys):
    arguments = ["--data_dir=.", "--file_list=list", "--nranks=2", "--engine=spark", option]
    assert base64_command.main(arguments) == 1
    name = option.split("=")[0].replace("compress-", "compress_")
    assert f"{name} is not for --engine spark" in capsys.readouterr().err


def test_without_pyspark_the_error_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    assert base64_command.main(["--data_dir=.", "--file_list=list", "--nranks=2", "--engine=spark"]) == 1
    assert capsys.readouterr().err == (
        "plsc: error: --engine spark: PySpark is not installed; run pip install '.[spark]' in the plsc clone\n"
    )


@needs_spark
def test_the_handler_of_ctrl_c_is_restored(monkeypatch):
    """The handler that PySpark leaves behind fails once its session has ended."""
    from pyspark.sql import SparkSession

    from plsc.shuffle.spark_session import spark_context

    class Builder:
        def appName(self, name):  # noqa: N802 - Spark's name
            return self

        def getOrCreate(self):  # noqa: N802
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return SimpleNamespace(sparkContext=SimpleNamespace(master="yarn"), stop=lambda: None)

    monkeypatch.setattr(SparkSession, "builder", Builder())
    monkeypatch.setattr(SparkSession, "getActiveSession", staticmethod(lambda: None))
    before = signal.getsignal(signal.SIGINT)
    with spark_context("name"):
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before
