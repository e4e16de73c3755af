"""Object stores: a real S3 server that fails, one that lies, and what a user sees."""

import os
import threading
import time

import pytest

from plsc import storage
from plsc.errors import ConfigError
from plsc.storage import Retrying, StorageError, StorageUnavailableError, objects, open_hdfs
from plsc.storage.base import write_bytes
from plsc.storage.transfer import get, put, tree

pytest.importorskip("fsspec")

ADDRESS = "s3://bucket/tests"
SECRET = "s3cret/of+the=tests"


@pytest.fixture(scope="module")
def lying_session():
    pytest.importorskip("s3fs")
    from lying_s3 import LyingS3

    with LyingS3() as server:
        yield server


@pytest.fixture
def lying(lying_session, monkeypatch):
    """A server that lies, but not yet."""
    lying_session.reset()
    environment = {
        "AWS_ENDPOINT_URL": lying_session.url,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": f"t0ken{SECRET}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    return lying_session


@pytest.fixture
def sound(lying, lying_session):
    """A store on that server, which was opened before it lies; the tests share it, since to open one takes a second."""
    if lying_session.store is None:
        lying_session.store = open_hdfs(ADDRESS, None)
    return lying_session.store.with_patience(0)


@pytest.fixture
def place(s3, monkeypatch, tmp_path):
    """A store on the real server, and a folder in it."""
    monkeypatch.setattr(objects, "_PART_BYTES", 5 << 20)
    return open_hdfs(ADDRESS, None), tmp_path.name


def refused(action):
    """Returns the one line of a refusal, and whether it may pass."""
    with pytest.raises((StorageError, ConfigError)) as error:
        action()
    text = str(error.value)
    assert "\n" not in text and SECRET not in text and len(text) < 400, text
    return text, isinstance(error.value, StorageUnavailableError)


@pytest.mark.parametrize(
    ("status", "code", "words", "passes"),
    [
        (403, "AccessDenied", "No: AccessDenied; ask the owner of the bucket", False),
        (403, "InvalidAccessKeyId", "No: InvalidAccessKeyId; check the credentials", False),
        (403, "SignatureDoesNotMatch", "check the credentials", False),
        (400, "ExpiredToken", "check the credentials", False),
        (404, "NoSuchBucket", "no such bucket; make the bucket, or check its name", False),
        (301, "PermanentRedirect", "check the region and the endpoint", False),
        (400, "AuthorizationHeaderMalformed", "check the region and the endpoint", False),
        (503, "SlowDown", "No: SlowDown", True),
        (500, "InternalError", "No: InternalError", True),
        (502, "", "", True),
    ],
)
def test_what_a_server_refuses_is_one_line(lying, sound, status, code, words, passes):
    lying.refusal = (status, code)
    text, may_pass = refused(lambda: open_hdfs(ADDRESS, None))
    assert words in text and may_pass == passes and text.startswith(ADDRESS), text
    for action in (
        lambda: sound.write("x", lambda: [b"x"], 1),
        lambda: list(sound.read("x", 0, 1)),
        lambda: sound.list("x"),
        lambda: sound.delete("x"),
    ):
        text, may_pass = refused(action)
        assert may_pass == passes and text.startswith(ADDRESS), text


@pytest.mark.parametrize("name", ["..", ".", "../x", "/etc/x", "a/../../x", "a/b", "", "x/"])
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(lying, sound, tmp_path, name):
    (tmp_path / "target").mkdir()
    (tmp_path / "x").write_text("precious")
    lying.keys = ["tests/source/good", f"tests/source/{name}/" if name in ("", "..", "x/") else f"tests/source/{name}"]
    with pytest.raises(StorageError, match="the server lists .*, which is not the name of a file"):
        get(sound, "source", tmp_path / "target")
    assert os.listdir(tmp_path / "target") == [] and (tmp_path / "x").read_text() == "precious"


def test_a_name_that_the_store_cannot_have_is_named_with_what_to_do(sound):
    name = os.fsdecode(b"\xff.jpg")
    for action in (lambda: sound.write(name, lambda: [b"x"], 1), lambda: list(sound.read(name, 0, 1))):
        text, passes = refused(action)
        assert text.endswith("takes only names in UTF-8; rename the file, or put it into an archive") and not passes


@pytest.mark.parametrize("key", ["tests/other/x", "tests/sourcex", "tests/source/../x", "other"])
def test_nothing_is_removed_that_is_not_in_the_folder(lying, sound, key):
    lying.keys = ["tests/source/good", key]
    with pytest.raises(StorageError, match=r"the server lists .* there; check the server"):
        sound.delete("source")


def test_a_store_that_was_opened_before_a_fork_says_so_at_once(lying):
    store = open_hdfs(ADDRESS, None).with_patience(3600)
    store._storage._system._pid += 1  # what a forked process finds
    for action in (lambda: store.status("x"), lambda: list(store.read("x", 0, 1))):
        text, passes = refused(action)
        assert text.startswith(ADDRESS) and "was opened before this process was forked" in text and not passes


def test_a_removal_that_fails_for_some_files_is_tried_again_only_where_that_helps(lying, sound):
    """S3 answers with success, and lists the files that it could not remove."""
    lying.keys = ["tests/source/a"]
    for code, passes in (("SlowDown", True), ("InternalError", True), ("AccessDenied", False)):
        lying.kept = code
        text, may_pass = refused(lambda: sound.delete("source"))
        assert f"{code}: No" in text and may_pass == passes and ("ask the owner" in text) != passes, text
    lying.kept = "NoSuchKey"
    sound.delete("source")


def test_a_file_of_another_length_is_refused(lying, tmp_path):
    lying.keys, lying.size = ["tests/source/a"], 3
    store = open_hdfs(ADDRESS, None).with_patience(0)
    for body, words in ((b"x" * 1000, "sent 1,000 bytes instead of 3"), (b"x", "the connection ended after")):
        lying.body = body
        assert words in refused(lambda: get(store, "source/a", tmp_path / "target"))[0]
    lying.body, lying.cut = b"xxx", True
    assert refused(lambda: get(store, "source/a", tmp_path / "target"))[1]
    lying.cut, lying.size = False, 2**52
    assert "to be downloaded, but its disk has" in refused(lambda: get(store, "source/a", tmp_path / "target"))[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("redirect", [301, 302, 307])
def test_a_redirect_to_another_server_carries_no_credentials(lying, sound, redirect):
    lying.keys = ["tests/x"]
    lying.redirect = redirect
    for action in (lambda: list(sound.read("x", 0, 1)), lambda: sound.write("x", lambda: [b"x"], 1)):
        assert "check the region and the endpoint" in refused(action)[0]
    assert lying.strangers == []


def test_a_bucket_that_does_not_exist_and_a_server_that_is_away(s3, monkeypatch):
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.0)
    assert "s3://absent: no such bucket" in refused(lambda: open_hdfs("s3://absent", None))[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    text, passes = refused(lambda: open_hdfs(ADDRESS, None))
    assert passes and "127.0.0.1:9" in text
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nowhere")
    text, passes = refused(lambda: open_hdfs(ADDRESS, None))
    assert not passes and "no credentials" in text and "AWS_ACCESS_KEY_ID" in text


def test_credentials_in_fs_ugi_are_used_and_shown_nowhere(lying, monkeypatch, caplog):
    caplog.set_level("DEBUG", "plsc")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", "/nowhere")
    store = open_hdfs(ADDRESS, f"AKIAOWN,{SECRET}")
    lying.refusal = (403, "SignatureDoesNotMatch")
    text, _ = refused(lambda: store.status("x"))
    for shown in (text, repr(store), repr(store._storage), repr(vars(store)), caplog.text):
        assert SECRET not in shown


def test_a_server_that_hangs_is_given_up(place, s3, monkeypatch):
    store, folder = place
    monkeypatch.setattr(objects, "ANSWER_SECONDS", 2.0)  # long enough for a busy machine to open the store
    hanging = open_hdfs(ADDRESS, None).with_patience(0)
    with s3.hanging():
        for action in (
            lambda: hanging.status(folder),
            lambda: hanging.write(f"{folder}/x", lambda: [bytes(1 << 20)] * 11, 11 << 20),
            lambda: list(hanging.read(f"{folder}/x", 0, 1)),
        ):
            began = time.monotonic()
            _, passes = refused(action)
            assert passes and time.monotonic() - began < 30
    write_bytes(store.with_patience(30), f"{folder}/x", b"back")


def test_a_server_that_comes_back_during_an_upload_and_a_download(place, s3):
    store, folder = place
    store, data, happened = store.with_patience(60), os.urandom(22 << 20), []

    def chunks():
        for begin in range(0, len(data), 1 << 20):
            if begin == 12 << 20 and not happened:
                happened.append(s3.restart())
            yield data[begin : begin + (1 << 20)]

    store.write(f"{folder}/x", chunks, len(data))
    assert happened
    got = b""
    for chunk in store.read(f"{folder}/x", 0, len(data)):
        if not got:
            s3.restart()
        got += chunk
    assert got == data


def test_an_upload_that_fails_leaves_no_parts_and_a_killed_one_is_removed_with_its_folder(place, s3):
    store, folder = place

    def chunks():
        yield bytes(11 << 20)
        assert s3.unfinished() == [f"tests/{folder}/x"]
        raise StorageError("the disk broke")

    with pytest.raises(StorageError, match="the disk broke"):
        store.write(f"{folder}/x", chunks, 22 << 20)
    assert s3.unfinished() == [] and store.status(f"{folder}/x") is None
    for key in (f"tests/{folder}/y", f"tests/{folder}x"):
        s3.client().create_multipart_upload(Bucket="bucket", Key=key)
    store.delete(folder)
    assert s3.unfinished() == [f"tests/{folder}x"]


def test_parts_that_are_in_memory_at_the_same_time_are_few(monkeypatch):
    """A file system that is slow to take and quick to give: what waits for it is bounded."""
    import asyncio

    held, most = set(), []
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    class Slow:
        async_impl = True

        def __init__(self):
            self.loop = loop

        def split_path(self, path):
            return "bucket", path, None

        async def _call_s3(self, method, **options):
            if method == "upload_part":
                held.add(options["PartNumber"])
                most.append(len(held))
                await asyncio.sleep(0.002)
                held.discard(options["PartNumber"])
            return {"UploadId": "1", "ETag": "1"}

        async def _cat_file(self, place, start, end):
            held.add(start)
            await asyncio.sleep(0)
            most.append(len(held))
            return bytes(end - start)

        async def _info(self, place):
            return {"type": "file", "size": 100_000}

    monkeypatch.setattr(objects, "_PART_BYTES", 1000)
    store = objects.S3Storage(Slow(), "bucket", "slow")
    store.write("x", lambda: [bytes(300)] * 333 + [bytes(100)], 100_000)
    assert len(most) == 100 and max(most) <= 4
    most.clear()
    for number, part in enumerate(store.read("x", 0, 100_000)):
        assert len(part) == 1000
        held.discard(1000 * number)
    assert len(most) == 100 and max(most) <= 5
    loop.call_soon_threadsafe(loop.stop)


def test_a_checkpoint_is_uploaded_with_its_meta_json_last_and_removed_with_it_first(tmp_path, monkeypatch):
    store = open_hdfs("memory://order", None)
    calls, system = [], type(store._storage._system)
    for name in ("pipe_file", "rm_file"):
        method = getattr(system, name)
        monkeypatch.setattr(
            system, name, lambda self, path, *rest, _method=method, **more: (
                calls.append(path.rpartition("/")[2]), _method(self, path, *rest, **more)
            )[1],
        )  # fmt: skip
    (tmp_path / "19").mkdir()
    for name in ("backbone", "meta.json", "optimizer", "zzz"):
        (tmp_path / "19" / name).write_text("x")
    put(store, tmp_path / "19", "19")
    assert calls[-1] == "meta.json" and len(calls) == 4
    calls.clear()
    store.rename("19", "20")
    assert calls[0] == "meta.json" and sorted(tree(store, "20")) == ["backbone", "meta.json", "optimizer", "zzz"]
    with pytest.raises(ConfigError, match="already exists"):
        put(store, tmp_path / "19" / "zzz", "20/zzz")
    store.delete("20")


class Late:
    """A store whose listings show what there was some calls ago."""

    renames = False

    def __init__(self, storage):
        self._inner, self.name, self._seen = storage, storage.name, {}

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def list(self, path):
        before = self._seen.get(path)
        try:
            self._seen[path] = self._inner.list(path)
        except StorageError:
            if before is None:
                raise
        return self._seen[path] if before is None else before


def test_a_large_file_that_another_rank_has_moved_by_then_is_not_written_again(monkeypatch):
    class Moving(objects.ObjectStorage):
        def _write_parts(self, place, parts):
            super()._write_parts(place, parts)
            written.append(place)
            self._system.rm_file(place)  # the rank that publishes the checkpoint

    monkeypatch.setattr(objects, "_PART_BYTES", 10)
    inner, written = open_hdfs("memory://moved", None)._storage, []
    store = Retrying(Moving(inner._system, inner._root, inner.name), 30)
    store.write("x", lambda: [bytes(25)], 25)
    assert len(written) == 1 and store.status("x") is None


def test_a_checkpoint_is_found_whole_though_listings_are_late(tmp_path):
    from checkpoint_folders import make_checkpoint

    from plsc.checkpoint import remote
    from plsc.checkpoint.folder import META
    from plsc.storage.transfer import OpenFile

    store = Retrying(Late(open_hdfs("memory://late", None)._storage), 0)
    text = make_checkpoint(tmp_path / "0")
    names = [path.name for path in (tmp_path / "0").iterdir() if path.name != META]
    for name in names:  # the listing is that before each
        file = OpenFile.open(tmp_path / "0" / name)
        remote.upload_files(store, "runs/0", text, {name: file}, threading.Event())
        file.close()
    remote.publish(store, "runs/0", text, 0.0, threading.Event())
    assert remote.open_remote(store, "runs/0").meta_text == text
    store.delete("runs")


@pytest.mark.parametrize(
    ("address", "ugi", "words"),
    [
        ("s3://", None, "'s3://' names no bucket; expected s3://bucket/folder"),
        ("S3://", None, "names no bucket"),
        ("s3://b//x", None, "has a folder without a name; did you mean 's3://b/x'?"),
        ("s3://b/../x", None, "contains '..'; name the folder without it"),
        ("file:///tmp/../x", None, "contains '..'"),
        ("s3://a b", None, "expected s3://bucket"),
        ("s3://key:s3cret@bucket", None, "holds a user or a password"),
        ("s3://key:s3cret/with+slash@bucket", None, "holds a user or a password"),
        ("abfs://key:s3cret@host/x", None, "holds a user or a password"),
        ("s3://key@bucket", None, "holds a user or a password"),
        ("nosuch://bucket", None, "plsc does not know nosuch://, nor does fsspec"),
        ("memory://x", "a,b", "memory:// takes no fs_ugi"),
        ("file:///tmp", "a,b", "file:// takes no fs_ugi"),
        ("file://host/tmp", None, "expected file:///path"),
    ],
)
def test_a_bad_address_is_reported_in_one_line(address, ugi, words):
    text, passes = refused(lambda: open_hdfs(address, ugi))
    assert words in text and not passes and "s3cret" not in text


def test_a_package_that_is_missing_is_named(monkeypatch):
    import importlib.util

    import fsspec

    def absent(scheme):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    for address, extra in (("s3://b", "s3"), ("gs://b", "gcs"), ("abfs://b", "azure")):
        assert f"pip install 'plsc[{extra}]'" in refused(lambda address=address: open_hdfs(address, None))[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'plsc[s3]'" in refused(lambda: open_hdfs("s3://b", None))[0]
