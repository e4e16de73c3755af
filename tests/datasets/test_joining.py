"""Shards that become one file find their place in it, or are copied there."""

import os
from contextlib import suppress

import pytest

from plsc.data.recordio_parts import read_part
from plsc.data.records import Record
from plsc.datasets import joining as module
from plsc.datasets.image_tree import DATA
from plsc.datasets.joining import Places, joining
from plsc.datasets.staging import WHOLE, ShardRecord, Staging
from plsc.datasets.targets import TARGETS

TARGET, SHARDS = TARGETS["recordio"], 3


@pytest.fixture
def staging(tmp_path):
    staging = Staging(tmp_path)
    staging.begin({"--to": "recordio"})
    return staging


def make(staging, places, number):
    """Makes a shard of two images, as a process does. Returns whether its place was known at once."""
    with staging.piece(staging.shard(number).name) as piece:
        part = TARGET.open(piece / DATA, number, SHARDS, (), 0)
        for label in range(2):
            part.add(Record("a", b"image %d " % number * (number + 1), label))
        known = places.write(part, number)
        places.finish(part, number, lambda: None)
        part.close()
        staging.finish_shard(piece, ShardRecord(2, 0, 2, 2, 0, []), synced=True)
    return known


def is_in_place(staging, number):
    return read_part(staging.shard(number) / DATA / TARGET.file).place >= 0


def joined(staging):
    with joining(staging, TARGET, SHARDS, ()) as join:
        join()
    return (staging.folder / WHOLE / DATA / TARGET.file).read_bytes()


def test_a_shard_is_in_place_if_those_before_it_are_known_and_otherwise_copied(staging, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    (tmp_path / "other").mkdir()
    other = Staging(tmp_path / "other")
    other.begin({"--to": "recordio"})
    for one, order, in_place in ((staging, (0, 1, 2), [True] * 3), (other, (2, 0, 1), [True, True, False])):
        with suppress(KeyboardInterrupt), joining(one, TARGET, SHARDS, ()):
            places = Places(one, TARGET, SHARDS)
            assert [make(one, places, number) for number in order] == [in_place[number] for number in order]
            raise KeyboardInterrupt
        assert [is_in_place(one, number) for number in range(SHARDS)] == in_place
        assert [(one.shard(k) / DATA / TARGET.file).exists() for k in range(SHARDS)] == [
            not known for known in in_place
        ]
    assert joined(staging) == joined(other)
    with joining(staging, TARGET, SHARDS, ()) as join:  # of a run that was killed before it put the file in place
        join()


def test_a_resumed_run_knows_the_places_of_the_shards_that_are_complete(staging, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    with suppress(KeyboardInterrupt), joining(staging, TARGET, SHARDS, ()) as join:
        places = Places(staging, TARGET, SHARDS)
        make(staging, places, 0)
        join()
        raise KeyboardInterrupt
    (staging.folder / module._UNFINISHED / DATA / ".train.idx.1.ab.part").touch()  # of a writer that was killed
    with joining(staging, TARGET, SHARDS, ()) as join:
        assert all(make(staging, Places(staging, TARGET, SHARDS), number) for number in (1, 2))
    found = (staging.folder / WHOLE / DATA / TARGET.file).read_bytes()
    assert found.count(b"image 0 ") == 2 and found.count(b"image 2 " * 3) == 2
    assert sorted(os.listdir(staging.folder / WHOLE / DATA)) == ["property", "train.idx", "train.rec"]
