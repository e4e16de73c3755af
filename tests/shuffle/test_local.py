import base64
import collections
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import run_python

from plsc.errors import ConfigError, DataError
from plsc.shuffle import local as base64_shuffle
from plsc.shuffle import plan as base64_plan
from plsc.shuffle import scan as base64_scan
from plsc.shuffle import split as base64_split
from plsc.shuffle import workspace as base64_workspace
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options


def line(number, size=12, label=None):
    return base64.b64encode(random.Random(number).randbytes(size)) + b"\t%d\n" % (number if label is None else label)


def make(folder, parts):
    folder.mkdir(parents=True, exist_ok=True)
    for number, lines in enumerate(parts):
        (folder / f"part{number}").write_bytes(b"".join(lines))
    (folder / "list").write_text("".join(f"part{number}\n" for number in range(len(parts))))
    return folder


def shuffle(folder, nranks=4, workers=1, **options):
    """Shuffles in this process; more workers would be forks of it."""
    return shuffle_base64(Options(str(folder), "list", nranks, workers=workers, **options))


def outputs(folder):
    manifest = json.loads((Path(folder) / "base64_manifest.json").read_text())
    return [(Path(folder) / file["name"]).read_bytes().splitlines(True) for file in manifest["files"]]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.fixture
def tiny(monkeypatch):
    """Makes blocks and buffers, and so the least memory, kilobytes large. `--memory` is then what a worker may use."""
    for module in (base64_plan, base64_scan, base64_shuffle):
        monkeypatch.setattr(module, "BLOCK", 4096)
    for module in (base64_plan, base64_scan):
        monkeypatch.setattr(module, "AHEAD", 512)
    monkeypatch.setattr(base64_plan, "_CHECK_BYTES", 0)
    monkeypatch.setattr(base64_plan, "_MAIN_BYTES", 0)
    monkeypatch.setattr(base64_plan, "_WORKER_BYTES", 0)
    monkeypatch.setattr(base64_plan, "_ROOM_BYTES", 0)


@pytest.mark.parametrize(
    "total, nranks", [(1, 1), (1, 4), (2, 5), (3, 10), (7, 7), (8, 4), (9, 4), (100, 8), (101, 8), (5, 1)]
)
def test_every_line_once_and_equal_counts(tmp_path, total, nranks):
    lines = [line(number) for number in range(total)]
    make(tmp_path, [lines[: total // 2 + 1], lines[total // 2 + 1 :]] if total > 2 else [lines])

    made = shuffle(tmp_path, nranks).manifest

    files = outputs(tmp_path)
    each = -(-total // nranks)
    assert [len(file) for file in files] == [each] * nranks
    assert (made.samples, made.padding, made.samples_per_file) == (total, each * nranks - total, each)
    first = collections.Counter()
    for entry, file in zip(made.files, files):
        first.update(file[: entry.samples - entry.padding])
    assert first == collections.Counter(lines)  # without the padding each line occurs once
    extra = [file[-1] for entry, file in zip(made.files, files) if entry.padding]
    assert set(extra) <= set(lines)
    assert len(set(extra)) == min(len(extra), total)  # no line is copied twice before all are copied once
    assert max((entry.padding for entry in made.files), default=0) <= 1


small_parts = st.lists(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 10**6)), min_size=1, max_size=60), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(small_parts, st.integers(1, 9), st.integers(0, 1 << 63), st.booleans(), st.booleans())
def test_round_trip_as_a_multiset_at_the_least_memory(
    tiny, tmp_path_factory, parts, nranks, seed, last_newline, compress
):
    folder = tmp_path_factory.mktemp("data")
    parts = [[line(size, size, label) for size, label in part] for part in parts]
    make(folder, parts)
    if not last_newline:
        with open(folder / "part0", "r+b") as file:
            file.truncate(os.path.getsize(folder / "part0") - 1)

    made = shuffle(
        folder,
        nranks,
        seed=seed,
        max_line=1000,
        memory=base64_plan.least_bytes(1, 1000),
        workers=1,
        compress_tmp=compress,
    ).manifest

    expected = collections.Counter(each for part in parts for each in part)
    got = collections.Counter()
    for entry, file in zip(made.files, outputs(folder)):
        got.update(file[: entry.samples - entry.padding])
    assert got == expected
    assert made.largest_label == max(int(each.split(b"\t")[1]) for each in expected)


def many_parts(folder, total=3000, size=300):
    lines = [line(number, 1 + number * 7 % size) for number in range(total)]
    return make(folder, [lines[:10], lines[10 : total // 2], lines[total // 2 :]])


def test_the_same_bytes_whatever_the_memory_and_the_workers(tiny, tmp_path):
    data = many_parts(tmp_path / "data", 1000)
    least = base64_plan.least_bytes(1, 1000)
    variants = [(1, least), (1, 3 * least), (1, 10**8), (2, 2 * least + 5000), (3, 3 * least + 100_000)]
    results = []
    for number, (workers, memory) in enumerate(variants):
        output = tmp_path / str(number)
        shuffle(data, 7, output_dir=str(output), workers=workers, memory=memory, max_line=1000, seed=5)
        results.append(contents(output))
    shuffle(data, 7, output_dir=str(tmp_path / "packed"), max_line=1000, memory=2 * least, compress_tmp=True, seed=5)
    results.append(contents(tmp_path / "packed"))
    assert all(result == results[0] for result in results)

    shuffle(data, 7, output_dir=str(tmp_path / "other"), max_line=1000, memory=2 * least, seed=6)
    assert contents(tmp_path / "other")["base64_rank_0"] != results[0]["base64_rank_0"]


def test_any_number_of_ranks_divides_the_same_order(tmp_path):
    data = many_parts(tmp_path / "data", 120)
    orders = []
    for nranks in (1, 3, 8):
        shuffle(data, nranks, output_dir=str(tmp_path / str(nranks)))
        orders.append([each for file in outputs(tmp_path / str(nranks)) for each in file])
    assert orders[0] == orders[1] == orders[2]


def test_data_of_a_hundred_times_the_memory(tiny, tmp_path, monkeypatch):
    least = base64_plan.least_bytes(1, 1000)
    lines = [line(number, 700 + number % 40) for number in range(100 * least // 950)]
    data = make(tmp_path / "data", [lines[::3], lines[1::3], lines[2::3]])
    assert sum(map(len, lines)) > 100 * least
    arenas = []
    make_arena = base64_scan.make_arena
    for module in (base64_scan, base64_split):
        monkeypatch.setattr(module, "make_arena", lambda size: arenas.append(size) or make_arena(size))

    shuffle(data, 4, output_dir=str(tmp_path / "out"), memory=least, max_line=1000)

    assert max(arenas) < least
    got = collections.Counter(each for file in outputs(tmp_path / "out") for each in file)
    assert got.keys() == set(lines)
    assert sum(got.values()) - len(lines) < 4


def test_a_signal_waits_until_the_outputs_are_in_place(tmp_path, monkeypatch):
    data = many_parts(tmp_path / "data", 50)
    shuffle(data, 6, seed=1)
    rename = os.rename

    def interrupted(source, target):
        os.kill(os.getpid(), signal.SIGINT)
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shuffle(data)
    assert len(outputs(data)) == 4
    assert not list(data.glob(".*"))


def test_the_memory_limits_the_number_of_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    workers = [
        base64_plan._default_workers(Options(".", "list", 8, memory=memory * 10**6))
        for memory in (80, 250, 512, 10_000)
    ]
    assert workers == [1, 1, 4, 64]


# Uniformity. The seeds are fixed, so a test that passes passes always; the bounds are 4 standard deviations.


def deviation(counts, expected, degrees):
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - degrees) / np.sqrt(2 * degrees)


def position_and_neighbour_counts(orders, total):
    places, pairs = np.zeros((total, total)), np.zeros((total, total))
    for order in orders:
        places[order, np.arange(total)] += 1
        pairs[order[:-1], order[1:]] += 1
    return places, pairs


def assert_uniform(orders, total):
    places, pairs = position_and_neighbour_counts(orders, total)
    assert abs(deviation(places, len(orders) / total, (total - 1) ** 2)) < 4
    different = ~np.eye(total, dtype=bool)
    assert abs(deviation(pairs[different], len(orders) / total, total * (total - 1))) < 4


def test_positions_and_neighbours_of_whole_runs_are_uniform(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    total = 16  # lines of 1 kB, in several blocks and parts
    lines = [line(number, 750) for number in range(total)]
    data = make(tmp_path / "data", [lines[:9], lines[9:12], lines[12:]])
    number_of = {each: number for number, each in enumerate(lines)}
    orders, padding = [], []
    for seed in range(400):
        shuffle(data, 5, seed=seed, max_line=2000, memory=40_000)
        files = outputs(data)
        rows = [number_of[each] for file in files for each in file]
        orders.append(np.array([row for place, row in enumerate(rows) if place not in (7, 11, 15, 19)]))
        padding.append([rows[place] for place in (7, 11, 15, 19)])
    assert_uniform(orders, total)
    counts = np.bincount(np.ravel(padding), minlength=total)
    assert abs(deviation(counts, 400 * 4 / total, total - 1)) < 4


def test_positions_and_neighbours_over_many_seeds_are_uniform():
    total = 12
    orders = []
    for seed in range(6000):
        keys = [
            base64_scan.line_keys(seed, part, block, part == 0).random_raw(3) for part in (0, 1) for block in (0, 1)
        ]
        orders.append(np.argsort(np.concatenate(keys), kind="stable"))
    assert_uniform(orders, total)


def test_large_data_has_no_trace_of_its_order(tmp_path):
    total = 20_000
    data = make(tmp_path / "data", [[line(0, 3, number) for number in range(total)]])
    shuffle(data, 4)
    order = np.array([int(each.split(b"\t")[1]) for file in outputs(data) for each in file])
    assert abs(np.corrcoef(order, np.arange(total))[0, 1]) < 4 / np.sqrt(total)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(total)
    quarters = np.array([np.histogram(quarter, 20, (0, total))[0] for quarter in np.split(order, 4)])
    assert abs(deviation(quarters, total / 80, 3 * 19)) < 4
    distances = np.abs(np.diff(order))
    assert abs(distances.mean() - total / 3) < 4 * total / np.sqrt(18) / np.sqrt(total / 2)


# What is left behind


def test_manifest_and_file_list_describe_the_files(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    made = shuffle(data, 4, seed=9).manifest
    manifest = json.loads((data / "base64_manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["seed"]) == ("plsc-base64", 1, 9)
    assert (manifest["samples"], manifest["padding"], manifest["skipped"]) == (50, 2, 0)
    for entry in manifest["files"]:
        text = (data / entry["name"]).read_bytes()
        assert hashlib.sha256(text).hexdigest() == entry["sha256"]
        assert (len(text), text.count(b"\n")) == (entry["bytes"], entry["samples"])
    assert manifest["sources"] == [
        {"name": f"part{number}", "bytes": (data / f"part{number}").stat().st_size, "lines": lines}
        for number, lines in enumerate((10, 15, 25))
    ]
    names = [f"base64_rank_{number}" for number in range(4)]
    assert (data / "base64_file_list.txt").read_text().split() == names
    assert [file.name for file in made.files] == names
    assert sorted(path.name for path in data.iterdir()) == sorted(
        ["base64_file_list.txt", "base64_manifest.json", "list", "part0", "part1", "part2", *names]
        + [f"base64_index_{number}.npy" for number in range(4)]
    )


def test_a_second_run_replaces_the_outputs_of_the_first(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    shuffle(data, 8)
    shuffle(data, 3)
    assert sorted(path.name for path in data.glob("base64_rank_*")) == [f"base64_rank_{rank}" for rank in range(3)]
    assert len(outputs(data)) == 3


@pytest.mark.parametrize(
    "name", ["base64_rank_2", "base64_file_list.txt", "base64_manifest.json", "base64_skipped.txt"]
)
def test_a_file_that_the_tool_did_not_make_is_left_alone(tmp_path, name):
    data = many_parts(tmp_path / "data", 50)
    (data / name).write_text("mine")
    before = contents(data)
    with pytest.raises(DataError, match="move it away"):
        shuffle(data)
    assert contents(data) == before


def test_outputs_never_replace_inputs(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    shuffle(data)
    before = contents(data)
    with pytest.raises(DataError, match="is an input"):
        shuffle_base64(Options(str(data), "base64_file_list.txt", 4, seed=1))
    assert contents(data) == before
    shuffle_base64(Options(str(data), "base64_file_list.txt", 4, output_dir=str(tmp_path / "again")))
    assert sorted(sum(outputs(tmp_path / "again"), [])) == sorted(sum(outputs(data), []))


def test_a_linked_folder_and_temporary_files_elsewhere(tmp_path):
    many_parts(tmp_path / "real", 50)
    os.symlink(tmp_path / "real", tmp_path / "link 数据")
    (tmp_path / "tmp").mkdir()
    shuffle(tmp_path / "link 数据", tmp_dir=str(tmp_path / "tmp"), output_dir=str(tmp_path / "new" / "out 出"))
    assert len(outputs(tmp_path / "new" / "out 出")) == 4
    assert not list((tmp_path / "tmp").iterdir())


def test_folders_that_cannot_be_used(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    (tmp_path / "file").write_text("")
    for options, says in (
        ({"output_dir": str(tmp_path / "file")}, "cannot write there"),
        ({"output_dir": str(tmp_path / "file" / "x")}, "cannot write there"),
        ({"output_dir": "/proc/self"}, "cannot write there"),
        ({"tmp_dir": str(tmp_path / "gone")}, "no such folder"),
        ({"tmp_dir": "/proc"}, "cannot write there"),
    ):
        with pytest.raises(ConfigError, match=says):
            shuffle(data, **options)
    assert not list(data.glob("base64_*"))
    assert not list(data.glob(".*"))


@pytest.mark.parametrize(
    "options, says",
    [
        ({"nranks": 0}, "--nranks 0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 1 << 64}, "2\\^64"),
        ({"workers": 0}, "--workers 0"),
        ({"max_line": 10}, "--max_line 10"),
        ({"memory": 1000}, "at least .*MB is needed"),
        ({"memory": 100_000_000, "workers": 2}, "--workers 2"),
    ],
)
def test_options_that_cannot_work(options, says):
    with pytest.raises(ConfigError, match=says):
        Options(**{"data_dir": ".", "file_list": "list", "nranks": 1, **options})


# Bad lines


BAD = [
    (b"\n", "blank line"),
    (b"QUJD\t5\r\n", "Windows line end"),
    (b"QUJD 5\n", "no tab"),
    (b"QUJD\tfive\n", "not a number"),
    (b"QUJD\t-5\n", "negative"),
    (b"QU*D\t5\n", "not base64"),
    (b"QUJ\t5\n", "wrong length or padding"),
    (b"\t5\n", "nothing before the tab"),
    (b"A" * 4000 + b"\t5\n", "longer than 1000 bytes"),
    (b"A" * 40_000 + b"\t5\n", "longer than 1000 bytes"),
]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bad, says", BAD)
def test_a_bad_line_is_named_and_nothing_is_left_behind(tiny, tmp_path, bad, says, workers):
    lines = [line(number, 100) for number in range(300)]
    data = make(tmp_path / "data", [lines[:50], [*lines[50:223], bad, *lines[223:250], bad, *lines[250:]], [bad]])
    before = contents(data)
    with pytest.raises(DataError) as caught:
        shuffle(data, workers=workers, max_line=1000, memory=10**6)
    assert str(caught.value).startswith(f"{data}/part1:174: ")
    assert says in str(caught.value)
    assert contents(data) == before
    assert len(list(data.iterdir())) == len(before)


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_lines_are_skipped_and_listed(tiny, tmp_path, workers):
    lines = [line(number, 200) for number in range(300)]
    bad = [each for each, _ in BAD]
    data = make(tmp_path / "data", [[*lines[:100], *bad], [bad[-1], *lines[100:200], *bad, *lines[200:], bad[-1][:-1]]])
    made = shuffle(data, 7, workers=workers, max_line=1000, memory=10**6, skip_errors=True).manifest
    assert (made.samples, made.skipped) == (300, 22)
    assert {each for file in outputs(data) for each in file} == set(lines)
    listed = [entry.split(": ")[0] for entry in (data / "base64_skipped.txt").read_text().splitlines()]
    places = [("part0", number) for number in range(101, 111)]
    places += [("part1", number) for number in (1, *range(102, 112), 212)]
    assert listed == [f"{part}:{number}" for part, number in places]
    assert "blank line" in (data / "base64_skipped.txt").read_text().splitlines()[0]

    make(data, [lines[:100], lines[100:]])
    shuffle(data, 7)
    assert not (data / "base64_skipped.txt").exists()


def test_nothing_but_bad_lines(tmp_path):
    data = make(tmp_path / "data", [[b"\n"] * 50_000, [b"x\n"]])
    with pytest.raises(DataError, match="none of its parts has a good line"):
        shuffle(data, skip_errors=True)


def test_lines_as_long_as_allowed_at_the_least_memory(tiny, tmp_path):
    lines = [b"A" * 9996 + b"\t%03d\n" % number for number in range(50)]
    data = make(tmp_path / "data", [lines[:30], lines[30:]])
    shuffle(data, 4, max_line=10_000, memory=base64_plan.least_bytes(1, 10_000))
    assert {each for file in outputs(data) for each in file} == set(lines)


def test_very_many_short_lines(tmp_path):
    lines = [b"QUJD\t%d\n" % (number % 10) for number in range(200_000)]
    data = make(tmp_path / "data", [lines])
    shuffle(data, 4, max_line=1000, memory=60_000_000)
    assert collections.Counter(sum(outputs(data), [])) == collections.Counter(lines)


def test_check_decodes_the_images(tmp_path, glyphs):
    images = sorted((glyphs / "images").rglob("*.jpg"))[:20]
    encoded = [base64.b64encode(image.read_bytes()) for image in images]
    lines = [text + b"\t1\n" for text in encoded]
    lines[7] = encoded[7][:400] + b"\t1\n"
    data = make(tmp_path / "data", [lines])
    shuffle(data)
    with pytest.raises(DataError, match="part0:8: Pillow cannot decode"):
        shuffle(data, check=True)
    assert shuffle(data, check=True, skip_errors=True).manifest.skipped == 1


def test_a_part_that_vanishes_or_changes(tmp_path, monkeypatch):
    data = many_parts(tmp_path / "data", 50)
    check_space = base64_shuffle._check_space

    def meanwhile(change):
        monkeypatch.setattr(base64_shuffle, "_check_space", lambda *arguments: (check_space(*arguments), change()))
        with pytest.raises(DataError) as caught:
            shuffle(data)
        assert not list(data.glob("base64_*")) + list(data.glob(".*"))
        return str(caught.value)

    with open(data / "part1", "ab") as file:
        assert f"{data}/part1: the part changed" in meanwhile(lambda: (file.write(b"QUJD\t5\n"), file.flush()))
    assert f"{data}/part1: cannot read the part (No such file" in meanwhile(lambda: os.unlink(data / "part1"))


# Full disks, kills, two at once


def test_a_disk_that_is_too_small_is_reported_at_the_start(tmp_path, monkeypatch):
    data = many_parts(tmp_path / "data", 50)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 9, 1000))
    with pytest.raises(DataError, match=r"needs 0\.\d+ GB free .* has 0\.000; free some space"):
        shuffle(data)
    assert len(list(data.iterdir())) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_during_the_run(tmp_path, monkeypatch, workers):
    data = many_parts(tmp_path / "data", 9000)  # 1.8 MB
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(DataError, match=r"needs 0\.007 GB free"):
            shuffle(data, output_dir=str(disk), workers=workers)
        monkeypatch.setattr(base64_shuffle, "check_disk", lambda *arguments: None)
        with pytest.raises(DataError, match="cannot write .No space left on device"):
            shuffle(data, output_dir=str(disk), workers=workers)
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    with (
        base64_workspace.open_workspace(str(data), str(data)) as workspace,
        pytest.raises(
            ConfigError, match="is writing there; wait for it to end, or give another folder with --output_dir"
        ),
    ):
        (Path(workspace.staging) / "alive").write_text("")
        shuffle(data)
    assert len(list(data.iterdir())) == 4


def test_a_folder_that_looks_like_one_of_ours_but_is_for_another_output_stays(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    (data / ".base64_shuffle-0123456789ab-other").mkdir()
    shuffle(data)
    assert (data / ".base64_shuffle-0123456789ab-other").is_dir()


KILL = """
import os, signal, sys
from plsc.shuffle.local import Options, shuffle_base64
name, count = sys.argv[1], int(sys.argv[2])
original = getattr(os, name)
def counted(*arguments, **options):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(os, name, counted)
shuffle_base64(Options(sys.argv[3], "list", 4, seed=int(sys.argv[4]), workers=1))
"""


@pytest.mark.parametrize("earlier", [False, True])
def test_killed_at_each_stage_and_run_again_it_gives_the_same_bytes(tmp_path, earlier):
    peace = many_parts(tmp_path / "peace", 60)
    shuffle(peace, seed=2)
    expected = contents(peace)
    stages = [("mkdir", 1), ("open", 3), ("open", 9), ("fsync", 1), ("fsync", 4), ("unlink", 1), ("unlink", 2)]
    stages += [("rename", number) for number in range(1, 7)]
    for number, (name, count) in enumerate(stages):
        data = many_parts(tmp_path / f"data{number}", 60)
        if earlier:
            shuffle(data, 6, seed=1)
        killed = run_python("-c", KILL, name, count, data, 2)
        assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
        if name in ("rename", "open", "fsync"):
            assert killed.returncode == -signal.SIGKILL

        shuffle(data, seed=2)

        assert contents(data) == expected, (name, count)
        assert not list(data.glob(".*"))


def test_a_journal_that_a_kill_cut_short_means_that_nothing_was_published(tmp_path):
    data = many_parts(tmp_path / "data", 60)
    with base64_workspace.open_workspace(str(data), str(data)) as workspace:
        prefix = Path(workspace.staging).name.rsplit("-", 1)[0]
    for number, text in enumerate((b"", b'["base64_rank_0", "base64_')):
        (data / f"{prefix}-{number}").mkdir(0o700)
        (data / f"{prefix}-{number}" / "publishing.json").write_bytes(text)
    shuffle(data)
    assert len(outputs(data)) == 4
    assert not list(data.glob(".*"))


def test_a_folder_with_the_name_of_a_published_file_is_not_removed(tmp_path):
    data = many_parts(tmp_path / "data", 60)
    with base64_workspace.open_workspace(str(data), str(data)) as workspace:
        hidden = Path(workspace.staging)
    hidden.mkdir(0o700)
    (hidden / "publishing.json").write_text('["base64_rank_0", "base64_rank_1"]')
    (data / "base64_rank_0").write_text("half")
    (data / "base64_rank_1").mkdir()
    (data / "base64_rank_1" / "thesis.tex").write_text("not ours")
    with pytest.raises(DataError, match="base64_rank_1: was not made by this tool"):
        shuffle(data)
    assert (data / "base64_rank_1" / "thesis.tex").exists() and not (data / "base64_rank_0").exists()


JOURNALS = ["", '["base64_rank_0", "base', "null", "5", "[5]", "{}", "[" * 100_000, '["\\u0000"]', '["\\ud800"]', None]
JOURNALS += [
    f'["{name}"]' for name in ("../precious", "precious", "..", "", "base64_rank_0/../precious", "part0", "list")
]


@pytest.mark.parametrize("tmp_dir", ["data", "tmp"])
def test_no_journal_harms_other_files_or_stops_a_run(tmp_path, tmp_dir):
    data = many_parts(tmp_path / "data", 50)
    (tmp_path / "tmp").mkdir(exist_ok=True)
    with base64_workspace.open_workspace(str(data), str(tmp_path / tmp_dir)) as workspace:
        prefix = Path(workspace.scratch).name.rsplit("-", 1)[0]
    for place in (data, tmp_path):
        (place / "precious").write_text("mine")
    for text in JOURNALS:
        hidden = tmp_path / tmp_dir / f"{prefix}-0"
        hidden.mkdir(0o700)
        (hidden / "runs-7").write_text("a copy of the data")
        if text is None:
            (hidden / "publishing.json").mkdir()
        else:
            (hidden / "publishing.json").write_text(text)
        shuffle(data, output_dir=str(data), tmp_dir=str(tmp_path / tmp_dir))
        assert len(outputs(data)) == 4, text
        assert not list(hidden.parent.glob(".*")), text
        assert (data / "precious").exists() and (tmp_path / "precious").exists(), text


def test_a_journal_in_the_folder_for_temporary_files_is_not_believed(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    (tmp_path / "tmp").mkdir()
    with base64_workspace.open_workspace(str(data), str(tmp_path / "tmp")) as workspace:
        hidden = Path(workspace.scratch)
    hidden.mkdir(0o700)
    (hidden / "publishing.json").write_text('["base64_rank_7"]')
    (data / "base64_rank_7").write_text("mine")
    shuffle(data, tmp_dir=str(tmp_path / "tmp"))
    assert (data / "base64_rank_7").read_text() == "mine"
    assert not list((tmp_path / "tmp").iterdir())


def test_a_hidden_folder_that_others_may_have_filled_stays(tmp_path, monkeypatch, caplog):
    data = many_parts(tmp_path / "data", 50)
    with base64_workspace.open_workspace(str(data), str(data)) as workspace:
        prefix = Path(workspace.staging).name.rsplit("-", 1)[0]
    (tmp_path / "precious").mkdir(0o700)
    names = ("open to others", "by another user", "with other files", "linked")
    for name, mode in zip(names, (0o777, 0o700, 0o700)):
        (data / f"{prefix}-{name}").mkdir()
        (data / f"{prefix}-{name}").chmod(mode)
        (data / f"{prefix}-{name}" / "publishing.json").write_text('["base64_rank_9"]')
    (data / f"{prefix}-with other files" / "thesis.tex").write_text("mine")
    os.symlink(tmp_path / "precious", data / f"{prefix}-linked")
    if os.geteuid() == 0:
        os.chown(data / f"{prefix}-by another user", 1234, 1234)
    else:
        names = [name for name in names if name != "by another user"]
    (data / "base64_rank_9").write_text("mine")
    shuffle(data)
    assert (data / "base64_rank_9").read_text() == "mine"
    assert (tmp_path / "precious").is_dir()
    for name in names:
        assert (data / f"{prefix}-{name}").exists()
        assert f"{prefix}-{name}: stays" in caplog.text


def test_a_killed_run_leaves_folders_that_the_next_one_removes_from_a_full_disk(tmp_path, monkeypatch):
    data = many_parts(tmp_path / "data", 50)
    with base64_workspace.open_workspace(str(data), str(data)) as workspace:
        hidden = Path(workspace.staging)
    hidden.mkdir(0o700)
    (hidden / "runs-7").write_text("a copy of the data")
    make_folder = os.mkdir

    def mkdir(path, *arguments, **options):
        if hidden.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        make_folder(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    shuffle(data)
    assert not list(data.glob(".*"))


def test_a_manifest_that_lists_files_of_the_user_is_refused(tmp_path):
    data = many_parts(tmp_path / "data", 50)
    shuffle(data)
    manifest = data / "base64_manifest.json"
    manifest.write_text(manifest.read_text().replace("base64_rank_0", "precious"))
    (data / "base64_rank_0").rename(data / "precious")
    before = contents(data)
    with pytest.raises(DataError, match="lists 'precious', which is not a file of this tool; move the manifest away"):
        shuffle(data)
    assert contents(data) == before


def test_a_kill_before_publication_leaves_the_earlier_outputs(tmp_path):
    data = many_parts(tmp_path / "data", 60)
    shuffle(data, seed=1)
    before = contents(data)
    run_python("-c", KILL, "fsync", 3, data, 2)
    assert before.items() <= contents(data).items()
