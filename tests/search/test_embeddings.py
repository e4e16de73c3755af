"""Embeddings folders: how they are written, resumed, read, and kept apart."""

import fcntl
import importlib
import json
import os
import shutil

import numpy as np
import pytest

from plsc.errors import ConfigError, DataError
from plsc.search import embeddings
from plsc.search import parquet as parquet_module
from plsc.search.embeddings import (
    EmbeddingsWriter,
    open_embeddings,
    read_table,
    write_table,
)
from plsc.search.parquet import check_parquet, write_parquet

VECTORS = np.random.default_rng(0).standard_normal((7, 3)).astype("float32")
META = {"count": 7, "emb_dim": 3, "model": "m", "flip": False, "skip_damaged": False}
IMAGES = [(f"{i}.png", "人" * (i % 2)) for i in range(7)]
FILES = ["embeddings.npy", "images.tsv", "manifest.json"]


class Stopped(BaseException):
    """A stand-in for the death of the process, which no code catches."""


def write(folder, first=0, meta=META):
    """Writes all missing rows, two at a time."""
    writer = EmbeddingsWriter(folder, meta)
    assert writer.rows >= first
    for start in range(writer.rows, 7, 2):
        writer.append(VECTORS[start : start + 2])
    writer.finish(iter(IMAGES))
    writer.close()
    return folder


def test_a_folder_with_files_of_the_user_is_refused(tmp_path):
    for name in ("photo.jpg", "embeddings.parquet", ".hidden"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}: holds photo.jpg, and .* such as {tmp_path}/embeddings"):
        write(tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "photo.jpg").unlink()
    write(tmp_path)
    (tmp_path / "faces.index").touch()  # what the user adds later is no hindrance
    write(tmp_path)


def contents(folder):
    """Returns the bytes of each file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def die(writer):
    """Does what the end of a process does: closes its files, and nothing else."""
    writer._release()


def interrupted(folder, rows=4, meta=META):
    """Leaves what a process leaves that dies with 4 rows recorded and one more written."""
    writer = EmbeddingsWriter(folder, meta)
    writer.append(VECTORS[:rows])
    writer._save()
    os.write(writer._stream.fileno(), b"a row cut sho")
    die(writer)


def test_a_folder_holds_what_was_written_in_order(tmp_path):
    made = open_embeddings(write(tmp_path / "new" / "e"))
    assert np.array_equal(made.vectors, VECTORS) and made.vectors.dtype == np.float32
    assert list(zip(made.names, made.identities)) == IMAGES
    assert {key: made.meta[key] for key in META} == META
    assert sorted(contents(tmp_path / "new" / "e")) == FILES
    assert np.array_equal(np.load(tmp_path / "new" / "e" / "embeddings.npy"), VECTORS)


def test_names_of_any_kind_survive_the_table(tmp_path):
    rows = [
        ('tab\tquote".jpg', "a"),
        ("new\nline\r.jpg", ""),
        ("人/ 一", "\r"),
        ("'", '"'),
        ("\udcca\udcfd.jpg", "\udcff"),
    ]
    write_table(tmp_path / "t", rows)
    assert list(zip(*read_table(tmp_path / "t"))) == rows


def test_a_writer_resumes_where_another_stopped(tmp_path):
    straight = contents(write(tmp_path / "straight"))
    interrupted(tmp_path / "e")
    assert sorted(contents(tmp_path / "e")) == [".embeddings.npy.part", ".embeddings.progress.json"]
    with pytest.raises(DataError, match="not a complete embeddings folder"):
        open_embeddings(tmp_path / "e")
    write(tmp_path / "e", first=4)
    assert contents(tmp_path / "e") == straight
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "e").iterdir()}
    write(tmp_path / "e", first=7)  # The folder is complete, so nothing changes.
    assert {path.name: path.stat().st_ino for path in (tmp_path / "e").iterdir()} == inodes


def test_a_killed_writer_resumes_from_the_last_record(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_SAVE_SECONDS", 0)
    writer = EmbeddingsWriter(tmp_path, META)
    writer.append(VECTORS[:3])
    die(writer)
    assert EmbeddingsWriter(tmp_path, META).rows == 3


def stop_after(number, patch):
    """Makes the process end at the call after `number` calls that change the disk."""
    calls = iter(range(number))

    def counted(real):
        def call(*arguments, **options):
            if next(calls, None) is None:
                raise Stopped
            return real(*arguments, **options)

        return call

    for name in ("replace", "fsync", "unlink"):
        patch.setattr(os, name, counted(getattr(os, name)))


def test_a_stop_at_any_step_of_finishing_loses_nothing(tmp_path, monkeypatch):
    straight = contents(write(tmp_path / "straight"))
    for number in range(99):
        folder = tmp_path / str(number)
        writer = EmbeddingsWriter(folder, META)
        writer.append(VECTORS)
        with monkeypatch.context() as patch:
            stop_after(number, patch)
            try:
                writer.finish(iter(IMAGES))
                break
            except Stopped:
                pass
        die(writer)
        if (folder / ".embeddings.progress.json").exists():
            (folder / ".images.tsv.99999.part").write_text("left by a process of another number")
        write(folder, first=0 if number < 3 else 7)
        assert contents(folder) == straight, f"stopped before step {number}"
    assert 8 <= number < 99


@pytest.mark.parametrize(
    "change, words",
    [({"model": "n"}, "different: model"), ({"flip": True, "count": 8}, "different: count, flip"),
     ({"images": "x"}, "different: images")],
)  # fmt: skip
@pytest.mark.parametrize("make", [write, interrupted])
def test_other_embeddings_are_refused_and_kept(make, change, words, tmp_path):
    make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=rf"holds other embeddings \({words}\); name another folder"):
        EmbeddingsWriter(tmp_path, {**META, **change})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("make", [write, interrupted])
def test_embeddings_that_record_more_than_wanted_are_others_too(make, tmp_path):
    make(tmp_path, meta={**META, "pixel_rule": 2})
    with pytest.raises(ConfigError, match=r"holds other embeddings \(different: pixel_rule\)"):
        EmbeddingsWriter(tmp_path, META)


def test_skip_damaged_resumes_where_a_damaged_image_stopped_the_work(tmp_path):
    interrupted(tmp_path / "begun")
    made = open_embeddings(write(tmp_path / "begun", 4, {**META, "skip_damaged": True}))
    assert made.meta["skip_damaged"] is True
    for meta in (META, {**META, "skip_damaged": True}):
        with pytest.raises(ConfigError, match="different: skip_damaged"):
            EmbeddingsWriter(write(tmp_path / "e", 0, meta), {**META, "skip_damaged": not meta["skip_damaged"]})
        shutil.rmtree(tmp_path / "e")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("begun", [False, True])
def test_foreign_files_are_refused_and_kept(begun, name, tmp_path):
    if begun:
        interrupted(tmp_path)
    (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"holds {name}, which plsc predict did not write; name another folder"):
        EmbeddingsWriter(tmp_path, META)
    assert contents(tmp_path) == before


def test_progress_that_cannot_be_resumed_is_reported(tmp_path):
    interrupted(tmp_path)
    os.truncate(tmp_path / ".embeddings.npy.part", 140)
    with pytest.raises(ConfigError, match=r"\.embeddings\.npy\.part: is missing or cut short"):
        EmbeddingsWriter(tmp_path, META)
    (tmp_path / ".embeddings.progress.json").write_text("?")
    with pytest.raises(ConfigError, match=r"progress\.json: plsc did not write this file"):
        EmbeddingsWriter(tmp_path, META)


def test_only_one_process_writes_at_a_time(tmp_path, monkeypatch):
    first = EmbeddingsWriter(tmp_path, META)
    with pytest.raises(ConfigError, match="is writing there; wait for it"):
        EmbeddingsWriter(tmp_path, META)
    first.append(VECTORS)
    first.finish(iter(IMAGES))
    first.close()
    write(tmp_path, first=7)

    def no_locks(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(tmp_path / "e")


def test_a_full_disk_is_reported_and_with_space_the_writer_resumes(small_disk):
    meta = {**META, "count": 4, "emb_dim": 50_000}  # 0.2 MB per row.
    row = np.ones((1, 50_000), "float32")
    (small_disk / "of others").write_bytes(bytes(500_000))
    writer = EmbeddingsWriter(small_disk / "e", meta)
    with pytest.raises(ConfigError, match=r"e: cannot be written \(No space left on device\); free space or"):
        for _ in range(4):
            writer.append(row)
    assert writer.rows == 2
    (small_disk / "of others").unlink()
    writer.close()
    writer = EmbeddingsWriter(small_disk / "e", meta)
    assert writer.rows == 2
    for _ in range(2):
        writer.append(row)
    writer.finish([("x", "")] * 4)
    writer.close()
    assert (open_embeddings(small_disk / "e").vectors == 1).all()


@pytest.mark.parametrize("place", ["/proc/no/such", "a file"])
def test_a_folder_that_cannot_be_created_is_reported(place, tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(ConfigError, match="cannot write there"):
        EmbeddingsWriter(tmp_path / place, META)


def test_folders_that_cannot_be_read_are_reported(tmp_path):
    folder = write(tmp_path / "e")
    for name, content in (("embeddings.npy", b""), ("images.tsv", b'"a\t\n'), ("manifest.json", b"[]")):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match="not a complete embeddings folder"):
            open_embeddings(folder)
        (folder / name).write_bytes(kept)
    open_embeddings(folder)


def test_parquet_holds_the_same_embeddings(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet_module, "_ROWS", 3)
    folder = write(tmp_path / "e")
    check_parquet(folder)
    (folder / ".embeddings.parquet.123.part").touch()  # of a process that was killed
    writer, was_made = parquet.ParquetWriter, []
    monkeypatch.setattr(
        parquet, "ParquetWriter", lambda path, *rest: was_made.append(os.path.exists(path)) or writer(path, *rest)
    )
    table = parquet.read_table(write_parquet(folder))
    assert was_made == [True], "the name that no other user can guess stays taken"
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), VECTORS)
    assert list(zip(table["name"].to_pylist(), table["identity"].to_pylist())) == IMAGES
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[3]"
    assert sorted(contents(folder)) == sorted([*FILES, "embeddings.parquet"])
    made = (folder / "embeddings.parquet").stat().st_ino
    assert write_parquet(folder).stat().st_ino == made, "it is there already"
    shutil.copy(folder / "embeddings.parquet", write(tmp_path / "other", meta={**META, "model": "n"}))
    other = parquet.read_schema(write_parquet(tmp_path / "other"))
    assert json.loads(other.metadata[b"plsc"])["model"] == "n"


def test_parquet_shows_names_that_are_not_utf_8_escaped(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = os.fsdecode("数".encode("gbk"))
    monkeypatch.setattr(f"{__name__}.IMAGES", [(f"{raw}/{i}.png", raw) for i in range(7)])
    folder = write(tmp_path / raw, meta={**META, "source": f"/{raw}"})
    made = open_embeddings(folder)
    assert made.names[3] == f"{raw}/3.png" and made.meta["source"] == f"/{raw}"
    with open(write_parquet(folder), "rb") as stream:
        table = parquet.read_table(stream)
    assert table["name"].to_pylist()[3] == r"\xca\xfd/3.png" and table["identity"].to_pylist()[3] == r"\xca\xfd"
    assert json.loads(table.schema.metadata[b"plsc"])["source"] == f"/{raw}"


def test_a_foreign_parquet_file_is_kept(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    place = write(tmp_path / "e") / "embeddings.parquet"
    place.write_text("mine")
    for _ in range(2):
        kept = place.read_bytes()
        for use in (check_parquet, write_parquet):
            with pytest.raises(ConfigError, match="embeddings.parquet: plsc predict did not write this file"):
                use(tmp_path / "e")
        assert place.read_bytes() == kept
        parquet.write_table(pyarrow.table({"a": [1]}), place)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install '\.\[parquet\]'"):
        check_parquet(tmp_path)
