import base64
import collections
import errno
import functools
import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data import base64_parts, base64_source, recordio, shard_files, tar_shards
from plsc.data.base64_parts import check_line
from plsc.data.base64_source import Base64Files
from plsc.data.class_sampler import ClassSampler
from plsc.data.exclusion import KeptRecords
from plsc.data.label_file import LabelFile
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import Record
from plsc.data.sources import SHUFFLES, open_images
from plsc.data.united import UnitedRecords, merge_classes
from plsc.errors import ConfigError, DataError
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options


def split(folder, total, nranks):
    """Makes a split data set. Sample i is of class i; it is the text `i` with spaces, so that lengths differ."""
    folder.mkdir(exist_ok=True)
    lines = (base64.b64encode(b"%d%s" % (i, b" " * (i % 7))) + b"\t%d\n" % i for i in range(total))
    (folder / "part").write_bytes(b"".join(lines))
    (folder / "list").write_text("part\n")
    shuffle_base64(Options(str(folder), "list", nranks, workers=1))
    return str(folder)


def epoch_of(source, rank, world_size, epoch=0, seed=0):
    """Returns the labels, after checking that each belongs to its text."""
    seen = []
    for i in source.epoch_order(seed, epoch, rank, world_size).tolist():
        data, label = source.read(i)
        assert int(data) == label
        seen.append(label)
    return seen


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(base64_source, "_BLOCK_BYTES", 60)
    monkeypatch.setattr(base64_source, "WINDOW_BLOCKS", 3)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 60), st.sampled_from([(8, 8), (8, 4), (8, 2), (8, 1), (6, 3), (1, 1)]), st.sampled_from([60, 10**6])
)
def test_all_ranks_together_see_every_sample_in_equal_counts(tmp_path_factory, total, ranks, block_bytes):
    nranks, world_size = ranks
    folder = split(tmp_path_factory.mktemp("data"), total, nranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base64_source, "_BLOCK_BYTES", block_bytes)
        for shuffle in SHUFFLES:
            shares = []
            for rank in range(world_size):
                source = open_images(folder, total, rank, world_size, "base64", shuffle)
                assert source.num_images == total
                shares.append(epoch_of(source, rank, world_size))
            counts = collections.Counter(sum(shares, []))
            assert {len(share) for share in shares} == {-(-total // world_size)}
            # As with image files, there are only the copies that make the ranks equal.
            assert set(counts) == set(range(total)) and sum(counts.values()) - total < world_size


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_order_depends_on_seed_epoch_and_rank(tmp_path, small_blocks, shuffle):
    folder = split(tmp_path / "data", 200, 2)
    orders = []
    for rank, seed, epoch in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        source = open_images(folder, 200, rank, 2, shuffle=shuffle)
        orders.append(source.epoch_order(seed, epoch, rank, 2) % 100)
        again = open_images(folder, 200, rank, 2, shuffle=shuffle)
        assert np.array_equal(again.epoch_order(seed, epoch, rank, 2) % 100, orders[-1])
    assert len({order.tobytes() for order in orders}) == 4
    assert all(np.array_equal(np.sort(order), np.arange(100)) for order in orders)


def test_a_window_touches_few_blocks_at_a_time_and_a_full_shuffle_all(tmp_path, small_blocks):
    folder = split(tmp_path / "data", 600, 1)
    for shuffle in SHUFFLES:
        source = open_images(folder, 600, 0, 1, shuffle=shuffle)
        blocks = source.epoch_order(0, 0, 0, 1) // source._block_lines
        first, last = {}, {}
        for place, block in enumerate(blocks.tolist()):
            first.setdefault(block, place)
            last[block] = place
        open_at_once = [sum(first[b] <= place <= last[b] for b in first) for place in range(600)]
        if shuffle != "full":
            assert max(open_at_once) <= 3 + 1
            assert np.abs(np.diff(blocks)).max() > 4  # but its blocks come from all over the file
        else:
            assert max(open_at_once) > len(first) / 2


def test_files_in_turn_are_open_few_at_a_time_and_mixed(tmp_path, small_blocks):
    source = open_images(split(tmp_path / "data", 1200, 40), 1200, 1, 2, shuffle="files")
    orders = [source.files_of(source.epoch_order(0, epoch, 1, 2)) for epoch in (0, 1)]
    for files in orders:
        uses = [np.flatnonzero(files == file) for file in range(20)]
        open_at_once = [sum(use[0] <= place <= use[-1] for use in uses) for place in range(600)]
        assert max(open_at_once) <= 4 + 2 and np.mean(open_at_once) > 3
    assert source.files[3] == "base64_rank_7" and [source.file_of(i) for i in (0, 30, 599)] == [0, 1, 19]
    assert orders[0].tolist() != orders[1].tolist()


def test_each_block_is_read_ahead_once_and_whole(tmp_path, small_blocks, monkeypatch):
    folder = split(tmp_path / "data", 100, 1)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, first, size, advice: asked.append((first, size)))
    epoch_of(open_images(folder, 100, 0, 1), 0, 1)
    asked.sort()
    assert sum(size for _, size in asked) == os.path.getsize(f"{folder}/base64_rank_0")
    assert all(first + size == following for (first, size), (following, _) in zip(asked, asked[1:]))
    asked.clear()
    epoch_of(open_images(folder, 100, 0, 1, shuffle="full"), 0, 1)
    assert not asked


@pytest.mark.parametrize("module", [base64_source, tar_shards, recordio])
def test_blocks_are_read_ahead_where_the_order_keeps_them_together(tmp_path, monkeypatch, module):
    """Also through the wrappers, and in each epoch; a sampler that jumps between blocks reads single images."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", 400 if module is base64_source else 5000)
    if module is base64_source:
        folder = split(tmp_path / "data", 100, 1)
    else:
        (tmp_path / "data").mkdir()
        is_tar = module is tar_shards
        made = tar_shards.TarWriter(tmp_path / "data/x.tar") if is_tar else RecordIOWriter(tmp_path / "data/train.rec")
        for i in range(100):
            made.add(Record(f"{i}.jpg", b"\xff\xd8" + bytes(100 + i), i))
        made.close()
        folder = str(tmp_path / "data")
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, first, size, advice: asked.append(first))
    sources = [open_images(folder, 100, 0, 1, shuffle="window") for _ in range(5)]
    blocks = len(sources[0].blocks) - 1
    assert blocks > 1
    classes = merge_classes("ab", sources[1:3])
    records = {
        KeptRecords(sources[0], np.array([3])): blocks,
        UnitedRecords("ab", sources[1:3], classes): 2 * blocks,
        ClassSampler(sources[3], 8): 0,
        ClassSampler(KeptRecords(sources[4], np.array([3])), 8): 0,
    }
    for one, wanted in records.items():
        for epoch in range(2 if module is recordio else 1):  # the others do not count epochs
            asked.clear()
            for i in one.epoch_order(0, epoch, 0, 1).tolist():
                one.read(i)
            assert len(set(asked)) == min(wanted, blocks) and len(asked) == wanted, type(one)


def test_the_lines_are_found_without_the_index_too(tmp_path):
    folder = split(tmp_path / "data", 100, 2)
    wanted = [epoch_of(open_images(folder, 100, rank, 2), rank, 2) for rank in range(2)]
    for rank in range(2):
        os.remove(f"{folder}/base64_index_{rank}.npy")
    assert [epoch_of(open_images(folder, 100, rank, 2), rank, 2) for rank in range(2)] == wanted


def open_files():
    """Counts the open files of this process; earlier tests may have left some."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def limit_of_open_files():
    """Returns a function that sets how many more files this process may open, and restores the limit at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda count: resource.setrlimit(resource.RLIMIT_NOFILE, (count + open_files(), before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_rank_reads_more_files_than_it_may_open(tmp_path, limit_of_open_files):
    folder = split(tmp_path / "data", 400, 400)
    before = open_files()
    limit_of_open_files(280)  # two sources are open for a moment
    for shuffle in SHUFFLES:
        source = open_images(folder, 400, 0, 1, "base64", shuffle)
        assert sorted(epoch_of(source, 0, 1)) == list(range(400))
    del source
    assert open_files() < before + 20  # the files do not stay open


def test_data_sets_that_are_open_together_share_few_open_files_also_after_a_fork(tmp_path):
    folder = split(tmp_path / "data", 200, 200)
    before = open_files()
    sources = [open_images(folder, 200, 0, 1) for _ in range(2)]
    assert all(sorted(epoch_of(source, 0, 1)) == list(range(200)) for source in sources)
    assert open_files() < before + 160
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(lambda: [sources[0].read(i) for _ in range(20) for i in range(200)])
        child = os.fork()
        if not child:
            os._exit(sorted(epoch_of(sources[1], 0, 1)) != list(range(200)))
        assert os.waitpid(child, 0)[1] == 0 and len(reading.result()) == 4000
    sources[0].close_files()
    assert open_files() < before + 20 and epoch_of(sources[1], 0, 1)


def test_threads_share_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "_opened", functools.lru_cache(2)(shard_files._opened.__wrapped__))
    source = open_images(split(tmp_path / "data", 60, 20), 60, 0, 1)
    wanted = list(range(60)) * 20
    with ThreadPoolExecutor(4) as threads:
        read = threads.map(lambda i: int(source.read(i)[0]), wanted)
        assert collections.Counter(read) == collections.Counter(wanted)


@pytest.mark.parametrize(
    "place, name", [((os, "open"), "base64_rank_0"), ((np.lib.format, "read_array"), "base64_index_0.npy")]
)
def test_too_many_open_files_are_not_blamed_on_a_file(tmp_path, monkeypatch, place, name):
    folder = split(tmp_path / "data", 4, 1)

    def refuse(path, *arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    monkeypatch.setattr(*place, refuse)
    with pytest.raises(DataError, match=rf"{name}: cannot .* \(Too many open files\); the file itself is fine; raise"):
        open_images(folder, 4, 0, 1)


HEADER = b"\x93NUMPY\x01\0F\0"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"not an index", np.arange(3), b"PK\5\6" + bytes(18), HEADER + b"{" * 70, HEADER + b"[" * 70),
        HEADER + b"{'descr': '<u4', 'fortran_order': False, 'shape': (1152921504606846976,)}"[:70].ljust(70),
    ],
)
def test_an_index_of_something_else_is_refused(tmp_path, content):
    folder = split(tmp_path / "data", 10, 1)
    path = f"{folder}/base64_index_0.npy"
    with open(path, "wb") as file:
        np.save(file, content) if isinstance(content, np.ndarray) else file.write(content)
    with pytest.raises(DataError, match="base64_index_0.npy: is not .*; remove it"):
        open_images(folder, 10, 0, 1)


@pytest.mark.parametrize("world_size", [3, 5, 16])
def test_a_number_of_ranks_that_does_not_fit_names_the_command(tmp_path, world_size):
    folder = split(tmp_path / "data", 40, 8)
    with pytest.raises(DataError) as caught:
        open_images(folder, 40, 0, world_size)
    command = f"python tools/process_base64_files.py --data_dir={folder} --file_list=list --nranks={world_size}"
    assert command in str(caught.value)
    os.remove(f"{folder}/list")  # the parts are elsewhere
    with pytest.raises(DataError, match=f"--output_dir={folder} --nranks={world_size}$"):
        open_images(folder, 40, 0, world_size)


def test_a_folder_of_the_wrong_kind_is_refused(tmp_path):
    (tmp_path / "file_list.txt").write_text("part\n")
    for data_format in ("auto", "base64"):
        with pytest.raises(DataError, match=f"--data_dir={tmp_path} --file_list=file_list.txt --nranks=2"):
            open_images(str(tmp_path), 2, 0, 2, data_format)
    (tmp_path / "1.jpg").touch()
    (tmp_path / "label.txt").write_text("1.jpg 1\n")
    assert isinstance(open_images(str(tmp_path), 2, 0, 1), LabelFile)
    with pytest.raises(DataError, match="shuffle='full'"):
        open_images(str(tmp_path), 2, 0, 1, shuffle="full")
    folder = split(tmp_path, 4, 1)
    assert isinstance(open_images(folder, 4, 0, 1), Base64Files)
    assert isinstance(open_images(folder, 4, 0, 1, "jpeg"), LabelFile)
    with pytest.raises(ConfigError, match=f"^{folder}: set_data_format.shuffle='some'.: base64 data takes 'window' or"):
        open_images(folder, 4, 0, 1, shuffle="some")


def test_labels_are_checked_against_the_classes(tmp_path):
    folder = split(tmp_path / "data", 10, 1)
    with pytest.raises(DataError, match=r"manifest.json: the largest label is 9, outside \[0, 9\)"):
        open_images(folder, 9, 0, 1)
    manifest = json.loads((tmp_path / "data" / "base64_manifest.json").read_text())
    (tmp_path / "data" / "base64_manifest.json").write_text(json.dumps({**manifest, "largest_label": 2}))
    source = open_images(folder, 9, 0, 1)
    lines = (tmp_path / "data" / "base64_rank_0").read_bytes().splitlines()
    line = next(number for number, text in enumerate(lines) if text.endswith(b"\t9"))
    with pytest.raises(DataError, match=rf"base64_rank_0:{line + 1}: label 9 is outside \[0, 9\)"):
        source.read(line)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda line: b"!" + line[1:], "not base64"),
        (lambda line: line[:-1] + b" ", "label is not a number"),
        (lambda line: line.replace(b"\t", b"A"), "no tab"),
        (lambda line: b"=" + line[1:], "wrong length or padding"),
        (lambda line: line[:5] + b"\n" + line[6:], "not base64"),
    ],
)
def test_a_damaged_line_is_reported_with_file_and_number(tmp_path, damage, says):
    folder = split(tmp_path / "data", 30, 2)
    path = tmp_path / "data" / "base64_rank_1"
    lines = path.read_bytes().split(b"\n")
    lines[6] = damage(lines[6])
    path.write_bytes(b"\n".join(lines))
    source = open_images(folder, 30, 1, 2)
    with pytest.raises(DataError, match=rf"{path}:7: .*{says}.*; the file was damaged .* --nranks=2"):
        epoch_of(source, 1, 2)


@settings(max_examples=600, deadline=None)
@given(
    st.binary(max_size=12),
    st.lists(st.tuples(st.integers(0, 19), st.sampled_from(b"A=\n*/ \xff")), max_size=4),
    st.booleans(),
)
def test_decoding_finds_every_fault_that_check_line_finds(image, changes, shorter):
    text = bytearray(base64.b64encode(image))
    for place, character in changes:
        if place < len(text):
            text[place] = character
    text = bytes(text[shorter:])
    for decoder in {base64_parts._fast_decode, None}:  # with pybase64, if it is installed, and without
        with mock.patch.object(base64_parts, "_fast_decode", decoder):
            decoded = base64_parts.decode_base64(text)
        assert (decoded is None) == (check_line(text + b"\t5", 1000) is not None)
        assert decoded is None or decoded == base64.b64decode(text, validate=True)


def test_files_that_differ_from_the_manifest_are_refused(tmp_path):
    folder = split(tmp_path / "data", 30, 1)
    path = tmp_path / "data" / "base64_rank_0"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(DataError, match=f"{len(good) - 1} bytes, but the manifest says {len(good)}"):
        open_images(folder, 30, 0, 1)
    path.write_bytes(good.replace(b"\n", b" ", 1))
    os.remove(f"{folder}/base64_index_0.npy")
    with pytest.raises(DataError, match=f"holds 29 lines in {len(good)} bytes, but the manifest says 30"):
        open_images(folder, 30, 0, 1)
    path.write_bytes(good)
    source = open_images(folder, 30, 0, 1)
    os.truncate(path, len(good) // 2)
    with pytest.raises(DataError, match="base64_rank_0:30: "):
        source.read(29)
    path.unlink()
    with pytest.raises(DataError, match="cannot read .No such file"):
        open_images(folder, 30, 0, 1)


def test_a_pipe_in_the_place_of_a_file_is_an_error_and_no_endless_wait(tmp_path):
    folder = split(tmp_path / "data", 4, 1)
    os.remove(f"{folder}/base64_rank_0")
    os.mkfifo(f"{folder}/base64_rank_0")
    with pytest.raises(DataError, match=r"base64_rank_0: cannot read \(not a regular file\)"):
        open_images(folder, 4, 0, 1)
