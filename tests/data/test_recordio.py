import logging
import math
import os
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encode

from plsc.data import recordio
from plsc.data.augmentation import Augmentation
from plsc.data.collection import open_collection
from plsc.data.damaged import is_damage
from plsc.data.label_file import read_label_file
from plsc.data.loader import ImageLoader
from plsc.data.recordio import RecordIO, RecordIOWriter
from plsc.data.recordio_file import RecordFile
from plsc.data.recordio_index import Index
from plsc.data.recordio_layout import _first_identity
from plsc.data.records import Record
from plsc.data.shard_files import folder_of
from plsc.data.sources import format_of, open_images, open_several
from plsc.errors import DataError

MAGIC = struct.pack("<I", 0xCED7230A)


def chunk(flag, data, length=None):
    """Returns a record, or a chunk of one, by the words of the format."""
    size = len(data) if length is None else length
    return MAGIC + struct.pack("<I", flag << 29 | size) + data + bytes(-len(data) % 4)


def header(labels, number=0):
    if isinstance(labels, (int, float)):
        return struct.pack("<IfQQ", 0, labels, number, 0)
    return struct.pack("<IfQQ", len(labels), 0, number, 0) + struct.pack(f"<{len(labels)}f", *labels)


def image(label, number=0, data=b"image"):
    return chunk(0, header(label, number) + data)


def write(folder, records, keys=None, index=None, **others):
    """Writes records, an index with `keys` (or the text `index`, or none if that is False), and other files."""
    folder.mkdir(exist_ok=True)
    (folder / "train.rec").write_bytes(b"".join(records))
    places = np.cumsum([0, *map(len, records)])
    lines = "".join(f"{key}\t{place}\n" for key, place in zip(range(len(records)) if keys is None else keys, places))
    if index is not False:
        (folder / "train.idx").write_text(lines if index is None else index)
    for name, text in others.items():
        (folder / name.replace("_", ".")).write_text(text)
    return str(folder)


def face_records(labels, ranges=None, identities=()):
    """Returns records and keys in the order in which InsightFace writes them: images, record 0, identities."""
    count = len(labels)
    records = [image(label, k + 1, b"image %d" % k) for k, label in enumerate(labels)]
    first, end = (count + 1, count + 1 + len(identities)) if ranges is None else ranges
    records.append(chunk(0, header([first, end], 0)))
    records += [chunk(0, header(pair, count + 1 + k)) for k, pair in enumerate(identities)]
    return records, [*range(1, count + 1), 0, *range(count + 1, count + 1 + len(identities))]


def read_all(source):
    return [source.read(i) for i in range(source.num_images)]


def reference(folder):
    """Reads images as MXNet does, one record after another, without a plsc."""
    content, records, parts, place, key = (folder / "train.rec").read_bytes(), {}, [], 0, 0
    starts = {int(line.split("\t")[1]): int(line.split("\t")[0]) for line in (folder / "train.idx").open()}
    while place < len(content):
        key = starts[place] if not parts else key
        assert content[place : place + 4] == MAGIC
        word = struct.unpack_from("<I", content, place + 4)[0]
        flag, length = word >> 29, word % (1 << 29)
        parts.append(content[place + 8 : place + 8 + length])
        place += 8 + (length + 3) // 4 * 4
        if flag in (0, 3):
            records[key], parts = MAGIC.join(parts), []
    ranges = struct.unpack_from("<2f", records[0], 24)
    images = [records[key] for key in range(1, int(ranges[0]))]
    identities = [struct.unpack_from("<2f", records[key], 24) for key in range(int(ranges[0]), int(ranges[1]))]
    assert sorted(records) == list(range(int(ranges[1])))
    return [(data[24:], int(struct.unpack_from("<f", data, 4)[0])) for data in images], identities


BYTES = st.lists(st.sampled_from([MAGIC, MAGIC[:2], b"a", b"abcd", MAGIC[::-1]]), min_size=1, max_size=8).map(b"".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(BYTES, st.integers(0, 5)), min_size=1, max_size=12), st.booleans())
def test_what_is_written_is_read_back_and_so_does_another_reader(tmp_path_factory, images, is_sorted):
    folder = tmp_path_factory.mktemp("data")
    images = sorted(images, key=lambda one: one[1]) if is_sorted else images
    writer = RecordIOWriter(folder / "train.rec")
    for number, (data, label) in enumerate(images):
        writer.add(Record(f"a/{number}", data, label))
    writer.close()
    found, identities = reference(folder)
    assert found == images
    labels = [label for _, label in images]
    assert len(identities) == (len(set(labels)) if is_sorted else len(identities))
    for first, end in identities:
        assert len({labels[int(k) - 1] for k in range(int(first), int(end))}) == 1
    assert (folder / "property").read_text() == f"{max(labels) + 1},0,0\n"
    for index in (True, False):
        source = open_images(str(folder), None, 0, 1)
        assert read_all(source) == images and source.labels().tolist() == labels
        assert source.num_classes == max(labels) + 1
        if index:
            kept = (folder / "train.idx").read_bytes()
            (folder / "train.idx").unlink()
    assert (folder / "train.idx").read_bytes() == kept  # the scan has found the same keys


def test_images_of_insightface_have_their_labels_in_arrays_and_their_header_behind_them(tmp_path):
    records, keys = face_records([[0, 1], [0, 1], [1, 0]], identities=[(1, 3), (3, 4)])
    source = open_images(write(tmp_path / "a", records, keys, property="2,112,112\n"), None, 0, 1)
    assert read_all(source) == [(b"image 0", 0), (b"image 1", 0), (b"image 2", 1)]
    assert [source.name(i) for i in range(3)] == ["train.rec:1", "train.rec:2", "train.rec:3"]
    assert source.num_classes == 2 and source.labels().tolist() == [0, 0, 1]
    assert source.where(2).endswith("train.rec: record 3, at byte 96")


@pytest.mark.parametrize("keys", [range(4), range(5, 9), [7, 0, 3, 9], [2**40, 1, 0, 5]])
def test_records_without_ranges_are_all_images(tmp_path, keys):
    records = [image(k % 2, number, b"%d" % k) for k, number in enumerate(keys)]
    source = open_images(write(tmp_path / "a", records, keys), 2, 0, 1)
    assert read_all(source) == [(b"%d" % k, k % 2) for k in range(4)]
    assert [source.name(i) for i in range(4)] == [f"train.rec:{key}" for key in keys]
    again = open_images(write(tmp_path / "b", records, index=False), 2, 0, 1)
    assert read_all(again) == read_all(source)
    assert [again.name(i) for i in range(4)] == [source.name(i) for i in range(4)]


def test_an_index_may_be_in_another_order_with_other_line_ends(tmp_path):
    records = [image(k, k) for k in range(3)]
    places = np.cumsum([0, *map(len, records)]).tolist()
    index = "".join(f"{k}\t{places[k]}\r\n" for k in (2, 0, 1)).rstrip()
    source = open_images(write(tmp_path / "a", records, index=index), None, 0, 1)
    assert source.labels().tolist() == [0, 1, 2] and source.name(0) == "train.rec:0"


def test_what_a_path_means(tmp_path):
    one = tmp_path / "one"
    write(one, [image(0)])
    (one / "train.rec").rename(one / "faces.rec")
    (one / "train.idx").rename(one / "faces.idx")
    for path in (one, one / "faces.rec"):
        assert format_of(str(path)) == "recordio" and open_images(str(path), 1, 0, 1).num_images == 1
    (one / "other.rec").write_bytes(image(0))
    with pytest.raises(DataError, match="holds 2 files of records, faces.rec, other.rec"):
        open_images(str(one), 1, 0, 1)
    write(one, [image(0), image(0)])
    assert open_images(str(one), 1, 0, 1).num_images == 2  # train.rec comes first
    empty = tmp_path / "empty"
    empty.mkdir()
    assert format_of(str(empty)) is None
    with pytest.raises(DataError, match="holds no training data, because the folder is empty"):
        open_images(str(empty), 1, 0, 1)
    with pytest.raises(DataError, match="holds no file of records"):
        open_images(str(empty), 1, 0, 1, "recordio")


GOOD = [image(0, 0), image(1, 1), image(2, 2)]
SIZE = sum(map(len, GOOD))


def faces(*arguments, **named):
    records, keys = face_records(*arguments, **named)
    return {"records": records, "keys": keys}


BAD = {
    "cut file": ({"records": [*GOOD[:2], GOOD[2][:-8]]}, "record 2, at byte 80: the file ends within this record"),
    "cut file, no index": ({"records": [*GOOD[:2], GOOD[2][:-8]], "index": False}, "byte 80: the file ends within"),
    "cut frame": ({"records": [*GOOD, MAGIC], "index": False}, "byte 120: the file ends within this record"),
    "long record": ({"records": [chunk(0, header(0), 1 << 20)]}, "record 0, at byte 0: the file ends within"),
    "wrong magic": ({"records": [GOOD[0], b"abcd" + GOOD[1][4:]]}, "should begin with 0a23d7ce, and has 61626364"),
    "zeros": ({"records": [*GOOD, bytes(512)], "index": False}, "byte 120: no record begins there"),
    "big-endian": ({"records": [struct.pack(">II", 0xCED7230A, 29) + bytes(32)]}, "its numbers are big-endian; write"),
    "big-endian, no index": ({"records": [MAGIC[::-1] + bytes(36)], "index": False}, "byte 0: its numbers are big-e"),
    "no header": ({"records": [chunk(0, b"image")]}, "has 5 bytes, and MXNet's header alone takes 24"),
    "long array": ({"records": [chunk(0, struct.pack("<IfQQ", 9, 0, 0, 0))]}, "array of 9 labels, but has 24 bytes"),
    "huge array": ({"records": [chunk(0, struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0))]}, "array of 4294967295 labels"),
    "no image": ({"records": [GOOD[0], chunk(0, header(1))]}, "record 1, at byte 40: holds no image"),
    "chunk without a first": ({"records": [chunk(2, header(0))]}, "the chunks of this record are out of order"),
    "chunk in a chunk": ({"records": [chunk(1, header(0)) + GOOD[0]]}, "the chunks of this record are out of order"),
    "no last chunk": ({"records": [chunk(1, header(0)) + chunk(2, b"abcd")]}, "the file ends within this record"),
    "unknown flag": ({"records": [chunk(5, header(0))]}, "the chunks of this record are out of order"),
    "endless chunks": ({"records": [chunk(1, header(0)) + chunk(2, b"") * 50]}, "the chunks of this record do not end"),
    "label 0.5": ({"records": [image(0.5)]}, "record 0, at byte 0: label 0.5 is not an integer"),
    "label nan": ({"records": [GOOD[0], image(math.nan)]}, "record 1, at byte 40: label nan is not an integer"),
    "label inf": ({"records": [image(math.inf)]}, "label inf is not an integer"),
    "label -1": ({"records": [image(-1)]}, "record 0, at byte 0: label -1 is negative"),
    "label in an array": ({"records": [image([-3, 0])]}, "label -3 is negative"),
    "label 2^24": ({"records": [image(2**24)]}, "label 16777216 is too large for float32"),
    "label 1e30": ({"records": [image(1e30)]}, "is too large for float32"),
    "label of no class": ({"records": GOOD, "classes": 2}, "label 2 is outside .0, 2., .*set_class_num.3."),
    "label beyond property": ({"records": GOOD, "property": "2,8,8"}, r"label 2 is outside \[0, 2\).*correct property"),
    "property of more": ({"records": GOOD, "property": "9,8,8", "classes": 3}, r"9 classes, more than 3;.*num\(9\)"),
    "property of words": ({"records": GOOD, "property": "a,8,8"}, "property: 'a,8,8' is not 'classes,height,width'"),
    "property of two": ({"records": GOOD, "property": "3,112"}, "property: '3,112' is not 'classes,height,width'"),
    "property of none": ({"records": GOOD, "property": "0,8,8"}, "property: says that there are 0 classes"),
    "huge property": ({"records": GOOD, "property": "9" * 99 + ",8,8"}, "property: says that there are 99,999,999"),
    "empty property": ({"records": GOOD, "property": ""}, "property: '' is not"),
    "empty file": ({"records": [b""]}, "train.rec: is empty; copy it again"),
    "empty index": ({"records": GOOD, "index": ""}, "train.idx: is empty"),
    "index of words": ({"records": GOOD, "index": "0\t0\na\t40\n"}, "train.idx:2: 'a.+40' is not 'key<TAB>offset'"),
    "index of floats": ({"records": GOOD, "index": "0\t0.5\n"}, "train.idx:1: '0.+0.5' is not 'key<TAB>offset'"),
    "index without tabs": ({"records": GOOD, "index": "0 0\n"}, "train.idx:1: '0 0' is not"),
    "index with one number": ({"records": GOOD, "index": "0\t0\n5\t\n"}, "train.idx:2: .* is not 'key<TAB>offset'"),
    "index of negatives": ({"records": GOOD, "index": "0\t-4\n"}, "train.idx:1: .* is not 'key<TAB>offset'"),
    "index of huge numbers": ({"records": GOOD, "index": f"0\t{10**30}\n"}, "idx:1: .* is not 'key<TAB>offset'"),
    "index beyond the file": ({"records": GOOD, "index": "0\t0\n1\t4000\n"}, "record 1 should begin at byte 4000"),
    "index at odd bytes": ({"records": GOOD, "index": "0\t0\n1\t41\n"}, "idx:2: record 1 should begin at byte 41"),
    "index of a shorter file": ({"records": GOOD, "index": "0\t0\n1\t40\n"},
                                "idx: its last record ends at byte 80, but .*rec has 120 bytes; .*remove the index"),
    "index of another file": ({"records": GOOD, "index": "0\t0\n1\t44\n"}, "byte 44: .*idx is the index of another"),
    "a key twice": ({"records": GOOD, "keys": [1, 2, 1]}, "train.idx: the key 1 stands there twice"),
    "an offset twice": ({"records": GOOD, "index": "0\t0\n1\t0\n"}, "train.idx: the offset 0 stands there twice"),
    "index cut": ({**faces([0, 1]), "index": "1\t0\n0\t80\n"}, "the records from 1 to 3 .* there are 2 records"),
    "ranges of more": (faces([0, 1], (100, 120)), "records from 1 to 100 and the identities those up to 120, but"),
    "ranges reversed": (faces([0, 1], (3, 2), [(1, 3)]), "says that the images are the records from 1 to 3 and"),
    "ranges of nothing": (faces([0, 1], (0, 3)), "says that the images are the records from 1 to 0"),
    "ranges of nan": (faces([0, 1], (math.nan, math.nan)), "from 1 to nan"),
    "ranges of infinity": (faces([0, 1], (math.inf, -math.inf)), "from 1 to inf"),
    "only ranges": (faces([]), "train.rec: holds no images"),
    "a blank name": ({"records": GOOD, "names": b"a\n\nb\n"}, "classes.txt:2: is blank"),
    "no name": ({"records": GOOD, "names": b""}, "classes.txt:1: is blank"),
    "names in a pipe": ({"records": GOOD, "names": None}, "classes.txt: cannot be read"),
    "too few names": ({"records": GOOD, "names": b"a\nb\n"}, r"label 2 is outside \[0, 2\).*correct classes.txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_clear_line(tmp_path, case, monkeypatch):
    content, words = BAD[case]
    monkeypatch.setattr("plsc.data.recordio_file._MOST_CHUNKS", 20)
    named = {key: value for key, value in content.items() if key in ("keys", "index", "property")}
    path = write(tmp_path / "data", content["records"], **named)
    if "names" in content:
        names = Path(path, "classes.txt")
        os.mkfifo(names) if content["names"] is None else names.write_bytes(content["names"])
    classes = content.get("classes")
    of_labels = None
    for look in (read_all, RecordIO.labels):
        try:
            look(open_images(path, classes, 0, 1))
        except DataError as problem:
            assert "\n" not in str(problem) and len(str(problem)) < 400
            of_labels = of_labels or str(problem)
            assert is_damage(problem) != ("is outside [0, " in str(problem))
            with pytest.raises(DataError, match=words):
                raise
        else:
            assert case == "no image" and look is RecordIO.labels  # whose label is fine
    assert of_labels


def test_the_labels_are_read_once_for_all_wrong_ones(tmp_path, monkeypatch):
    source, reads = open_images(write(tmp_path / "a", GOOD), 1, 0, 1), []
    first_labels = RecordFile.first_labels
    monkeypatch.setattr(RecordFile, "first_labels", lambda *given: reads.append(1) or first_labels(*given))
    for i in (1, 2, 1):
        with pytest.raises(DataError, match=r"label . is outside \[0, 1\), .* set_class_num\(3\)"):
            source.read(i)
    assert len(reads) == 1


def test_an_index_alone_is_said(tmp_path):
    (tmp_path / "train.idx").write_text("0\t0\n")
    with pytest.raises(DataError, match="train.rec: missing, but its index train.idx is there"):
        open_images(str(tmp_path), 3, 0, 1)
    with pytest.raises(DataError, match="nowhere.rec: cannot read .No such file"):
        open_images(str(tmp_path / "nowhere.rec"), 3, 0, 1, "recordio")


def test_a_file_that_is_cut_while_it_is_open_is_said(tmp_path):
    source = open_images(write(tmp_path / "a", GOOD), 3, 0, 1)
    os.truncate(tmp_path / "a" / "train.rec", SIZE - 20)
    with pytest.raises(DataError, match="record 2, at byte 80: the file ends within this record"):
        source.read(2)


def test_ranges_that_float32_has_rounded_are_found_by_the_records(tmp_path):
    first = 2**24 + 7
    records = [image(0, data=b"x") if key < first else chunk(0, header([1, 2])) for key in range(first - 5, first + 5)]
    path = write(tmp_path / "a", records)
    places = np.cumsum([0, *map(len, records)])[:-1]
    index = Index(np.arange(first - 5, first + 5), places)
    assert _first_identity(RecordFile(f"{path}/train.rec"), index, float(np.float32(first))) == first
    assert float(np.float32(first)) != first


def test_files_of_more_than_4_gb(tmp_path):
    path = write(tmp_path / "a", [image(3)], index=f"0\t0\n1\t{5 << 30}\n")
    with open(f"{path}/train.rec", "r+b") as stream:
        stream.seek(5 << 30)
        stream.write(image(4, data=b"far"))
    source = open_images(path, None, 0, 1)
    assert source.read(1) == (b"far", 4) and source.labels().tolist() == [3, 4]


def test_an_index_that_is_made_is_kept_by_rank_0_if_it_can_be(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "a", GOOD, index=False)
    assert open_images(path, 3, 1, 2).num_images == 3 and os.listdir(path) == ["train.rec"]
    assert open_images(path, 3, 0, 1, keeps_index=False).num_images == 3 and os.listdir(path) == ["train.rec"]
    assert open_several([path], 3, keeps_index=False).num_images == 3 and os.listdir(path) == ["train.rec"]

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(recordio, "write_index", refuse)
        assert open_images(path, 3, 0, 2).num_images == 3 and os.listdir(path) == ["train.rec"]
    assert "the index is not kept (Permission denied)" in caplog.text
    open_images(path, 3, 0, 2)
    assert Path(path, "train.idx").read_text() == "0\t0\n1\t40\n2\t80\n"


def test_long_scans_are_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    monkeypatch.setattr("plsc.data.recordio_file._LOG_SECONDS", -1.0)
    monkeypatch.setattr("plsc.data.recordio_file._FORGOTTEN", 0)
    caplog.set_level(logging.INFO)
    source = open_images(write(tmp_path / "a", GOOD, index=False), 3, 0, 1)
    source.labels()
    assert "train.rec: the records are being found: 33%" in caplog.text
    assert "train.rec: the labels are being read: 0%" in caplog.text


def made(folder, count=400, classes=20, seed=None, size=50):
    """Writes images whose bytes hold their numbers; sorted by class without a seed."""
    folder.mkdir(exist_ok=True)
    writer = RecordIOWriter(folder / "train.rec", [f"name {k}" for k in range(classes)])
    order = list(range(count))
    if seed is not None:
        random.Random(seed).shuffle(order)
    for i in order:
        writer.add(Record(str(i), b"%d" % i + b" " * size, i * classes // count))
    writer.close()
    return str(folder)


def test_threads_share_a_source(tmp_path):
    path = made(tmp_path / "a")
    source = open_images(path, 20, 0, 1)
    assert source.class_names == tuple(f"name {k}" for k in range(20)) and source.num_classes == 20
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(source.read, list(range(400)) * 5))
    assert [(int(data), label) for data, label in found] == [(i, i // 20) for i in range(400)] * 5


def test_the_shuffle_is_full_unless_a_window_is_asked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    monkeypatch.setattr(recordio, "_BLOCK_BYTES", 1000)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, first, size, advice: asked.append((first, size)))
    path = made(tmp_path / "a", seed=3)
    full, window = (open_images(path, 20, 0, 1, shuffle=shuffle) for shuffle in (None, "window"))
    assert full.blocks is None and window.blocks[0] == 0 and window.blocks[-1] == 400
    for source in (full, window):
        order = source.epoch_order(0, 0, 0, 1)
        assert sorted(order.tolist()) == list(range(400))
        jumps = np.abs(np.diff(order))
        assert (np.median(jumps) < 120) == (source is window) or source is full
        assert not asked
        read_all_in_order = [source.read(i) for i in order.tolist()]
        assert len(read_all_in_order) == 400
    asked.sort()
    assert len(asked) == len(window.blocks) - 1
    assert all(first + size == following for (first, size), (following, _) in zip(asked, asked[1:]))
    assert "sorted by identity" not in caplog.text
    open_images(made(tmp_path / "b"), 20, 0, 1, shuffle="window")
    assert "its images are sorted by identity, so that batches hold few identities" in caplog.text
    asked.clear()
    open_images(path, 20, 0, 1, shuffle="window").read(5)  # of a source that another one draws from
    assert not asked


def test_each_thing_that_ranks_must_share_is_in_a_digest(tmp_path):
    one = open_images(made(tmp_path / "a"), None, 0, 1).digests()
    assert one == open_images(made(tmp_path / "b"), None, 0, 1).digests()
    for count, classes, size in ((399, 20, 50), (400, 10, 50), (400, 20, 51)):
        assert one != open_images(made(tmp_path / "c", count, classes, size=size), None, 0, 1).digests()


def test_batches_are_those_of_the_same_images_in_a_list(tmp_path, glyphs):
    images = read_label_file(str(glyphs), 12)
    writer = RecordIOWriter(tmp_path / "train.rec")
    for i in range(images.num_images):
        writer.add(Record(images.name(i), *images.read(i)))
    writer.close()
    assert (tmp_path / "property").read_text().startswith("12,")
    sources = images, open_images(str(tmp_path), 12, 0, 1)
    loaders = [ImageLoader(one, (3, 32, 32), 16, Augmentation(), seed=3) for one in sources]
    for (wanted, labels), (found, own) in zip(*(one.epoch(1) for one in loaders)):
        assert np.array_equal(wanted, found) and np.array_equal(labels, own)


def test_predict_reads_what_training_reads(tmp_path):
    pixels = [np.full((20, 30, 3), 90 * k, np.uint8) for k in range(2)]
    records = [image(k, k, encode(one, "PNG")) for k, one in enumerate(pixels)]
    write(tmp_path / "a", records, classes_txt="Ann\nBob\n")
    for path in (tmp_path / "a", tmp_path / "a" / "train.rec"):
        images = open_collection(path)
        assert images.num_images == 2 and [images.identity(i) for i in range(2)] == ["Ann", "Bob"]
        assert images.name(1) == "train.rec:1" and images.pixels(1, (3, 20, 30)).tolist() == pixels[1].tolist()
        images.check(1, open_it=True)


def test_test_sets_lie_in_the_folder_of_the_file(tmp_path):
    write(tmp_path / "a", GOOD)
    assert folder_of(str(tmp_path / "a" / "train.rec")) == folder_of(str(tmp_path / "a")) == str(tmp_path / "a")
    assert folder_of("nowhere.rec") == "nowhere.rec"


def test_the_writer_refuses_what_the_format_cannot_hold_and_leaves_nothing_half_written(tmp_path):
    writer = RecordIOWriter(tmp_path / "train.rec")
    writer.add(Record("a", encode(np.zeros((20, 30, 3), np.uint8)), 7))
    for label in (-1, 2**24):
        with pytest.raises(DataError, match=f"b: label {label} does not fit into RecordIO"):
            writer.add(Record("b", b"x", label))
    assert not (tmp_path / "train.rec").exists()
    writer.close()
    assert sorted(os.listdir(tmp_path)) == ["property", "train.idx", "train.rec"]
    assert (tmp_path / "property").read_text() == "8,20,30\n"


def test_a_writer_of_more_records_than_float32_counts_leaves_the_ranges_out(tmp_path, monkeypatch):
    for most, ranges in ((8, True), (7, False)):
        monkeypatch.setattr(recordio, "EXACT", most)
        folder = tmp_path / str(most)
        folder.mkdir()
        writer = RecordIOWriter(folder / "train.rec")
        for i in range(5):
            writer.add(Record("a", b"%d" % i, i // 3))
        writer.close()
        keys = [int(line.split()[0]) for line in (folder / "train.idx").open()]
        assert keys == ([1, 2, 3, 4, 5, 0, 6, 7] if ranges else [0, 1, 2, 3, 4])
        assert [int(data) for data, _ in read_all(open_images(str(folder), 2, 0, 1))] == list(range(5))
