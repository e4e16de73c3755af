import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data import parquet_files
from plsc.data.parquet_files import ParquetFiles, ParquetWriter
from plsc.data.records import Record
from plsc.data.sources import format_of, open_images
from plsc.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BYTES = pa.array([b"one", b"two", b"three"])
LABELS = pa.array([0, 1, 4])


def table(path, columns, rows_per_group=2, metadata=None, **options):
    made = pa.table(columns)
    pq.write_table(made.replace_schema_metadata(metadata), path, row_group_size=rows_per_group, **options)
    return str(path)


def all_of(source):
    return [(source.name(i), *source.read(i)) for i in range(source.num_images)]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=60), st.integers(0, 10**9 - 1)), min_size=1, max_size=25),
    st.integers(1, 9),
    st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, written, group, differ):
    path = tmp_path_factory.mktemp("parquet") / "x.parquet"
    records = [Record(f"a/{i if differ else 0}.jpg", *one) for i, one in enumerate(written)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "_GROUP_IMAGES", group)
        writer = ParquetWriter(path)
        for record in records:
            writer.add(record)
        writer.close()
    source = open_images(str(path), None, 0, 1)
    by_path = differ or len(records) == 1
    assert all_of(source) == [one if by_path else (f"x/{i}", *one[1:]) for i, one in enumerate(records)]
    assert source.labels().tolist() == [one.label for one in records]
    assert source.blocks.tolist() == [*range(0, len(records), group), len(records)]


def test_a_writer_bounds_row_groups_and_names_classes_as_hugging_face_does(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "_GROUP_BYTES", 100)
    writer = ParquetWriter(tmp_path / "x.parquet", ["zoë", "adam"])
    for i in range(10):
        writer.add(Record(f"{i}\udcff.jpg", bytes(40), i % 2))
    writer.close()
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [3, 3, 3, 1]
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": ["zoë", "adam"], "_type": "ClassLabel"}}
    source = ParquetFiles(str(tmp_path))
    assert list(source.class_names) == ["zoë", "adam"] and source.name(0) == r"0\xff.jpg"


@pytest.mark.parametrize(
    "columns, names, labels",
    [
        ({"id": LABELS, "image": BYTES, "label": LABELS}, [], [0, 1, 4]),
        ({"IMG": BYTES.cast(pa.large_binary()), "Class": LABELS.cast(pa.uint8())}, [], [0, 1, 4]),
        ({"thumb": BYTES, "jpg": BYTES, "labels": pa.array(["b", "a", "b"])}, ["a", "b"], [1, 0, 1]),
        ({"photo": BYTES, "identity": pa.array(["x", "é", "x"]).dictionary_encode()}, ["x", "é"], [0, 1, 0]),
        ({"a.bytes": BYTES, "label": pa.array(["10", "9", "9"])}, ["10", "9"], [0, 1, 1]),
    ],
)
def test_columns_are_found_by_their_names_and_types(tmp_path, columns, names, labels):
    source = ParquetFiles(table(tmp_path / "x.parquet", columns))
    assert all_of(source) == [(f"x/{i}", data, label) for i, (data, label) in enumerate(zip(BYTES.to_pylist(), labels))]
    assert list(source.class_names) == names and source.labels().tolist() == labels
    assert source.where(2) == f"{tmp_path}/x.parquet: row 2"


def test_a_struct_gives_the_names_and_the_schema_those_of_the_classes(tmp_path):
    images = pa.array([{"bytes": b"one", "path": "a/1.jpg"}, {"bytes": b"two", "path": "/../2.jpg"}], STRUCT)
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    (tmp_path / "data").mkdir()
    columns = {"image": images, "label": pa.array([1, 0])}
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        table(tmp_path / f"data/{name}.parquet", columns, 1, {"huggingface": json.dumps(info)})
    assert format_of(str(tmp_path)) == "parquet"
    source = open_images(str(tmp_path), None, 0, 1)
    assert all_of(source) == [("a/1.jpg", b"one", 1), ("2.jpg", b"two", 0)]  # those of the training split
    assert list(source.class_names) == ["cat", "dog"] and source.num_classes == 2
    table(tmp_path / "data/train-2.parquet", columns, metadata={"huggingface": "{" * 99})
    with pytest.raises(DataError, match="train-2.parquet: names other classes than .*train-00000"):
        ParquetFiles(str(tmp_path))


def struct(*pairs):
    return pa.array([pair and dict(zip(("bytes", "path"), pair)) for pair in pairs], STRUCT)


@pytest.mark.parametrize(
    "columns, says",
    [
        ({"image": BYTES}, "no column 'label'.*'image' .binary"),
        ({"image": BYTES, "fine_label": LABELS}, "no column 'label'.*'fine_label' .int64"),
        ({"label": LABELS}, "no column 'image' of encoded images"),
        ({"a": BYTES, "b": BYTES, "label": LABELS}, "no column 'image' of encoded images"),
        ({"image": pa.array([[1], [2], [3]]), "label": LABELS}, r"no column 'image'.*list<"),
        ({"image": pa.array(["a", "b", "c"]), "label": LABELS}, r"no column 'image'.*string"),
        (
            {"image": BYTES, "label": pa.array([0.0, 1.0, 2.0])},
            "labels in column 'label' are double; make them integers",
        ),
        ({"image": BYTES, "label": pa.array([[0], [1], [2]])}, "labels in column 'label' are list<"),
        ({"image": BYTES, "label": pa.array([True, False, True])}, "labels in column 'label' are bool"),
        ({"image": BYTES, "label": pa.array([0, 1, None])}, "row 2: 'label' is null; write the table without this row"),
        ({"image": BYTES, "label": pa.array(["a", None, "b"])}, "row 1: 'label' is null"),
        ({"image": BYTES, "label": pa.array(["a", "b", " "])}, "row 2: label ' ' is not the name of a class"),
        ({"image": BYTES, "label": pa.array(["a\n", "b", "c"])}, r"row 0: label 'a\\n' is not the name"),
        ({"image": BYTES, "label": pa.array([0, 1, -1])}, "row 2: label -1 is negative"),
        ({"image": BYTES, "label": pa.array([0, 10**9, 2])}, r"row 1: label 1000000000 is outside"),
        ({"image": BYTES, "label": pa.array([0, 1, 2**64 - 1], pa.uint64())}, r"row 2: label 1844\d* is outside"),
        ({"image": BYTES, "label": pa.array([0, 9, 3])}, r"row 1: label 9 is outside \[0, 5\).*set_class_num\(10\)"),
        ({"image": pa.array([b"a", b"b", None]), "label": LABELS}, "row 2: 'image' is null; write the table without"),
        ({"image": struct((b"a", "1"), None, (b"c", "3")), "label": LABELS}, "row 1: 'image.bytes' is null; write"),
        ({"image": struct((b"a", "1"), (b"b", ""), (None, "3")), "label": LABELS}, "row 2: .*only '3' in 'image.path'"),
        ({"image": struct((None, "a/1.jpg")), "label": LABELS[:1]}, "row 0: .*only 'a/1.jpg' in 'image.path'"),
        ({"image": BYTES[:0], "label": LABELS[:0]}, "no image in 1 Parquet file"),
    ],
)
def test_tables_that_do_not_fit_are_refused_in_one_line(tmp_path, columns, says):
    with pytest.raises(DataError, match=f"{tmp_path}.*{says}") as caught:
        all_of(open_images(table(tmp_path / "x.parquet", columns), 5, 0, 1))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_whole_table_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    good = Path(table(path, {"image": BYTES, "label": LABELS}, compression="none")).read_bytes()
    for content, says in (
        (b"", "is empty"),
        (b"garbage" * 9, "is not a Parquet file"),
        (good[:-5], "has no footer at its end, so it was cut off"),
        (b"PAR1", "has no footer at its end"),
        (good[:-4] + b"PARE", "is encrypted"),
        (b"PAR1" + bytes(60) + good[-8:], "cannot be read as Parquet"),
        (good[:8] + bytes(len(good) - 16) + good[-8:], "cannot be read as Parquet"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{path}: {says}"):
            ParquetFiles(str(path))
    path.write_bytes(good)
    source = ParquetFiles(str(path))
    os.truncate(path, 20)
    with pytest.raises(DataError, match=f"^{path}: cannot be read as Parquet"):
        source.read(2)  # of the second row group
    for data_format in ("parquet", "auto"):
        with pytest.raises(ConfigError, match=f"^{path}: .*shuffle='full'.: parquet data takes 'window'; .*leave shuf"):
            open_images(str(path), 5, 0, 1, data_format, "full")
    path.write_bytes(good)
    table(tmp_path / "y.parquet", {"img": BYTES, "label": LABELS})
    with pytest.raises(DataError, match=f"{tmp_path}/y.parquet: .*columns 'img' and 'label', and in {path} in 'image'"):
        ParquetFiles(str(tmp_path))


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = table(tmp_path / "x.parquet", {"image": BYTES, "label": LABELS})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"^Parquet needs pyarrow; run pip install '.\[parquet\]'"):
        open_images(path, 5, 0, 1)


@pytest.mark.parametrize("memory", [10**6, 4000])
def test_threads_decode_each_row_group_once_and_keep_few(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(parquet_files, "_MEMORY", memory)
    data = [bytes([i % 251]) * 100 for i in range(600)]
    for part in range(2):
        own = slice(300 * part, 300 * part + 300)
        columns = {"image": pa.array(data[own]), "label": pa.array(range(own.start, own.stop))}
        table(tmp_path / f"{part}.parquet", columns, 10, use_dictionary=False, compression="none")
    decoded, decode = Counter(), parquet_files.read_chunk

    def counted(path, group, *rest):
        decoded[path, group] += 1
        return decode(path, group, *rest)

    monkeypatch.setattr(parquet_files, "read_chunk", counted)
    source = open_images(str(tmp_path), 600, 0, 1)
    assert len(source.blocks) == 61 and source.window == (16 if memory > 4000 else 2)
    assert ("most images need a whole row group, 1.4" in source.slow_draws) == (memory == 4000)
    most = []
    drop = source._images._drop
    monkeypatch.setattr(
        source._images, "_drop", lambda new: (drop(new), most.append(sum(source._images._sizes.values())))
    )
    order = source.epoch_order(0, 3, 0, 1).tolist()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(source.read, order)) == [(data[i], i) for i in order]
    first = decoded.pop((str(tmp_path / "0.parquet"), 0))  # is read when the file is opened, too
    assert set(decoded.values()) == {1} and len(decoded) == 59 and first <= 2
    assert max(most) <= max(memory, 4 * max(source._sizes))
    again = open_images(str(tmp_path), 600, 0, 1)
    assert again.digests() == source.digests() and np.array_equal(again.epoch_order(0, 3, 0, 1), order)
