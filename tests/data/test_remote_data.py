"""Data sets in a store, read through the cache in one process."""

import contextlib
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.config import Config, DataCache
from plsc.data import base64_source, remote, sources
from plsc.data.class_sampler import ClassSampler
from plsc.data.damaged import is_damage
from plsc.data.exclusion import leave_out
from plsc.data.fetched import FetchedRecords, largest_use
from plsc.data.place import Place
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import Record, Records
from plsc.data.remote_folder import RemoteFolder
from plsc.data.sampler import mixed_turns
from plsc.data.sources import Format
from plsc.datasets.conversion import Conversion, convert
from plsc.errors import ConfigError, DataError
from plsc.evaluation.build import open_inputs
from plsc.storage.address import split_address
from plsc.storage.data_cache import CachedFolder
from plsc.storage.local import LocalStorage
from plsc.storage.login import Login

IN_FLIGHT = 4


@pytest.fixture(scope="module")
def split(glyphs, tmp_path_factory):
    """96 images in 24 files."""
    from plsc.shuffle.local import shuffle_base64
    from plsc.shuffle.plan import Options

    folder = tmp_path_factory.mktemp("data") / "split"
    shuffle_base64(Options(str(glyphs), "file_list.txt", 24, str(folder), workers=1))
    return folder


@pytest.fixture
def small_window(monkeypatch):
    """As if files were much larger than the window in which lines are mixed."""
    monkeypatch.setattr(base64_source, "WINDOW_BLOCKS", 1)


def place_of(folder, cache, size=10**9):
    return Place(split_address("x", f"file://{folder}"), cache, size, Login(patience=0.0))


def open_images(folder, cache, size=10**9, data_format="auto", shuffle=None):
    return remote.open_images(place_of(folder, cache, size), 12, data_format, shuffle, IN_FLIGHT)


def read_epochs(records, epochs, begin=0):
    """Returns what the loader reads, one image after the other."""
    found = []
    for epoch in range(epochs):
        order = records.epoch_order(3, epoch, 0, 1)[begin:]
        records.will_read(order)
        found.append([records.read(i) for i in order.tolist()])
    return found


@pytest.fixture
def counted(monkeypatch):
    """The files that are fetched, in their order."""
    fetched, download = [], CachedFolder._download

    def count(self, file, *arguments):
        fetched.append(file.name)
        download(self, file, *arguments)

    monkeypatch.setattr(CachedFolder, "_download", count)
    return fetched


def test_a_cache_that_holds_all_gives_the_order_of_the_disk_and_fetches_once(split, tmp_path, counted):
    wanted = read_epochs(sources.open_images(str(split), 12, 0, 1), 2)
    for _ in range(2):
        records, shuffle = open_images(split, tmp_path / "cache")
        assert shuffle is None and read_epochs(records, 2) == wanted
        assert records.labels().tolist() == sources.open_images(str(split), 12, 0, 1).labels().tolist()
        records.close()
    assert len(counted) == len(set(counted)) == 24 + 24 + 1


def test_a_cache_that_is_smaller_reads_the_files_in_turn_within_its_bound(split, tmp_path, counted, small_window):
    total = sum(path.stat().st_size for path in split.glob("base64_rank_*"))
    small = sum(path.stat().st_size for path in split.glob("base64_[im]*"))
    size = small + total // 3
    most, done = [0], threading.Event()

    def files():
        sizes = {}
        for path in Path(tmp_path / "cache").glob("plsc_*/[fp]*/*"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes

    def watch():
        while not done.wait(0.002):
            before, after = files(), files()
            if before.keys() == after.keys():  # none came, went or got another name while they were counted
                most[0] = max(most[0], sum(before.values()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    records, shuffle = open_images(split, tmp_path / "cache", size)
    assert shuffle == "files" and records.budget < total / 3
    local = sources.open_images(str(split), 12, 0, 1, shuffle="files")
    assert read_epochs(records, 2) == read_epochs(local, 2)
    assert read_epochs(records, 1, begin=50)[0] == read_epochs(local, 1, begin=50)[0], "in the middle, after a resume"
    done.set()
    watcher.join()
    records.close()
    assert 0 < most[0] <= size
    images = [name for name in counted if name.startswith("base64_rank")]
    assert len(set(images)) == 24 and len(images) <= 3 * 24, "no file more than once an epoch"
    with pytest.raises(DataError, match="the labels of all images are needed"):
        records.labels()


def test_wrappers_draw_from_all_files_as_from_a_disk(split, tmp_path, small_window):
    names = sources.open_images(str(split), 12, 0, 1)
    (tmp_path / "list").write_text("".join(f"{names.name(i)}\n" for i in range(0, 96, 7)))
    wrap = [lambda one: leave_out(one, tmp_path / "list"), lambda one: ClassSampler(one, 8)]
    for number, wrapper in enumerate(wrap):
        place = place_of(split, tmp_path / f"cache{number}")
        fetched, shuffle = remote.open_images(place, 12, "auto", None, IN_FLIGHT, is_split=False)
        records = wrapper(fetched)
        assert shuffle is None
        assert read_epochs(records, 2) == read_epochs(wrapper(sources.open_images(str(split), 12, 0, 1)), 2)
        records.close()
        assert not list(place.cache_dir.glob("plsc_claims/*"))
    with pytest.raises(ConfigError, match="a machine keeps all files, 1.. kB, but the data cache has 100 kB; give set"):
        remote.open_images(place_of(split, tmp_path / "cache", 100_000), 12, "auto", None, IN_FLIGHT, is_split=False)


@pytest.mark.parametrize("share", [1, 1 / 3])
def test_images_may_be_read_in_any_order_without_notice(split, tmp_path, counted, small_window, share):
    """As a wrapper does that says nothing about what it reads."""
    sizes = [path.stat().st_size for path in split.glob("base64_*")]
    records, _ = open_images(split, tmp_path / "cache", int(sum(sizes) * share) + 1)
    local = sources.open_images(str(split), 12, 0, 1)
    order = np.random.default_rng(0).permutation(96)[:30].tolist()
    assert [records.read(i) for i in order] == [local.read(i) for i in order]
    records.close()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32))
def test_groups_come_in_turn_and_neighbours_are_mixed(each, groups, width, seed):
    numbers = np.repeat(np.arange(groups), each)
    turns = mixed_turns(numbers, width, np.random.default_rng(seed))
    assert sorted(turns.tolist()) == list(range(len(numbers)))
    in_order = numbers[np.argsort(turns)]
    assert largest_use(in_order, np.ones(groups, np.int64), 0) <= width + 1
    uses = [np.flatnonzero(in_order == group) for group in range(groups)]
    naive = max(sum(use[0] <= place < use[-1] + 3 for use in uses) for place in range(len(in_order)))
    assert largest_use(in_order, np.ones(groups, np.int64), 2) == naive


def test_two_runs_share_what_both_read(split, tmp_path, counted):
    one, two = (open_images(split, tmp_path / "cache")[0] for _ in range(2))
    assert read_epochs(one, 1) == read_epochs(two, 1) and len(set(counted)) == len(counted)
    total = sum(path.stat().st_size for path in split.glob("base64_[rim]*"))
    with pytest.raises(ConfigError, match="too small|running processes use"):
        open_images(tmp_copy(split, tmp_path), tmp_path / "cache", total + 10)
    one.close()
    two.close()


def tmp_copy(split, tmp_path):
    shutil.copytree(split, tmp_path / "copy", dirs_exist_ok=True)
    return tmp_path / "copy"


BAD = {
    "no-manifest": (lambda f: (f / "base64_manifest.json").unlink(), {}, DataError, "holds no data to train on: no ba"),
    "unsplit": (lambda f: ((f / "base64_manifest.json").unlink(), (f / "file_list.txt").touch()), {}, DataError,
                r"manifest.json: missing, .* plsc data convert file://.*/copy NEW --to base64 --ranks 1"),
    "list": (lambda f: ((f / "base64_manifest.json").unlink(), (f / "label.txt").write_text("x.jpg 1\n")), {},
             DataError, "^file://.*/copy/label.txt:1: image file 'x.jpg' is missing .*relative to file://.*/copy"),
    "tree": (lambda f: (shutil.rmtree(f), (f / "train" / "0").mkdir(parents=True), (f / "train/0/x.jpg").touch()), {},
             DataError, "'train' seems to hold a whole data set, .*; call set_dataset_dir.'file://.*/copy/train'."),
    "flat": (lambda f: (shutil.rmtree(f), f.mkdir(), (f / "x.jpg").touch()), {}, DataError, "and no folders with ima"),
    "missing": (shutil.rmtree, {}, DataError, "copy: no such file or folder; plsc fs ls file://.* shows what is there"),
    "short": (lambda f: (f / "base64_rank_7").write_text("x"), {}, DataError, "rank_7: has 1 byte, but the manifest"),
    "gone": (lambda f: (f / "base64_rank_7").unlink(), {}, DataError, "base64_rank_7: is missing; write"),
    "no-index": (lambda f: (f / "base64_index_7.npy").unlink(), {}, DataError, "base64_index_7.npy: is missing"),
    "full": (lambda f: None, {"size": 100_000, "shuffle": "full"}, ConfigError, "'full' reads all files at the same"),
    "small": (lambda f: None, {"size": 18_000}, ConfigError, "18 kB is too small: each rank needs .* --nranks"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_said_in_a_line(split, tmp_path, case, small_window):
    change, options, kind, words = BAD[case]
    folder = tmp_copy(split, tmp_path)
    change(folder)
    with pytest.raises(kind, match=words) as caught:
        open_images(folder, tmp_path / "cache", **options)
    assert "\n" not in str(caught.value) and not list((tmp_path / "cache").glob("plsc_claims/*"))


def test_a_file_that_changes_while_it_is_trained_on_ends_the_epoch_with_its_name(split, tmp_path):
    folder = tmp_copy(split, tmp_path)
    records, _ = open_images(folder, tmp_path / "cache")
    for path in folder.glob("base64_rank_*"):
        path.write_bytes(path.read_bytes())
        path.touch()
    with pytest.raises(DataError, match=r"base64_rank_\d+: has changed on the server since this run listed") as caught:
        read_epochs(records, 1)
    assert not is_damage(caught.value), "set_skip_damaged is about images"
    records.close()


def test_any_error_of_a_fetching_thread_ends_the_reader(split, tmp_path, monkeypatch):
    def broken(self, file, *arguments):
        raise RuntimeError("a bug")

    records, _ = open_images(split, tmp_path / "cache")
    monkeypatch.setattr(CachedFolder, "try_fetch", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        read_epochs(records, 1)
    records.close()


class Lines(Records):
    """A format of one image per file, which stands for those whose files are all needed."""

    def __init__(self, path):
        self._paths = sorted(Path(path).glob("*.tar"))
        self.num_images = len(self._paths)

    def name(self, i):
        return self._paths[i].name

    def where(self, i):
        return str(self._paths[i])

    def read(self, i):
        return self._paths[i].read_bytes(), i

    def labels(self):
        return np.arange(self.num_images)

    def digests(self):
        return {}


def test_files_of_other_formats_are_fetched_as_a_whole(tmp_path, monkeypatch, counted):
    monkeypatch.setitem(
        sources.FORMATS, "tar", Format(lambda path: bool(list(Path(path).glob("*.tar"))), lambda o: Lines(o.path), "")
    )
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b.tar", "a.tar", "a.json", "README", "movie.mp4", "lfw.bin"):
        (folder / name).write_bytes(name.encode() * 10)
    records, _ = open_images(folder, tmp_path / "cache")
    assert [records.read(i)[0] for i in range(2)] == [b"a.tar" * 10, b"b.tar" * 10]
    assert sorted(counted) == ["a.json", "a.tar", "b.tar"]
    counted.clear()
    open_images(folder, tmp_path / "other", 100)[0].close()
    assert counted == ["a.json"], "tars that do not fit are read in place"


@pytest.fixture(scope="module")
def images(glyphs, tmp_path_factory):
    """The glyphs as a list of images, and as a folder for each class."""
    root = tmp_path_factory.mktemp("images")
    shutil.copytree(glyphs, root / "jpeg")
    convert(Conversion(str(glyphs), str(root / "folder"), "folder", workers=1), lambda *a: None)
    shutil.copytree(glyphs / "held_out", root / "folder" / "held_out")
    return root


@pytest.mark.parametrize("kind", ["jpeg", "folder"])
@pytest.mark.parametrize("size", [10**9, 20_000])
def test_single_images_give_what_the_disk_gives(images, tmp_path, counted, kind, size):
    options = {"test_sets": ["glyphs", "held_out"]}
    wanted = sources.open_images(str(images / kind), 12, 0, 1, **options)
    for _ in range(2):
        records, shuffle = remote.open_images(
            place_of(images / kind, tmp_path / "cache", size), 12, "auto", None, IN_FLIGHT, **options
        )
        assert shuffle is None and records.digests() == wanted.digests() and records.where(5).startswith("file://")
        assert list(records.class_names) == list(wanted.class_names)
        assert read_epochs(records, 2, begin=30) == read_epochs(wanted, 2, begin=30)
        records.close()
    lists = {"jpeg": ["classes.txt", "label.txt"], "folder": ["classes.txt"]}[kind]
    names = [wanted.name(i) for i in range(96)] if size > 10**6 else []
    assert sorted(counted) == sorted(lists + names), "nothing else, and each file once"


def test_missing_and_damaged_images_are_named_by_their_address(images, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(images / "jpeg", folder)
    lines = (folder / "label.txt").read_text().splitlines()
    (folder / lines[3].rpartition(" ")[0]).unlink()
    for name, size in (("all", 10**9), ("none", 20_000)):
        with pytest.raises(
            DataError, match=rf"^file://{folder}/label.txt:4: image file .* is missing \(1 missing in all"
        ):
            open_images(folder, tmp_path / name, size)
        records, _ = remote.open_images(
            place_of(folder, tmp_path / name, size), 12, "auto", None, IN_FLIGHT, accepts_missing=True
        )
        with pytest.raises(DataError, match=rf"^file://{folder}/label.txt:4: cannot read image") as caught:
            records.read(3)
        assert is_damage(caught.value)
        records.close()


@pytest.mark.parametrize("size", [10**9, 2000])
def test_a_wrong_label_that_is_found_later_is_named_by_its_address(tmp_path, size):
    (tmp_path / "data").mkdir()
    writer = RecordIOWriter(tmp_path / "data" / "train.rec")
    for label in range(3):
        writer.add(Record("a", bytes(2000), label))
    writer.close()
    (tmp_path / "data" / "property").write_text("2,112,112")
    records, _ = remote.open_images(
        place_of(tmp_path / "data", tmp_path / "cache", size), None, "auto", None, IN_FLIGHT
    )
    with pytest.raises(
        DataError, match=rf"^file://{tmp_path}/data/train.rec: record 3, at byte \d+: label 2 is outside"
    ):
        records.labels()
    records.close()


def test_tars_in_a_usual_subfolder_are_found(images, tmp_path):
    convert(Conversion(str(images / "jpeg"), str(tmp_path / "hub" / "data"), "tar", workers=1), lambda *a: None)
    records, _ = open_images(tmp_path / "hub", tmp_path / "cache")
    assert read_epochs(records, 1) == read_epochs(sources.open_images(str(tmp_path / "hub"), 12, 0, 1), 1)
    records.close()


def test_images_that_are_read_twice_let_no_file_go_early(split, tmp_path, counted, small_window):
    """As replacements for damaged images are."""
    size = sum(path.stat().st_size for path in split.glob("base64_*")) // 3
    records, _ = open_images(split, tmp_path / "cache", size)
    for epoch in range(2):
        # The source does not say which epoch comes next, of which some files would be fetched during the last one.
        order = (records if epoch == 0 else records._source).epoch_order(3, epoch, 0, 1)
        records.will_read(order)
        for i in order.tolist():
            number = records.file_of(i)
            if records._left[number] == 1:
                records.read(i)
            records.read(i)
            if records._left[number] <= 0:
                assert records._turn[number] >= 24, "it makes room for any other file"
                assert records._taken <= records.budget
    records.close()
    images = [name for name in counted if name.startswith("base64_rank")]
    assert len(set(images)) == 24 and len(images) <= 2 * 24, "no file more than once an epoch"


@pytest.fixture
def records(tmp_path):
    """A folder with train.rec and train.idx of 3 images, and a function that replaces them."""
    folder = tmp_path / "data"

    def write(count):
        writer = RecordIOWriter(folder / "train.rec", ["a", "b"])
        for number in range(count):
            writer.add(Record(str(number), b"%d" % number, number % 2))
        writer.close()

    folder.mkdir()
    write(3)
    return folder, write


def test_files_that_were_removed_on_the_server_are_not_trained_on(records, tmp_path, counted):
    folder, write = records
    first, _ = open_images(folder, tmp_path / "cache")
    assert first.num_images == 3 and first.class_names
    write(5)
    (folder / "train.idx").unlink()
    (folder / "classes.txt").unlink()
    with pytest.raises(ConfigError, match=r"data/classes.txt: was removed on the server, and a running process uses"):
        open_images(folder, tmp_path / "cache")
    first.close()
    for _ in range(2):
        second, _ = open_images(folder, tmp_path / "cache")
        assert second.num_images == 5 and not second.class_names
        second.close()
    cached = [path.name for path in (tmp_path / "cache").glob("plsc_*/files/*")]
    assert sorted(cached) == ["property", "train.rec"], "plsc adds no index"
    next((tmp_path / "cache").glob("plsc_*/files")).joinpath("train.idx").touch()
    with pytest.raises(ConfigError, match="train.idx: is in the data cache, but plsc has not fetched it; move it away"):
        open_images(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("plsc_claims/*"))


def test_waiting_for_data_is_logged_and_ends_when_the_data_is_closed(split, tmp_path, monkeypatch, caplog):
    release, read = threading.Event(), LocalStorage.read

    def slow(self, path, offset, count):
        if "rank" in path:
            release.wait(20)
        yield from read(self, path, offset, count)

    monkeypatch.setattr(LocalStorage, "read", slow)
    monkeypatch.setattr("plsc.data.fetched._FIRST_LINE", 0.1)
    monkeypatch.setattr("plsc.data.fetched._NEXT_LINES", 0.1)
    monkeypatch.setattr("plsc.data.fetched.logger.propagate", True)
    records, _ = open_images(split, tmp_path / "cache")
    problems = []

    def read_one():
        try:
            read_epochs(records, 1)
        except DataError as problem:
            problems.append(str(problem))

    thread = threading.Thread(target=read_one)
    thread.start()
    deadline = time.monotonic() + 60
    while len([one for one in caplog.messages if "reading has waited" in one]) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    records.close()
    thread.join(20)
    assert problems and "closed" in problems[0] and any("base64_rank" in one for one in caplog.messages)
    release.set()


def test_other_ranks_wait_for_this_one_while_it_fetches(split, glyphs, tmp_path, monkeypatch):
    inside, outside = threading.local(), []

    @contextlib.contextmanager
    def working():
        inside.depth = getattr(inside, "depth", 0) + 1
        yield
        inside.depth -= 1

    def watched(kind, name):
        action = getattr(kind, name)

        def watch(self, *arguments, **options):
            if not getattr(inside, "depth", 0):
                outside.append((name, arguments))
            return action(self, *arguments, **options)

        monkeypatch.setattr(kind, name, watch)

    monkeypatch.setattr("plsc.parallel.working", working)
    watched(RemoteFolder, "keep")
    watched(FetchedRecords, "_wait")
    records, _ = open_images(split, tmp_path / "cache")
    assert len(records.labels()) == 96
    records.close()
    (tmp_path / "rec").mkdir()
    writer = RecordIOWriter(tmp_path / "rec" / "train.rec", ["a"])
    writer.add(Record("x", b"x", 0))
    writer.close()
    open_images(tmp_path / "rec", tmp_path / "cache")[0].close()
    with open_inputs(Config(data_cache=DataCache(str(tmp_path / "cache"), 10**9))) as inputs:
        inputs.test_sets([f"file://{glyphs}"], "glyphs")
    assert not outside
