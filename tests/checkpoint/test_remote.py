"""Checkpoints in a store: several ranks upload them, they appear when complete, and downloads are checked."""

import json
import os
import threading

import pytest
from checkpoint_folders import make_checkpoint, same_files

from plsc import checkpoint
from plsc.checkpoint import remote, tensor_file
from plsc.checkpoint.folder import META
from plsc.errors import ConfigError
from plsc.storage import LocalStorage, Retrying, StorageError, StorageUnavailableError
from plsc.storage.objects import ObjectStorage
from plsc.storage.transfer import OpenFile

BLOCK = 1 << 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (tensor_file, remote, checkpoint.folder):
        monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK)


def object_storage(root):
    """Returns a store that cannot rename, in a folder of this machine."""
    local = pytest.importorskip("fsspec.implementations.local")
    return ObjectStorage(local.LocalFileSystem(skip_instance_cache=True), str(root), "objects", has_folders=True)


@pytest.fixture(params=["folder", "objects"])
def store(request, tmp_path):
    (tmp_path / "store").mkdir()
    return Retrying({"folder": LocalStorage, "objects": object_storage}[request.param](tmp_path / "store"), 0)


def upload(store, folder, path, names=None):
    text = (folder / META).read_bytes()
    if names is None:
        names = [file.name for file in folder.iterdir() if file.name != META]
    files = {name: OpenFile.open(folder / name) for name in names}
    remote.upload_files(store, path, text, files, threading.Event())
    for file in files.values():
        file.close()
    return text


def publish(store, path, text, patience=0.0):
    remote.publish(store, path, text, patience, threading.Event())


def test_a_checkpoint_appears_once_all_ranks_have_uploaded_their_files(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_POLL_SECONDS", 0.01)
    text = make_checkpoint(tmp_path / "0")
    own = [checkpoint.BACKBONE, checkpoint.OPTIMIZER, checkpoint.head_file(0)]
    upload(store, tmp_path / "0", "runs/0", own)
    with pytest.raises(StorageError, match="rank@00001.safetensors did not arrive"):
        publish(store, "runs/0", text)
    assert remote.list_remote(store, "runs") == []
    other = threading.Timer(0.1, upload, [store, tmp_path / "0", "runs/0", [checkpoint.head_file(1)]])
    other.start()
    publish(store, "runs/0", text, patience=30)
    other.join()
    (found,) = remote.list_remote(store, "runs")
    assert found.path == "runs/0" and found.meta_text == text and same_files(tmp_path / "store/runs/0", tmp_path / "0")
    assert list(store.list("runs")) == ["0"]


def test_a_rank_that_is_slower_than_patience_is_waited_for_while_it_says_that_it_works(store, tmp_path, monkeypatch):
    """In an object store its file is not seen before it is complete."""
    monkeypatch.setattr(remote, "_POLL_SECONDS", 0.01)
    text = make_checkpoint(tmp_path / "0")
    upload(store, tmp_path / "0", "0", [checkpoint.BACKBONE, checkpoint.OPTIMIZER, checkpoint.head_file(0)])
    with pytest.raises(StorageError, match="did not arrive"):
        remote.publish(store, "0", text, 0.1, threading.Event(), lambda: 0.2)
    other = threading.Timer(0.5, upload, [store, tmp_path / "0", "0", [checkpoint.head_file(1)]])
    other.start()
    remote.publish(store, "0", text, 0.1, threading.Event(), lambda: 0.05)
    other.join()
    assert same_files(tmp_path / "store/0", tmp_path / "0")


def test_complete_files_are_not_uploaded_again_but_short_ones_are(store, tmp_path):
    text = make_checkpoint(tmp_path / "0")
    upload(store, tmp_path / "0", "0")
    hidden = tmp_path / "store" / remote.hidden_of("0", text)
    before = {path.name: path.stat().st_mtime_ns for path in hidden.iterdir()}
    (hidden / checkpoint.BACKBONE).write_bytes(b"half")
    upload(store, tmp_path / "0", "0")
    after = {path.name: path.stat().st_mtime_ns for path in hidden.iterdir()}
    assert [name for name in before if after[name] != before[name]] == [checkpoint.BACKBONE]
    publish(store, "0", text)
    assert same_files(tmp_path / "store/0", tmp_path / "0")


def test_a_checkpoint_replaces_another_one_but_nothing_else(store, tmp_path):
    old, text = make_checkpoint(tmp_path / "old"), make_checkpoint(tmp_path / "0", step=5, seed=1)
    for name in ("old", "0"):
        upload(store, tmp_path / name, "runs/0")
        publish(store, "runs/0", {"old": old, "0": text}[name])
        assert same_files(tmp_path / "store/runs/0", tmp_path / name)
    (tmp_path / "store/runs/0/notes.txt").write_text("mine")
    upload(store, tmp_path / "old", "runs/0")
    with pytest.raises(StorageError, match="something that is not a checkpoint has that name"):
        publish(store, "runs/0", old)
    with pytest.raises(StorageError, match="something that is not a checkpoint has that name"):
        remote.remove(store, remote.open_remote(store, "runs/0"))
    assert (tmp_path / "store/runs/0/notes.txt").exists()
    (tmp_path / "store/runs/1").write_text("a file")
    upload(store, tmp_path / "old", "runs/1")
    with pytest.raises(StorageError, match="something that is not a checkpoint has that name"):
        publish(store, "runs/1", old)


@pytest.mark.parametrize("renames", [True, False])
def test_an_upload_that_dies_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path, renames):
    class Died(Exception):
        pass

    class Mortal(LocalStorage):
        """A store that dies at call number `left`."""

        def __init__(self, root, left):
            super().__init__(root)
            self.left = left

        def __getattribute__(self, name):
            if name in ("write", "rename", "delete", "mkdirs"):
                self.left -= 1
                if self.left < 0:
                    raise Died
            return super().__getattribute__(name)

    def mortal_objects(root, left):
        storage, calls = object_storage(root), ("pipe_file", "cp_file", "rm_file", "rm")

        class Calls:
            async_impl = False

            def __getattr__(self, name):
                nonlocal left
                left -= name in calls
                if left < 0:
                    raise Died
                return getattr(storage._system, name)

        return ObjectStorage(Calls(), str(root), "objects", has_folders=True)

    make, dies = (LocalStorage, Mortal) if renames else (object_storage, mortal_objects)
    died_as = Died if renames else (Died, StorageError)
    old, new = make_checkpoint(tmp_path / "old", run="aa"), make_checkpoint(tmp_path / "new", run="aa", step=9, seed=2)
    for left in range(100):
        root = tmp_path / f"store {left}"
        root.mkdir()
        sound = Retrying(make(root), 0)
        upload(sound, tmp_path / "old", "0")
        publish(sound, "0", old)
        try:
            mortal = Retrying(dies(root, left), 0)
            upload(mortal, tmp_path / "new", "0")
            publish(mortal, "0", new)
            break
        except died_as:
            remote.recover(sound, "", "aa")
            (found,) = remote.list_remote(sound, "")
            assert found.meta_text in (old, new)
            assert [path.name for path in root.iterdir()] == ["0"]
            assert same_files(root / "0", tmp_path / ("old" if found.meta_text == old else "new"))
    # mkdirs, 4 files and their names, meta.json, 2 renames and 2 removals.
    # Objects: 5 files, 6 removals, 5 copies, 6 removals.
    assert left == (14 if renames else 5 + 6 + 5 + 6)


class Checking(LocalStorage):
    """A store that looks at each file after it has written it, as HDFS's stores do; `meanwhile` other ranks work."""

    def __init__(self, root, meanwhile, loses_answers):
        super().__init__(root)
        self.meanwhile, self.loses_answers = meanwhile, loses_answers

    def write(self, path, chunks, size):
        super().write(path, chunks, size)
        self.meanwhile()
        if self.status(path) is None:
            raise StorageUnavailableError(f"{path}: the server kept 0 of {size} bytes")

    def rename(self, source, target):
        super().rename(source, target)
        self.meanwhile()
        if self.loses_answers:
            raise StorageUnavailableError(f"{target}: the answer was lost")


@pytest.mark.parametrize("loses_answers", [False, True])
def test_a_slow_rank_does_not_bring_back_the_hidden_folder_of_a_published_checkpoint(tmp_path, loses_answers):
    text, root = make_checkpoint(tmp_path / "0"), tmp_path / "store"
    root.mkdir()
    fast = Retrying(LocalStorage(root), 0)

    def publish_if_complete():
        try:
            publish(fast, "runs/0", text)
        except StorageError as problem:
            assert "did not arrive" in str(problem)

    own = [checkpoint.BACKBONE, checkpoint.OPTIMIZER, checkpoint.head_file(0)]
    upload(fast, tmp_path / "0", "runs/0", own)
    slow = Retrying(Checking(root, publish_if_complete, loses_answers), 5)
    upload(slow, tmp_path / "0", "runs/0", [checkpoint.head_file(1)])
    assert list(fast.list("runs")) == ["0"] and same_files(root / "runs/0", tmp_path / "0")
    upload(fast, tmp_path / "0", "runs/0", [])  # a rank without files of its own comes last
    assert list(fast.list("runs")) == ["0"]


def test_what_other_runs_left_stays(store, tmp_path):
    text = make_checkpoint(tmp_path / "0", run="aa")
    upload(store, tmp_path / "0", "0")
    (tmp_path / "store/.mine.writing").mkdir()
    assert remote.recover(store, "", "bb") == []
    assert sorted(store.list("")) == [remote.hidden_of("0", text), ".mine.writing"]
    assert len(remote.recover(store, "", "aa")) == 1 and sorted(store.list("")) == [".mine.writing"]


def test_checkpoints_of_other_runs_are_set_aside_and_those_of_this_run_stay(store, tmp_path):
    made = {"0": "aa", "step_9": "aa", "1": "bb", "other": "aa", "3": None}
    for name, run in made.items():
        make_checkpoint(tmp_path / "store/runs" / name, **({} if run is None else {"run": run}))
    make_checkpoint(tmp_path / "store/runs/2", run="aa")
    (tmp_path / "store/runs/2" / checkpoint.BACKBONE).write_bytes(b"short")
    (tmp_path / "store/runs/7").mkdir()  # no checkpoint
    (tmp_path / "store/runs/earlier_1").mkdir()
    assert remote.set_aside(store, "runs", "bb") == ("runs/earlier_2", 4)
    assert sorted(store.list("runs")) == ["1", "7", "earlier_1", "earlier_2", "other"]
    assert sorted(store.list("runs/earlier_2")) == ["0", "2", "3", "step_9"]
    assert remote.set_aside(store, "runs", "bb") == ("", 0) and "earlier_3" not in store.list("runs")
    # A restarted run that began with one of them finds it where it is now.
    assert remote.find_aside(store, "runs/0", "runs/").path == "runs/earlier_2/0"
    assert [remote.find_aside(store, *one) for one in (("runs/0", None), ("runs/0", "run"), ("runs/8", "runs"))] == (
        [None] * 3
    )


def test_a_checkpoint_that_was_moved_is_not_removed(store, tmp_path):
    make_checkpoint(tmp_path / "store/0")
    found = remote.open_remote(store, "0")
    store.rename("0", "mine")
    remote.remove(store, found)
    assert sorted(store.list("")) == ["mine"]


def test_the_newest_is_the_one_written_last(store, tmp_path):
    for name, written in (("5", 3.0), ("step_9", 7.0), ("0", 5.0), ("other", 9.0)):
        make_checkpoint(tmp_path / "store/runs" / name, written=written)
    (tmp_path / "store/runs/step_9" / checkpoint.BACKBONE).write_bytes(b"short")
    make_checkpoint(tmp_path / "store/runs/1", written=8.0)
    (tmp_path / "store/runs/1" / META).write_text("{")
    (tmp_path / "store/runs/2").mkdir()
    assert [one.path for one in remote.list_remote(store, "runs")] == ["runs/5", "runs/0"]
    assert remote.newest(store, "runs").path == "runs/0" and remote.newest(store, "absent") is None


def test_the_newest_is_the_last_one_of_the_run_that_began_last(store, tmp_path):
    for name, began, step, written in (
        ("5", 2.0, 30, 3.0),
        ("0", 2.0, 5, 9.0),
        ("7", 1.0, 40, 8.0),
        ("1", None, 50, 1.5),
    ):
        entries = {} if began is None else {"began": began}  # earlier versions did not record it
        make_checkpoint(tmp_path / "store/runs" / name, step=step, written=written, **entries)
    found = [one.path for one in remote.list_remote(store, "runs")]
    assert found == ["runs/7", "runs/1", "runs/0", "runs/5"]


def fetch(store, folder, path="0"):
    found, seen = remote.open_remote(store, path), []
    remote.download(store, found, folder, found.checkpoint.files, seen.append)
    remote.finish_download(found, folder)
    return sum(seen)


def test_a_download_is_equal_to_the_bit_and_a_second_one_changes_nothing(store, tmp_path):
    make_checkpoint(tmp_path / "store/0")
    total = fetch(store, tmp_path / "new/folder")
    assert same_files(tmp_path / "new/folder", tmp_path / "store/0")
    assert checkpoint.open_checkpoint(tmp_path / "new/folder").files
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "new/folder").iterdir()}
    assert fetch(store, tmp_path / "new/folder") == total
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "new/folder").iterdir()}


def test_an_interrupted_download_resumes_and_checks_what_it_has(store, tmp_path):
    text = make_checkpoint(tmp_path / "store/0")
    reads = []

    class Counting(LocalStorage):
        def read(self, path, offset, count):
            reads.append((os.path.basename(path), offset))
            return super().read(path, offset, count)

    part = remote._part_of(tmp_path / "to" / checkpoint.BACKBONE, text)
    part.parent.mkdir()
    data = (tmp_path / "store/0" / checkpoint.BACKBONE).read_bytes()
    # Two good blocks, one that a power cut left as zeros, and a part of the next.
    part.write_bytes(data[: 2 * BLOCK] + bytes(BLOCK) + data[3 * BLOCK : 3 * BLOCK + 100])
    fetch(Retrying(Counting(tmp_path / "store"), 0), tmp_path / "to")
    assert same_files(tmp_path / "to", tmp_path / "store/0")
    assert (checkpoint.BACKBONE, 2 * BLOCK) in reads and (checkpoint.BACKBONE, 0) not in reads


@pytest.mark.parametrize("position", [0, BLOCK + 5, -1])
def test_a_file_that_was_changed_on_the_server_is_refused(store, tmp_path, position):
    make_checkpoint(tmp_path / "store/0")
    place = tmp_path / "store/0" / checkpoint.head_file(1)
    data = bytearray(place.read_bytes())
    data[position] ^= 1
    place.write_bytes(data)
    with pytest.raises(checkpoint.DamagedError, match=r"rank@00001.safetensors: its sha256 differs .* on the server"):
        fetch(store, tmp_path / "to")
    assert not (tmp_path / "to" / META).exists() and not (tmp_path / "to" / checkpoint.head_file(1)).exists()


def test_bytes_that_are_corrupted_once_in_transfer_are_read_again(tmp_path):
    class Noisy(LocalStorage):
        noise = True

        def read(self, path, offset, count):
            for chunk in super().read(path, offset, count):
                if self.noise and path.endswith(checkpoint.OPTIMIZER):
                    self.noise, chunk = False, chunk[:-1] + bytes([chunk[-1] ^ 1])
                yield chunk

    make_checkpoint(tmp_path / "store/0")
    fetch(Retrying(Noisy(tmp_path / "store"), 0), tmp_path / "to")
    assert same_files(tmp_path / "to", tmp_path / "store/0")


def test_another_checkpoint_is_never_overwritten(store, tmp_path):
    make_checkpoint(tmp_path / "store/0")
    make_checkpoint(tmp_path / "to", seed=3, step=4)
    kept = {path: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    with pytest.raises(ConfigError, match=r"holds another checkpoint than .*[ /]0; move it away"):
        fetch(store, tmp_path / "to")
    (tmp_path / "to" / META).unlink()
    del kept[tmp_path / "to" / META]
    with pytest.raises(ConfigError, match=r"another file than that of .*[ /]0; move it away"):
        fetch(store, tmp_path / "to")
    assert all(path.read_bytes() == data for path, data in kept.items())


def test_a_damaged_file_of_the_same_checkpoint_is_downloaded_again(store, tmp_path):
    make_checkpoint(tmp_path / "store/0")
    fetch(store, tmp_path / "to")
    (tmp_path / "to" / checkpoint.BACKBONE).write_bytes(b"torn")
    fetch(store, tmp_path / "to")
    assert same_files(tmp_path / "to", tmp_path / "store/0")


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"format": 99}', json.dumps({"format": 1}).encode()])
def test_a_folder_with_a_broken_meta_json_is_no_checkpoint(store, tmp_path, text):
    make_checkpoint(tmp_path / "store/0")
    (tmp_path / "store/0" / META).write_bytes(text)
    assert remote.list_remote(store, "") == []
