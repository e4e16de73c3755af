import functools
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data import shard_files, tar_index_file, tar_shards
from plsc.data.records import Record
from plsc.data.sources import open_images
from plsc.data.tar_index import index_tar
from plsc.data.tar_shards import TarShards, TarWriter
from plsc.errors import ConfigError, DataError


def tar(path, members, format=tarfile.GNU_FORMAT):
    """Writes a tar of (name, content); content is bytes, or a TarInfo that says what kind of member it is."""
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as file:
        for name, content in members:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo()
            member.name = name
            if isinstance(content, bytes):
                member.size = len(content)
            file.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return str(path)


def special(kind, target=""):
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


def samples(count, first=0, label=str):
    for i in range(first, first + count):
        yield f"a/{i:04d}.jpg", b"image %d" % i
        yield f"a/{i:04d}.cls", label(i % 7).encode()


def all_of(source):
    return [(source.name(i), *source.read(i)) for i in range(source.num_images)]


NAMES = (
    st.lists(st.text("ab.é_/ ", min_size=1, max_size=140), min_size=1, max_size=3)
    .map("/".join)
    .filter(lambda name: ".." not in name.split("/"))
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1100), st.integers(0, 10**9 - 1)), min_size=1, max_size=12))
def test_what_is_written_is_read(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    writer = TarWriter(path)
    for name, data, label in written:
        writer.add(Record(name, data, label))
    writer.close()
    source = open_images(str(path), None, 0, 1)
    found = all_of(source)
    assert [one[1:] for one in found] == [one[1:] for one in written]
    assert source.labels().tolist() == [label for _, _, label in written]
    assert len({name for name, _, _ in found}) == len(written)
    with tarfile.open(path) as file:  # other programs find the same
        content = {one.name: file.extractfile(one).read() for one in file}
    for name, data, label in found:
        assert content[name] == data
        folder, _, base = name.rpartition("/")
        assert int(content[os.path.join(folder, base.partition(".")[0] + ".cls")]) == label


def test_a_writer_keeps_names_and_makes_keys_from_them(tmp_path):
    webp = b"RIFF0000WEBP"
    cases = [
        *(("a/1.jpg", b"", "a/1.jpg"), ("a/1.png", b"", "a/1_1.png"), ("v1.5/b.c.JPG", b"", "v1.5/b_c.JPG")),
        *(("part:7", b"\x89PNG", "part:7.png"), ("x.bin", webp, "x_bin.webp"), ("__a__/1", b"", "x__a__/1.jpg")),
        *((".h.jpg", b"", "_h.jpg"), ("1/" + "n" * 150 + ".jpg", b"", "1/" + "n" * 150 + ".jpg")),
        ("\udcff.jpg", b"", "\udcff.jpg"),
    ]
    writer = TarWriter(tmp_path / "x.tar", ["zoë", "adam"])
    for name, data, _ in cases:
        writer.add(Record(name, data, 1))
    writer.close()
    source = TarShards(str(tmp_path))
    assert [source.name(i) for i in range(source.num_images)] == [one[2] for one in cases]
    assert list(source.class_names) == ["zoë", "adam"] and source.num_classes == 2


@pytest.mark.parametrize("name", ["a/b.jpg", "é" * 50, "x" * 100, "x" * 101, "\udcff.cls"])
@pytest.mark.parametrize("size", [0, 12345, 8**10, 8**11])
def test_headers_are_those_of_python(name, size):
    header = tarfile.TarInfo(name)
    header.size = size
    assert tar_shards._header(name, size) == header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_length_and_format_are_read(tmp_path, format):
    names = ["x.jpg", f"{'d' * 90}/{'n' * 95}.jpg", "é/ü.jpg", *(["l" * 3000 + ".jpg"] if format else [])]
    members = [one for name in names for one in ((name, name.encode()), (name[:-3] + "cls", b"3\n"))]
    source = open_images(tar(tmp_path / "x.tar", [("d", special(tarfile.DIRTYPE)), *members], format), 4, 0, 1)
    assert all_of(source) == [(name, name.encode(), 3) for name in names]
    assert source.where(1) == f"{tmp_path}/x.tar: member '{names[1]}'"


def test_a_size_in_a_pax_header_or_in_binary_counts(tmp_path):
    path = tmp_path / "x.tar"
    first = tarfile.TarInfo("a.jpg")
    first.pax_headers, first.size = {"size": "600", "comment": "="}, 0
    binary = tarfile.TarInfo("b.jpg")
    binary.size = 3
    header = bytearray(binary.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (3).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    labels = [tar(tmp_path / f"{key}.cls.tar", [(f"{key}.cls", b"1")]) for key in "ab"]
    parts = [Path(one).read_bytes()[:1024] for one in labels]
    body = first.tobuf(tarfile.PAX_FORMAT) + bytes([7]) * 600 + bytes(424) + parts[0]
    path.write_bytes(body + bytes(header) + b"abc".ljust(512, b"\0") + parts[1] + bytes(1024))
    assert all_of(open_images(str(path), 2, 0, 1)) == [("a.jpg", bytes([7]) * 600, 1), ("b.jpg", b"abc", 1)]


def test_paths_name_a_tar_a_folder_or_a_pattern(tmp_path):
    for number in range(12):
        tar(tmp_path / f"train-{number:02d}.tar", samples(3, 3 * number))
    count = {
        "train-03.tar": 3, "": 36, "train-{00..11}.tar": 36, "train-{9..10}.tar": None, "train-{09..10}.tar": 6,
        "train-{01,03}.tar": 6, "train-*.tar": 36, "train-0[12].tar": 6, "{train,train}-{00..01}.tar": 12,
        "test-*.tar": None, "train-{10..12}.tar": None, "train-{2..1}.tar": None,
    }  # fmt: skip
    for pattern, wanted in count.items():
        path = os.path.join(tmp_path, pattern)
        if wanted is None:
            with pytest.raises(DataError, match="no such file"):
                open_images(path, 7, 0, 1)
        else:
            source = open_images(path, 7, 0, 1)
            assert source.num_images == wanted
            prefix = "train-00/" if pattern.startswith("{train,") else ""
            assert source.name(0).startswith(f"{prefix}a/")
    with pytest.raises(ConfigError, match=r"shuffle='files'\): tar data takes 'window' or 'full'"):
        open_images(str(tmp_path), 7, 0, 1, shuffle="files")
    tar(tmp_path / "val-00.tar", samples(2, 50))
    assert open_images(str(tmp_path), 7, 0, 1).num_images == 36  # the validation split is left out
    (tmp_path / "data").mkdir()
    for path in tmp_path.glob("*.tar"):
        path.rename(tmp_path / "data" / path.name)
    assert open_images(str(tmp_path), 7, 0, 1).num_images == 36


def test_names_are_those_of_the_members_unless_two_tars_have_a_key(tmp_path):
    tar(tmp_path / "a.tar", samples(2))
    tar(tmp_path / "b.tar", samples(1))
    source = TarShards(str(tmp_path))
    assert [source.name(i) for i in range(3)] == ["a/a/0000.jpg", "a/a/0001.jpg", "b/a/0000.jpg"]


def test_labels_are_integers_or_names_in_cls_or_json(tmp_path):
    def read(*labels):
        members = []
        for i, label in enumerate(labels):
            suffix = "cls" if isinstance(label, bytes) else "json"
            content = label if isinstance(label, bytes) else json.dumps(label).encode()
            members += [(f"{i}.JPG", b"x"), (f"{i}.txt", b"a caption"), (f"{i}.{suffix}", content)]
        source = TarShards(tar(tmp_path / "x.tar", members))
        return source.labels().tolist(), list(source.class_names)

    assert read(b"3", b" 12\n", b"+1", {"label": 0, "cls": 9}, {"cls": 4}, {"class": "5"}) == ([3, 12, 1, 0, 4, 5], [])
    assert read(b"zoe", {"class": "adam"}, "é".encode(), {"label": "zoe"}) == ([1, 0, 2, 1], ["adam", "zoe", "é"])
    big = {"label": 2, "exif": "x" * 5000}  # as img2dataset writes it
    assert read(big, big) == ([2, 2], [])
    for wrong in (b"", b"1.5", b"-1", b"9" * 30, b"\xff", b"a\0b", b"x" * 2000, [3], {"label": 1.0}, {"label": True},
                  {"label": [1]}, {}, {"label": None}, {"label": -1}, {"label": 10**9}):  # fmt: skip
        with pytest.raises(DataError, match=r"x.tar: member '1.(cls|json)':"):
            read(b"0", wrong)
    with pytest.raises(DataError, match=r"integers or all names.*member '0.JPG': 1, and .*member '1.JPG': 'b'"):
        read(b"1", b"b")
    with pytest.raises(DataError, match=r"member '1.JPG': label 7 is outside \[0, 5\).*set_class_num\(8\)"):
        open_images(
            tar(tmp_path / "x.tar", [("0.jpg", b""), ("0.cls", b"1"), ("1.JPG", b""), ("1.cls", b"7")]), 5, 0, 1
        )


GOOD = [("1.jpg", b"one"), ("1.cls", b"1")]


@pytest.mark.parametrize(
    "members, says",
    [
        ([], "no image in 1 tar file; a sample is KEY.jpg"),
        ([("readme.txt", b"")], "no image in 1 tar file; left out: keys without an image: 1 .such as 'readme'"),
        ([*GOOD, ("2.jpg", b"")], "member '2.jpg': has no label, because no .cls or .json"),
        ([("1.jpg", b""), ("2.jpg", b""), ("1.cls", b"1"), ("2.cls", b"1")], "'1.jpg': has no label.*--sort=name"),
        ([*GOOD, ("2.jpg", b""), ("2.cls", b"1"), *GOOD], "'1.jpg' and '1.jpg' have the same key.*do not follow"),
        ([("1.cls", b"1"), *GOOD], "'1.cls': the tar has two members of this name"),
        ([*GOOD, ("1.png", b"")], "'1.jpg' and '1.png' have the same key.*first dot"),
        ([("v.1.jpg", b""), ("v.2.jpg", b""), ("v.cls", b"1")], "'v.1.jpg' and 'v.2.jpg' have the same key"),
        ([*GOOD, ("a/../2.jpg", b"")], "'a/../2.jpg': the name leads out of its folder; nothing is unpacked"),
        ([*GOOD, ("2.jpg", special(b"S"))], "'2.jpg' is sparse.*without --sparse"),
        ([*GOOD, ("2.jpg", special(b"M"))], "one of several volumes"),
    ],
)
def test_members_that_cannot_be_training_data_are_named(tmp_path, members, says):
    with pytest.raises(DataError, match=f"^{tmp_path}/x.tar: .*{says}") as caught:
        TarShards(tar(tmp_path / "x.tar", members))
    assert "\n" not in str(caught.value)


def test_what_is_no_sample_is_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "plsc")
    links = [("2.jpg", special(b"1", "1.jpg")), ("3.jpg", special(b"2", "1.jpg")), ("4.jpg", special(b"3"))]
    hidden = [("._1.jpg", b""), ("Makefile", b""), ("__meta__", b"{"), ("note.txt", b"x")]
    one = [("/b/1.seg.png", b"mask"), ("/b/1.jpg", b"one"), ("/b/1.cls", b"1")]
    source = TarShards(tar(tmp_path / "x.tar", [*links, *hidden, *one, ("\udcff.jpg", b"two"), ("\udcff.cls", b"0")]))
    assert all_of(source) == [("b/1.jpg", b"one", 1), ("\udcff.jpg", b"two", 0)]
    assert source.where(1) == rf"{tmp_path}/x.tar: member '\xff.jpg'"
    assert "links, devices and other special members: 3 (such as '2.jpg')" in caplog.text
    assert "names without a key or a suffix: 2 (such as '._1.jpg')" in caplog.text
    assert "keys without an image: 1 (such as 'note')" in caplog.text
    assert "'/b/1.seg.png': names begin with a slash" in caplog.text


def test_files_that_are_no_whole_tar_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    good = Path(tar(path, samples(3))).read_bytes()
    assert len(good) == 10240
    compressed = {b"\x1f\x8b\x08": "gzip", b"BZh9": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    for begin, program in compressed.items():
        path.write_bytes(begin + good)
        with pytest.raises(DataError, match=rf"compressed .{program}.*{program} -dc {path} > .*/x.plain.tar$"):
            TarShards(str(path))
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = b"x", 512
    for content, says in (
        (b"", "is empty"),
        (b"garbage" * 200, "is not a tar file"),
        (good[:700], "member 'a/0000.jpg' needs 519 bytes|byte 1,024 should|ends at byte 700"),
        (good[:1024], "ends at byte 1,024 without the zero bytes.*cut off; copy it again.*head -c 1024"),
        (good[:1100], "byte 1,024 should begin a member.*cut off"),
        (good[:515], "'a/0000.jpg' needs 519 bytes and the file has 515, so it was cut off"),
        (good[:1024] + b"x" + good[1025:], "byte 1,024 should begin a member.*damaged"),
        (good + good, "another tar follows the end of the first, at byte 10,240; .*--concatenate"),
        (pax.tobuf() + b"9 path=ab\n".ljust(512, b"\0") + good, "PAX header at byte 0 is damaged"),
        (pax.tobuf() + b"9 path=a\nxxxxxxxxx=".ljust(512, b"\0") + good, "PAX header at byte 0 is damaged"),
        (pax.tobuf() + b"10 size=-1\n".ljust(512, b"\0") + good, "names no size|PAX header"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=says):
            TarShards(str(path))
    path.write_bytes(good + b"x" * 600)  # what a tape has after a tar
    source = TarShards(str(path))
    os.truncate(path, 100)
    with pytest.raises(DataError, match=f"{path}: member .*become shorter"):
        source.read(0)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match="pipe.tar: cannot be read"):
        TarShards(str(tmp_path / "pipe.tar"))


def test_orders_keep_blocks_together_and_threads_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_shards, "_BLOCK_BYTES", 4000)
    few = functools.lru_cache(2)(shard_files._opened.__wrapped__)  # so that files are closed while others are read
    monkeypatch.setattr(shard_files, "_opened", few)
    for number in range(4):
        tar(tmp_path / f"{number}.tar", samples(40, 40 * number))
    source = open_images(str(tmp_path), 7, 0, 1)
    assert source.blocks[0] == 0 and source.blocks[-1] == 160 and len(source.blocks) > 20
    assert {40, 80, 120} <= set(source.blocks.tolist())
    shares = [source.epoch_order(5, 1, rank, 3) for rank in range(3)]
    assert set(np.concatenate(shares).tolist()) == set(range(160)) and {len(one) for one in shares} == {54}
    full = open_images(str(tmp_path), 7, 0, 1, "tar", "full")
    assert full.blocks is None and full.digests() == source.digests()
    wanted = [(b"image %d" % i, i % 7) for i in range(160)]
    with ThreadPoolExecutor(4) as threads:
        for one in (source, full):
            order = [i for epoch in range(5) for i in one.epoch_order(0, epoch, 0, 1).tolist()]
            assert list(threads.map(one.read, order)) == [wanted[i] for i in order]
    tar(tmp_path / "3.tar", samples(40, 120, lambda i: str((i + 1) % 7)))
    assert open_images(str(tmp_path), 7, 0, 1).digests() != source.digests()


def test_the_index_of_a_large_tar_is_kept_and_belongs_to_one_state_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index_file, "_FEWEST", 3)
    members = [("__classes__", b"a\nb\nc\nd\n"), ("/\udcff.jpg", b"x"), ("/\udcff.cls", b"1"), ("readme.txt", b""),
               *samples(4)]  # fmt: skip
    path = tmp_path / "x.tar"

    def reopened(first, keeps_index=True):
        """Opens the tars as rank 0 does, and returns what can be told of them."""
        scanned = []
        monkeypatch.setattr(tar_index_file, "index_tar", lambda path: scanned.append(path) or index_tar(path))
        source = open_images(str(tmp_path), None, first, 2, keeps_index=keeps_index)
        names = [source.where(i) for i in range(source.num_images)]
        return len(scanned), (all_of(source), names, list(source.class_names), source.digests())

    tar(path, members)
    kept = Path(tar_index_file.index_path(str(path)))
    assert reopened(0)[0] == 1 and not kept.exists(), "the tar may change within one tick of the clock"
    monkeypatch.setattr(tar_index_file, "CLOCK", 0)
    assert reopened(1)[0] == 1 and reopened(0, keeps_index=False)[0] == 1 and not kept.exists()
    _, whole = reopened(0)
    assert [reopened(rank) for rank in (0, 1)] == [(0, whole)] * 2 and len(whole[0]) == 5

    good = kept.read_bytes()
    for spoilt in (b"", good[:-40], good.replace(b"\x93NUMPY", b"\x93numpy"), bytes(len(good))):
        kept.write_bytes(spoilt)
        assert reopened(1) == (1, whole)
    assert reopened(0) == (1, whole) and reopened(1) == (0, whole), "a damaged index is made again"

    tar(path, [*members, ("9.jpg", b"new"), ("9.cls", b"0")])
    assert reopened(1)[0] == 1 and len(reopened(1)[1][0]) == 6
    os.utime(path, ns=(0, 0))
    assert reopened(1)[0] == 1, "another time"
    tar(
        path, [("1.jpg", b""), ("1.cls", b"zoe"), ("2.jpg", b""), ("2.cls", b"adam"), ("3.jpg", b""), ("3.cls", b"zoe")]
    )
    named = reopened(0)
    assert named[0] == 1 and reopened(0) == (0, named[1]) and named[1][2] == ["adam", "zoe"]
    kept.unlink()
    kept.mkdir()  # as where nothing can be written
    assert reopened(0) == (1, named[1])
