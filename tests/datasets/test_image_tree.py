"""Whichever shard comes first, and wherever a process is killed, the names are those that a single process gives."""

import os
import random
import shutil

import pytest

from plsc.data.records import Record
from plsc.datasets import image_tree
from plsc.datasets.image_tree import DATA, TREE, TreeWriter, check_count, owned_sizes, roll_back, settle
from plsc.errors import DataError

CLASSES = ["a", "b"]


class Killed(BaseException):
    pass


def random_shards(rng):
    """Images of some shards, of which many share a name, and some have the name that a number would make."""
    names = ["x.jpg", "x-2.jpg", "x-3.jpg", "y.jpg", "y", "y-2"]
    return [
        [Record(rng.choice(names), b"%d %d" % (shard, i), rng.randrange(2)) for i in range(rng.randrange(1, 12))]
        for shard in range(4)
    ]


def begin(folder, name):
    (folder / name / DATA).mkdir(parents=True)
    return TreeWriter(folder / name / DATA, CLASSES)


def files_of(folder):
    tree = folder / TREE / DATA
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def made_in_turn(folder, shards):
    for number, records in enumerate(shards):
        writer = begin(folder, f"shard-{number:05d}")
        for record in records:
            writer.add(record)
        writer.close()
    settle(folder, [folder / f"shard-{number:05d}" for number in range(len(shards))])
    return files_of(folder)


def made_at_once_with_a_kill(folder, shards, rng):
    """Makes the shards side by side, kills them all at some image, and makes those that were not complete again."""
    left = [list(records) for records in shards]
    writers = [begin(folder, f"piece-{number}") for number in range(len(shards))]
    for _ in range(rng.randrange(sum(map(len, shards)) + 1)):
        number = rng.choice([k for k, records in enumerate(left) if records])
        writers[number].add(left[number].pop(0))
        if not left[number]:
            writers[number].close()
            os.rename(folder / f"piece-{number}", folder / f"shard-{number:05d}")
    pieces, whole = list(folder.glob("piece-*")), list(folder.glob("shard-*"))
    roll_back(folder, pieces, whole)
    for piece in pieces:
        shutil.rmtree(piece)
    again = [k for k in range(len(shards)) if left[k]]
    rng.shuffle(again)
    for number in again:
        writer = begin(folder, f"shard-{number:05d}")
        for record in shards[number]:
            writer.add(record)
        writer.close()


def settled_with_kills(folder, shards, monkeypatch):
    """Calls `settle` again and again, of which each call is killed at its second file."""
    rename = os.rename

    def rename_one(source, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(image_tree.os, "rename", rename_one)
        while True:
            renamed = []
            try:
                return settle(folder, shards)
            except Killed:
                pass


@pytest.mark.parametrize("seed", range(40))
def test_names_are_those_of_a_single_process(seed, tmp_path, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(image_tree, "_BATCH", rng.choice([1, 2, 64]))
    monkeypatch.setattr(image_tree, "_PASSES", rng.choice([1, 16]))
    shards = random_shards(rng)
    expected = made_in_turn(tmp_path / "in turn", shards)
    folder = tmp_path / "at once"
    made_at_once_with_a_kill(folder, shards, rng)
    made = [folder / f"shard-{number:05d}" for number in range(len(shards))]
    check_count(folder, made, sum(map(len, shards)))
    settled_with_kills(folder, made, monkeypatch)
    assert files_of(folder) == expected and len(expected) == sum(map(len, shards))


def test_the_first_image_of_a_name_keeps_it(tmp_path):
    shards = [[Record("1/x.jpg", b"1", 0), Record("2/x.jpg", b"2", 0)], [Record("x.jpg", b"3", 0)]]
    assert made_in_turn(tmp_path, shards) == {"a/x.jpg": b"1", "a/x-2.jpg": b"2", "a/x-3.jpg": b"3"}


def test_a_line_that_a_kill_cut_off_removes_nothing(tmp_path):
    writer = begin(tmp_path, "shard-00000")
    writer.add(Record("x.jpg", b"1", 0))
    writer.close()
    (tmp_path / "piece").mkdir()
    (tmp_path / "piece" / "intended").write_bytes(b"a/x.jpg\na/y.jpg\na/x.j")
    roll_back(tmp_path, [tmp_path / "piece"], [tmp_path / "shard-00000"])
    assert files_of(tmp_path) == {"a/x.jpg": b"1"}


def test_files_that_a_power_cut_lost_or_left_are_noticed(tmp_path):
    made_in_turn(tmp_path, [[Record("x.jpg", b"1", 0)]])
    shard = tmp_path / "shard-00000"
    assert owned_sizes(shard) == [1]
    (tmp_path / TREE / DATA / "a" / "left.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="holds 2 files of 1 images, as after a power cut; remove it, and run"):
        check_count(tmp_path, [shard], 1)
    (tmp_path / TREE / DATA / "a" / "x.jpg").unlink()
    with pytest.raises(OSError):
        owned_sizes(shard)
