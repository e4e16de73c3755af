import hashlib
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from plsc.checkpoint import tensor_file
from plsc.checkpoint.tensor_file import DamagedError, FileSum, Stream, TensorFile, write_tensors

DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", 512)


def sum_of(path):
    content = path.read_bytes()
    return FileSum(
        len(content), tuple(hashlib.sha256(content[i : i + 512]).hexdigest() for i in range(0, len(content), 512))
    )


def some_tensors(seed, count=5):
    rng = np.random.default_rng(seed)
    tensors = {}
    for number in range(count):
        shape = tuple(rng.integers(0, 30, rng.integers(0, 4)))
        tensors[f"t{number}/名"] = (rng.normal(size=shape) * 50).astype(DTYPES[rng.integers(len(DTYPES))])
    return tensors


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_safetensors_library_reads_our_files_and_we_read_its(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    tensors = some_tensors(seed)
    sums = write_tensors(path, tensors, {"format": "np"})
    content = path.read_bytes()
    assert sums == sum_of(path)
    parts = [hashlib.sha256(content[i : i + 512]) for i in range(0, len(content), 512)]
    whole = parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(part.digest() for part in parts))
    assert (sums.size, sums.sha256) == (len(content), whole.hexdigest())
    theirs = load_file(path)
    with TensorFile(path, sums) as file:
        assert set(file) == set(tensors) == set(theirs)
        for name, value in tensors.items():
            for found in (theirs[name], file.read(name)):
                assert found.dtype == value.dtype and found.shape == value.shape
                np.testing.assert_array_equal(found, value)
    save_file({name: np.array(value) for name, value in tensors.items()}, path)
    with TensorFile(path, sum_of(path)) as file:
        for name, value in tensors.items():
            np.testing.assert_array_equal(file.read(name), value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 70), st.data())
def test_only_the_rows_asked_for_are_read(tmp_path_factory, count, width, drawn):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    matrix = np.random.default_rng(count).normal(size=(count, width)).astype("float32")
    sums = write_tensors(path, {"w": matrix, "b": matrix[:, 0]})
    first = drawn.draw(st.integers(0, count))
    last = drawn.draw(st.integers(first, count))
    with TensorFile(path, sums) as file:
        before = file.bytes_read
        parts = [part.copy() for part in file.rows("w", first, last)]
        np.testing.assert_array_equal(np.concatenate([np.empty((0, width), "float32"), *parts]), matrix[first:last])
        assert file.bytes_read - before <= (last - first) * width * 4 + 2 * 512


def test_a_stream_is_written_like_the_whole_tensor(tmp_path):
    matrix = np.arange(3000.0).reshape(1000, 3)
    whole = write_tensors(tmp_path / "a", {"w": matrix, "x": np.ones(3)})
    parts = Stream(matrix.dtype, matrix.shape, (matrix[i : i + 77] for i in range(0, 1000, 77)))
    assert write_tensors(tmp_path / "b", {"w": parts, "x": np.ones(3)}) == whole
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_changed_byte_is_found_before_it_is_used(tmp_path):
    path = tmp_path / "a.safetensors"
    matrix = np.arange(700, dtype="float32").reshape(100, 7)
    sums = write_tensors(path, {"w": matrix})
    content = path.read_bytes()
    for position in [*range(0, 80, 7), *range(80, len(content), 211), len(content) - 1]:
        changed = bytearray(content)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"a\.safetensors"), TensorFile(path, sums) as file:
            file.read("w")
    for other in (content[:-1], content + b"x", b"", content[: len(content) // 2]):
        path.write_bytes(other)
        with pytest.raises(DamagedError, match="bytes, but meta.json says"):
            TensorFile(path, sums)
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        TensorFile(path, sums)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.integers(0, 400))
def test_a_broken_header_is_refused_and_does_no_harm(tmp_path_factory, text, framed, length):
    """Any file with the right checksum gives one clear error, or tensors that lie within it."""
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    content = struct.pack("<Q", length) + text if framed else text
    path.write_bytes(content)
    try:
        with TensorFile(path, sum_of(path)) as file:
            for name in file:
                file.read(name)
    except DamagedError as error:
        assert "a.safetensors" in str(error)


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[2],"data_offsets":[0,9]}',
        '{"dtype":"F32","shape":[-2],"data_offsets":[0,-8]}',
        '{"dtype":"F32","shape":[200000000000],"data_offsets":[0,800000000000]}',
        '{"dtype":"X1","shape":[2],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}',
        "[]",
        "7",
    ],
)
def test_offsets_outside_the_file_are_refused(tmp_path, entry):
    header = f'{{"w":{entry}}}'.encode()
    content = struct.pack("<Q", len(header)) + header + b"\0" * 8
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="not a safetensors file"):
        TensorFile(path, sum_of(path))


def test_a_full_disk_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        write_tensors("/dev/full", {"w": np.zeros(10)})


def test_memory_stays_within_a_few_blocks(tmp_path, monkeypatch):
    """Two tensors of 64 MB are streamed, and neither writing nor reading holds a whole one."""
    import tracemalloc

    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", 1 << 20)
    path = tmp_path / "a"
    block = np.ones((1024, 256), "float32")
    tracemalloc.start()
    parts = {name: Stream(block.dtype, (64 * 1024, 256), (block for _ in range(64))) for name in "ab"}
    sums = write_tensors(path, parts)
    with TensorFile(path, sums) as file:
        assert sum(len(part) for part in file.rows("b", 0, 64 * 1024)) == 64 * 1024
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    with safe_open(path, "numpy") as file:
        assert file.get_slice("a").get_shape() == [64 * 1024, 256]
    assert os.path.getsize(path) > 128 << 20
