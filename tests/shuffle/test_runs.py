import base64
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.errors import DataError
from plsc.shuffle.runs import INDEX, RunReader, RunWriter, cell_bounds, make_arena, pack_line, unpack_line


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=50), st.integers(0, 10**18 - 1))
def test_a_packed_line_can_be_unpacked(image, label):
    line = base64.b64encode(image) + b"\t%d\n" % label
    packed, digits = pack_line(line)
    assert len(packed) == len(image) + digits
    assert unpack_line(packed, digits) == line


def test_base64_that_cannot_be_restored_is_not_packed():
    assert pack_line(b"QR==\t5\n") is None
    assert pack_line(b"QQ==\t5\n") is not None


def test_cells_cover_all_keys():
    assert cell_bounds(1).tolist() == [0]
    assert cell_bounds(3).tolist() == [0, (1 << 64) // 3, (2 << 64) // 3]
    assert cell_bounds(10, 5, 8).tolist() == [5, 6, 7]


def write(path, lines, keys, cells, arena_size, max_lines, pack=False):
    writer = RunWriter(str(path), cell_bounds(cells), make_arena(arena_size), max_lines, pack)
    for place, (line, key) in enumerate(zip(lines, keys)):
        if writer.filled + len(line) > arena_size:
            writer.flush()
        writer.arena[writer.filled : writer.filled + len(line)] = line
        writer.add(np.array([(key, place, len(line), 0)], INDEX), np.array([0]), len(line))
    writer.close()
    return writer


def read(path, writer, cells, arena_size, max_lines, first, last):
    arena = make_arena(arena_size)
    bounds = cell_bounds(cells)
    reader = RunReader(
        runs=writer.runs,
        bounds=bounds,
        cell_lines=writer.cell_lines,
        cell_bytes=writer.cell_bytes,
        arena=arena,
        max_lines=max_lines,
        scratch=f"{path}.split",
    )
    try:
        loads = reader.lines(first, last)
        return b"".join(piece for load, begin, end in loads for piece, _ in load.pieces(begin, end)).splitlines(True)
    finally:
        reader.close()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, (1 << 64) - 1), st.binary(min_size=1, max_size=30)),
        min_size=1,
        max_size=60,
        unique_by=lambda row: row[0],
    ),
    st.integers(1, 40),  # cells
    st.integers(60, 400),  # memory
    st.integers(1, 70),  # lines at a time
    st.booleans(),
    st.data(),
)
def test_any_range_of_lines_comes_out_in_the_order_of_keys(tmp_path_factory, rows, cells, arena, max_lines, pack, data):
    folder = tmp_path_factory.mktemp("runs")
    keys = [key for key, _ in rows]
    lines = [base64.b64encode(image) + b"\t%d\n" % number for number, (_, image) in enumerate(rows)]
    writer = write(folder / "runs", lines, keys, cells, arena, max_lines, pack)
    first = data.draw(st.integers(0, len(rows)))
    last = data.draw(st.integers(first, len(rows)))

    got = read(folder / "runs", writer, cells, arena, max_lines, first, last)

    expected = [lines[number] for number in sorted(range(len(rows)), key=lambda number: (keys[number], number))]
    assert got == expected[first:last]
    assert [path.name for path in folder.iterdir()] == ["runs"]  # the file of the finer cells is removed


def test_a_cell_that_does_not_fit_is_split_until_its_parts_do(tmp_path):
    rng = np.random.default_rng(0)
    keys = [int(key) for key in rng.integers(0, 1 << 40, 5000)]  # all in the first of 16 cells
    lines = [base64.b64encode(rng.bytes(30)) + b"\t%d\n" % number for number in range(5000)]
    writer = write(tmp_path / "runs", lines, keys, 16, 2000, 30)
    assert writer.cell_lines[0] == 5000

    got = read(tmp_path / "runs", writer, 16, 2000, 30, 0, 5000)

    assert got == [lines[number] for number in sorted(range(5000), key=lambda number: (keys[number], number))]


def test_lines_with_equal_keys_are_sorted_by_place(tmp_path):
    lines = [b"QUJD\t%d\n" % number for number in range(40)]
    writer = write(tmp_path / "runs", lines, [5, 3] * 20, 4, 100, 40)
    assert read(tmp_path / "runs", writer, 4, 1000, 40, 0, 40) == lines[1::2] + lines[::2]


def test_a_damaged_temporary_file_is_noticed(tmp_path):
    writer = write(tmp_path / "runs", [b"QUJD\t1\n"] * 9, list(range(9)), 4, 1000, 9)
    with open(tmp_path / "runs", "r+b") as file:
        file.truncate(20)
    with pytest.raises(DataError, match="has become shorter"):
        read(tmp_path / "runs", writer, 4, 1000, 9, 0, 9)


def test_the_arena_is_private_memory():
    arena = make_arena(100)
    assert isinstance(arena, mmap.mmap)
    assert len(arena) == 100
