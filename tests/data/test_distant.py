"""Data that is larger than the cache: it is read in place, gives what the disk gives, and takes no space."""

import contextlib
import os
import shutil
import threading

import numpy as np
import pytest

from plsc import cli
from plsc.config import Config
from plsc.config import DataCache as CacheSetting
from plsc.data import distant, recordio, remote, tar_shards
from plsc.data.collection import open_collection
from plsc.data.inputs import Inputs
from plsc.data.records import Record
from plsc.data.sources import open_images
from plsc.datasets.conversion import Conversion, convert
from plsc.datasets.opening import open_data
from plsc.errors import ConfigError, PlscError, StoppedError
from plsc.machine import mounts

FORMATS = ["jpeg", "folder", "tar", "recordio", "parquet"]
SMALL = 30_000  # bytes of a cache that holds lists and indexes, and not the images


@pytest.fixture(scope="module")
def data(glyphs, tmp_path_factory):
    """The glyphs in every format."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(glyphs, root / "jpeg")
    for to in ("folder", "tar", "recordio", "parquet"):
        if to == "parquet":
            pytest.importorskip("pyarrow")
        shards = 3 if to in ("tar", "parquet") else None
        convert(Conversion(str(glyphs), str(root / to), to, shards=shards, workers=1), lambda *a: None)
    for folder, _, names in os.walk(root):
        for name in names:  # files that are new may change without another time
            os.utime(os.path.join(folder, name), (1e9, 1e9))
    return root


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces that are small, as those of a large set are."""
    for name, value in (("_CHUNK", 5000), ("_KEPT", 20_000), ("_STRETCHES_AHEAD", 2), ("_IMAGES_AHEAD", 8)):
        monkeypatch.setattr(distant, name, value)
    for module in (recordio, tar_shards):
        monkeypatch.setattr(module, "_BLOCK_BYTES", 8000)


@pytest.fixture
def read(monkeypatch):
    """The spans that are read from the store."""
    spans, bytes_of = [], distant.DistantFolder._bytes_of

    def count(self, span):
        spans.append(span)
        return bytes_of(self, span)

    monkeypatch.setattr(distant.DistantFolder, "_bytes_of", count)
    return spans


def open_inputs(cache, size=SMALL):
    return Inputs(Config(data_cache=CacheSetting(str(cache), size)).place_of)


def place_of(folder, cache, size=SMALL):
    return Config(data_cache=CacheSetting(str(cache), size)).place_of(f"file://{folder}")


def contents(records):
    return [(records.name(i), *records.read(i)) for i in range(records.num_images)], records.labels().tolist()


def disk_use(folder):
    return sum(
        os.lstat(os.path.join(place, name)).st_blocks * 512 for place, _, names in os.walk(folder) for name in names
    )


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_set_larger_than_the_cache_gives_what_the_disk_gives(data, tmp_path, read, data_format):
    kind, local = open_data(f"{data}/{data_format}")
    expected = contents(local)
    total = sum(len(image) for _, image, _ in expected[0])
    stored = sum(path.stat().st_size for path in (data / data_format).rglob("*") if path.is_file())
    with open_inputs(tmp_path / "cache") as inputs:
        found, records = open_data(f"file://{data}/{data_format}", "auto", inputs)
        assert (found, list(records.class_names)) == (kind, list(local.class_names))
        assert records.digests() == local.digests()
        records.will_read(np.arange(records.num_images))
        assert contents(records) == expected
        assert disk_use(tmp_path / "cache") < total, "the images are not on the disk"
    assert total // 2 < sum(span.end - span.first for span in read) < 3 * stored
    assert not mounts._mounts


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("action", [["check"], ["check", "--json"], ["info", "--all"], ["split", "--json"]])
def test_commands_report_what_they_report_of_the_disk(glyphs, tmp_path, capsys, data_format, action):
    if data_format == "parquet":
        pytest.importorskip("pyarrow")
    twice = shutil.copytree(glyphs, tmp_path / "twice")
    lines = (twice / "label.txt").read_text().splitlines()
    first, label = lines[0].split()
    shutil.copy(twice / first, twice / "copy.jpg")
    (twice / "label.txt").write_text("".join(f"{line}\n" for line in [*lines, f"copy.jpg {label}"]))
    folder = tmp_path / "data"
    if data_format == "jpeg":
        twice.rename(folder)
    else:
        convert(Conversion(str(twice), str(folder), data_format, workers=1), lambda *a: None)
    reports = []
    for number, source in enumerate((str(folder), f"file://{folder}")):
        more = ["--set", f"data_cache=[{tmp_path}/cache, {SMALL}]"]
        more += [f"{tmp_path}/held_out{number}", "--held-out", "0.3", "--pairs", "4"] if action[0] == "split" else []
        status = cli.main(["data", *action, source, *more])
        captured = capsys.readouterr()
        assert "plsc: error" not in captured.err, captured.err
        reports.append((status, captured.out.replace("file://", "").replace(f"held_out{number}", "held_out")))
    assert reports[0] == reports[1] and reports[0][0] == (1 if action[0] == "check" else 0)
    assert "read in place" in captured.err or data_format == "jpeg"


@pytest.mark.parametrize("data_format", FORMATS)
def test_images_to_embed_are_those_of_the_disk(data, tmp_path, data_format):
    local = open_collection(data / data_format)
    with open_inputs(tmp_path / "cache") as inputs:
        images = open_collection(type(data)(inputs.images(f"file://{data}/{data_format}")))
        for i in range(local.num_images):
            assert (images.name(i), images.identity(i)) == (local.name(i), local.identity(i))
            assert (images.pixels(i, (3, 32, 32)) == local.pixels(i, (3, 32, 32))).all()


@pytest.mark.parametrize(
    "data_format, shuffle",
    [
        *((data_format, shuffle) for data_format in ("tar", "recordio") for shuffle in (None, "window", "full")),
        *(("parquet", None), ("parquet", "window"), ("jpeg", None), ("folder", None)),
    ],
)
def test_training_draws_the_order_of_the_disk_and_resumes_in_it(data, tmp_path, data_format, shuffle):
    local = open_images(str(data / data_format), 12, 0, 1, shuffle=shuffle)
    records, chosen = remote.open_images(place_of(data / data_format, tmp_path / "cache"), 12, "auto", shuffle, 8)
    assert chosen == shuffle
    for epoch, begin in ((0, 0), (1, 40)):
        orders = [one.epoch_order(3, epoch, 0, 1) for one in (local, records)]
        assert (orders[0] == orders[1]).all()
        records.will_read(orders[1][begin:])
        for i in orders[1][begin:].tolist():
            assert records.read(i) == local.read(i)
    records.close()
    assert not mounts._mounts


@pytest.mark.parametrize("shuffle", ["window", "full"])
def test_all_but_the_first_images_are_fetched_ahead(data, tmp_path, read, shuffle):
    """Also after the reads of the opening, which lie all over the file."""
    records, _ = remote.open_images(place_of(data / "recordio", tmp_path / "cache"), 12, "auto", shuffle, 8)
    for epoch in range(3):
        read.clear()
        order = records.epoch_order(0, epoch, 0, 1)
        records.will_read(order)
        for i in order.tolist():
            records.read(i)
        total = sum(span.end - span.first for span in read)
        assert total < 1.5 * os.path.getsize(data / "recordio" / "train.rec")
    records.close()


def test_what_was_fetched_ahead_stays_until_it_is_used(tmp_path, read, monkeypatch):
    """Though what has been used for the last time was used later than it was fetched."""
    for name, value in (("_CHUNK", 4000), ("_KEPT", 64_000), ("_STRETCHES_AHEAD", 4)):
        monkeypatch.setattr(distant, name, value)
    monkeypatch.setattr(recordio, "_BLOCK_BYTES", 4000)
    (tmp_path / "data").mkdir()
    writer = recordio.RecordIOWriter(tmp_path / "data" / "train.rec", [])
    for number in range(1300):
        writer.add(Record(str(number), bytes(40), number % 12))
    writer.close()
    records, _ = remote.open_images(place_of(tmp_path / "data", tmp_path / "cache"), 12, "auto", "window", 8)
    order, stretches = records.epoch_order(0, 0, 0, 1), len(records.stretches()) - 1
    (whole,) = records._folder._used
    records._folder._forget(whole)
    for place in range(1500, whole.span.end, 4000):  # as the opening of a large file leaves it
        records._folder.read(whole.span.path, place, 10)
    read.clear()
    records.will_read(order)
    for i in order.tolist():
        records.read(i)
    records.close()
    assert stretches > 20 and 0 < len(read) <= stretches


def test_threads_that_read_at_the_same_time_get_the_right_images(data, tmp_path):
    local = open_images(str(data / "tar"), 12, 0, 1)
    records, _ = remote.open_images(place_of(data / "tar", tmp_path / "cache"), 12, "auto", None, 8)
    order = records.epoch_order(0, 0, 0, 1)
    records.will_read(order)
    wrong, left = [], order.tolist()[::-1]

    def work():
        while left:
            i = left.pop()
            if records.read(i) != local.read(i):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records.close()
    assert not wrong


def test_the_index_of_a_tar_is_made_once(data, tmp_path, read):
    for _ in range(2):
        read.clear()
        records, _ = remote.open_images(place_of(data / "tar", tmp_path / "cache"), 12, "auto", None, 8)
        records.close()
    assert not read


def test_records_without_an_index_are_found_once(data, tmp_path, read):
    shutil.copytree(data / "recordio", tmp_path / "store")
    (tmp_path / "store" / "train.idx").unlink()
    local, _ = contents(open_images(str(data / "recordio"), 12, 0, 1))
    for _ in range(2):
        read.clear()
        records, _ = remote.open_images(place_of(tmp_path / "store", tmp_path / "cache"), 12, "auto", None, 8)
        assert [(name, label) for name, _, label in contents(records)[0]] == [(name, label) for name, _, label in local]
        records.close()


@pytest.mark.parametrize("change", ["written again", "removed"])
def test_a_file_that_changes_while_it_is_read_ends_with_its_name(data, tmp_path, monkeypatch, change):
    monkeypatch.setattr(distant, "_CHECK_SECONDS", 0.0)
    store = tmp_path / "store"
    shutil.copytree(data / "tar", store)
    records, _ = remote.open_images(place_of(store, tmp_path / "cache"), 12, "auto", None, 8)
    records.will_read(np.arange(4))
    for tar in store.glob("*.tar"):
        if change == "removed":
            tar.unlink()
        else:
            tar.write_bytes(tar.read_bytes()[::-1])  # of the same size
    expected = {"removed": "was removed|No such file", "written again": "has changed on the server"}[change]
    try:
        with pytest.raises(PlscError, match=rf"{store}/train-\S*.tar: .*({expected})"):
            for i in range(records.num_images):
                records.read(i)
    finally:
        records.close()


def test_other_ranks_hear_of_every_wait_and_nothing_is_read_after_the_end(data, tmp_path):
    working = []

    @contextlib.contextmanager
    def note():
        working.append(True)
        yield
        working.append(False)

    stop = threading.Event()
    folder = remote.open_folder(place_of(data / "tar", tmp_path / "cache"), stop)
    files = [folder.file(name) for name in folder.found if name.endswith(".tar")]
    mounted = distant.mount(folder, files, stop, note)
    bytes_of = mounted._bytes_of

    def look(span):
        assert working[-1:] == [True] or threading.current_thread().name == "plsc-ranges"
        return bytes_of(span)

    mounted._bytes_of = look
    path = f"{mounted.root}/{files[0].name}"
    assert mounted.read(path, 7000, 100) == (data / "tar" / files[0].name).read_bytes()[7000:7100] and working
    mounted.close()
    before = threading.active_count()
    with pytest.raises(PlscError, match=f"^file://{data}/tar/{files[0].name}: stopped"):
        mounted.read(path, 0, 100)
    assert threading.active_count() <= before
    folder.copy.close()


def test_an_address_that_is_asked_for_twice_is_closed_twice(data, tmp_path):
    with open_inputs(tmp_path / "cache") as inputs:
        assert inputs.images(f"file://{data}/tar") == inputs.data(f"file://{data}/tar")
        assert mounts._mounts
    assert not mounts._mounts


def test_a_list_may_write_paths_in_other_ways(data, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(data / "jpeg", store)
    lines = (store / "label.txt").read_text().splitlines()
    (store / "label.txt").write_text("\n".join([f"./{lines[0]}", f"images/..//{lines[1]}", *lines[2:]]) + "\n")
    _, local = open_data(str(store))
    with open_inputs(tmp_path / "cache") as inputs:
        _, records = open_data(f"file://{store}", "auto", inputs)
        records.will_read(np.arange(records.num_images))
        assert contents(records) == contents(local)


def test_the_outline_follows_the_store_and_serves_several_readers(data, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(data / "tar", store)
    tars = sorted(path.name for path in store.glob("*.tar"))

    def images(address):
        with open_inputs(tmp_path / "cache") as inputs:
            return open_data(address, "auto", inputs)[1].num_images

    assert images(f"file://{store}") == 96
    outline = next((tmp_path / "cache").glob("plsc_*/outline"))
    with open_inputs(tmp_path / "cache") as inputs:
        _, records = open_data(f"file://{store}", "auto", inputs)
        assert images(f"file://{store}/{tars[0]}") == 32
        assert sorted(path.name for path in outline.glob("*.tar")) == tars, "others are still in use"
        assert records.read(95) == open_images(str(store), None, 0, 1).read(95)
    (store / tars[1]).unlink()
    assert images(f"file://{store}") == 64
    shutil.copy(store / tars[2], store / tars[1])
    assert images(f"file://{store}") == 96, "an index that belongs to the file before is not used"


def test_lists_next_to_data_in_place_keep_their_links(data, tmp_path):
    links = []
    for _ in range(2):
        with open_inputs(tmp_path / "cache") as inputs:
            inputs.data(f"file://{data}/recordio")
        link = next((tmp_path / "cache").glob("plsc_*/outline/train.idx"))
        assert link.is_symlink() and link.read_bytes() == (data / "recordio" / "train.idx").read_bytes()
        links.append(os.lstat(link).st_ino)
    assert links[0] == links[1], "another process may be reading it"


def test_messages_name_the_address(data, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(data / "tar", store)
    first = sorted(store.glob("*.tar"))[0]
    records, _ = remote.open_images(place_of(store, tmp_path / "cache"), 12, "auto", None, 8)
    assert records.where(0).startswith(f"file://{store}/train-00000-of-00003.tar: member")
    records.close()
    first.write_bytes(first.read_bytes()[:5000])
    for size in (SMALL, 10**9):
        with pytest.raises(PlscError, match=f"^file://{store}/train-00000-of-00003.tar: .*cut off; copy it again"):
            remote.open_images(place_of(store, tmp_path / str(size), size), 12, "auto", None, 8)
    assert not mounts._mounts


def test_lists_that_no_cache_can_hold_are_named_before_anything_is_read(data, tmp_path, read):
    with open_inputs(tmp_path / "cache", size=100) as inputs, pytest.raises(ConfigError, match="larger size"):
        inputs.data(f"file://{data}/recordio")
    assert not read and not mounts._mounts


def test_a_reader_that_waits_ends_when_it_is_to_stop(data, tmp_path, monkeypatch):
    records, _ = remote.open_images(place_of(data / "tar", tmp_path / "cache"), 12, "auto", "full", 8)
    monkeypatch.setattr("plsc.data.fetched._POLL_SECONDS", 0.01)
    going = threading.Event()
    monkeypatch.setattr(distant.DistantFolder, "_bytes_of", lambda self, span: going.wait() and b"")
    records.will_read(np.arange(20, 40))
    records.end_waiting_if(lambda: True)
    with pytest.raises(StoppedError):
        records.read(22)
    going.set()
    records.close()
