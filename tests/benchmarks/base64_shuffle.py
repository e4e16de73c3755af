"""Speed, memory and kill test of tools/process_base64_files.py. Prints JSON.

    python tests/benchmarks/base64_shuffle.py                      # speed with 3 GB, about 5 minutes
    python tests/benchmarks/base64_shuffle.py --cap 1000000000     # the same where memory is short, as root
    python tests/benchmarks/base64_shuffle.py --memory             # peak memory at 1, 10 and 100 times --memory 60MB
    python tests/benchmarks/base64_shuffle.py --kills 30           # SIGKILL at random moments, then run again
    python tests/benchmarks/base64_shuffle.py --only floor tool spark   # with the Spark engine, on as many cores

Speed is compared, on the same disk and from cold input files, with reading and writing the same bytes twice (the floor
of a shuffle in two passes), with SQLite (insert the rows, select them in shuffled order; well written, and as in 2020),
and with shuf | split. All fsync what they leave; SQLite also its commits. Only the tool checks, hashes and indexes
lines. Data is made in a temporary folder under --folder and removed at the end.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from checkout import ROOT

TOOL = ROOT / "tools" / "process_base64_files.py"
RANKS = 8
PARTS = 8
CHUNK = 1 << 20


def make_data(folder, size, image_bytes):
    """Parts of random images, `size` bytes in all, on the disk and out of the cache."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names, total = [f"dataset.part{number + 1}" for number in range(PARTS)], 0
    for name in names:
        left = size // PARTS
        with open(folder / name, "wb") as file:
            while left > 0:
                lines = []
                for length in rng.integers(image_bytes // 2, image_bytes * 3 // 2, 256):
                    lines.append(base64.b64encode(rng.bytes(int(length))) + b"\t%d\n" % rng.integers(85742))
                    left -= len(lines[-1])
                    if left <= 0:
                        break
                total += len(lines)
                file.write(b"".join(lines))
    (folder / "lines").write_text(str(total))
    (folder / "file_list.txt").write_text("".join(f"{name}\n" for name in names))
    chill(folder)
    return sum((folder / name).stat().st_size for name in names)


def chill(folder):
    """Writes the files of a folder to the disk and drops them from the page cache."""
    for path in Path(folder).iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def parts_of(folder):
    return [folder / name for name in (folder / "file_list.txt").read_text().splitlines()]


def tool_command(data, output, *arguments):
    command = [sys.executable, str(TOOL), "--data_dir", str(data), "--file_list", "file_list.txt"]
    return [*command, "--nranks", str(RANKS), "--output_dir", str(output), *arguments]


def run_tool(data, output, *arguments):
    return Watched(tool_command(data, output, *arguments))


class Watched:
    """Runs a command; the memory of it and its children is sampled 50 times a second."""

    def __init__(self, command, group=None):
        self.peak_rss = self.peak_pss = 0
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=group and (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))),
        )
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        output, errors = self.process.communicate()
        watcher.join()
        self.seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_seconds = after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime
        if self.process.returncode:
            raise SystemExit(errors)
        self.says = (output.strip().splitlines() or [""])[-1]

    def _watch(self):
        while self.process.poll() is None:
            rss = pss = 0
            for pid in [self.process.pid, *children(self.process.pid)]:
                with contextlib.suppress(OSError):
                    fields = dict(
                        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                    )
                    rss += int(fields["Rss"].split()[0]) * 1024
                    pss += int(fields["Pss"].split()[0]) * 1024
            self.peak_rss, self.peak_pss = max(self.peak_rss, rss), max(self.peak_pss, pss)
            time.sleep(0.02)


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def floor(data, folder):
    """Reads and writes the bytes twice, in order."""
    with open(folder / "copy", "wb", buffering=0) as target:
        for part in parts_of(data):
            copy(part, target)
    with open(folder / "copy2", "wb", buffering=0) as target:
        copy(folder / "copy", target)
        os.fsync(target.fileno())


def copy(source, target):
    buffer = memoryview(bytearray(CHUNK))
    with open(source, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            target.write(buffer[:count])


def sqlite(data, folder):
    """Rows into a table, a commit a part, and out again in shuffled order; SQLite's own settings."""
    connection = sqlite3.connect(folder / "rows.db")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, image TEXT, label INTEGER)")
    for part in parts_of(data):
        with open(part) as file, connection:
            connection.executemany(
                "INSERT INTO rows (image, label) VALUES (?, ?)", (line.rstrip("\n").split("\t") for line in file)
            )
    select_shuffled(connection, "SELECT image, label FROM rows WHERE id = ?", folder)


def sqlite_2020(data, folder):
    """Shuffles as the tool of 2020 did, and about as fast.

    Each row is a text of SQL, its number a second key, and all rows are one commit.
    """
    connection = sqlite3.connect(folder / "rows.db")
    connection.execute("CREATE TABLE rows (id INT PRIMARY KEY NOT NULL, image TEXT NOT NULL, label INT NOT NULL)")
    number = 0
    for part in parts_of(data):
        with open(part) as file:
            for line in file:
                number += 1
                image, label = line.strip().split("\t")
                connection.execute(f"INSERT INTO rows (id, image, label) VALUES ({number}, '{image}', {label})")
    connection.commit()
    select_shuffled(connection, "SELECT image, label FROM rows WHERE id = ?", folder)


def select_shuffled(connection, statement, folder):
    """Rows 1, 2, ... in random order, into one file a rank."""
    total = connection.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
    order = list(range(1, total + 1))
    random.Random(0).shuffle(order)
    each = -(-total // RANKS)
    for rank in range(RANKS):
        with open(folder / f"sqlite_{rank}", "w") as file:
            for row in order[rank * each : (rank + 1) * each]:
                image, label = connection.execute(statement, (row,)).fetchone()
                file.write(f"{image}\t{label}\n")
            file.flush()
            os.fsync(file.fileno())
    connection.close()


def coreutils(data, folder):
    """cat | shuf | split: all lines in memory at once."""
    total = int((data / "lines").read_text())  # counted beforehand
    names = " ".join(f"'{part}'" for part in parts_of(data))
    command = f"cat {names} | shuf | split -l {-(-total // RANKS)} - '{folder}/split_' && sync '{folder}'/split_*"
    subprocess.run(command, shell=True, check=True)


CONTENDERS = {"floor": floor, "shuf_split": coreutils, "sqlite": sqlite, "sqlite_2020": sqlite_2020}


def timed(name, data, root, group):
    folder = Path(tempfile.mkdtemp(dir=root))
    chill(data)
    os.sync()  # what others left to be written would be written during the measurement
    own = [sys.executable, __file__, "--one", name, str(data), str(folder)]
    engines = {"tool": (), "spark": ("--engine", "spark")}
    run = Watched(tool_command(data, folder / "out", *engines[name]) if name in engines else own, group)
    shutil.rmtree(folder)
    sys.stderr.write(f"{name}: {run.seconds:.1f} s\n")
    return run


@contextlib.contextmanager
def memory_group(limit):
    """A control group (version 1 or 2) whose processes get `limit` bytes, page cache and all; needs root."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"plsc-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if version_1.is_dir() else "memory.max")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def speed(root, gigabytes, image_bytes, rounds, cap, only):
    """Seconds of each contender, the best of their rounds, in turns; with `cap` in a control group of so many bytes."""
    size = make_data(root / "data", int(gigabytes * 1e9), image_bytes)
    names = only or ["floor", "tool", *([] if cap else ["shuf_split"]), "sqlite"]
    runs = {name: [] for name in names}
    with memory_group(cap) if cap else contextlib.nullcontext() as group:
        for number in range(rounds):
            for name in names:
                if number == 0 or name in ("floor", "tool"):  # the others are slow
                    runs[name].append(timed(name, root / "data", root, group))
    shutil.rmtree(root / "data")
    best = {name: min(run.seconds for run in values) for name, values in runs.items()}
    result = {
        "bytes": size,
        "image_bytes": image_bytes,
        "ranks": RANKS,
        "memory_of_the_control_group": cap,
        "cold": "inputs fsynced and dropped from the page cache (posix_fadvise) before each; "
        "only final outputs are fsynced",
        "seconds": {name: [round(run.seconds, 2) for run in values] for name, values in runs.items()},
        "cpu_seconds": {name: [round(run.cpu_seconds, 2) for run in values] for name, values in runs.items()},
        "megabytes_per_second": {name: round(size / 1e6 / value) for name, value in best.items()},
        "share_of_the_floors_speed": round(best["floor"] / best["tool"], 2),
        "peak_rss_bytes": max(run.peak_rss for run in runs["tool"]),
        "peak_pss_bytes": max(run.peak_pss for run in runs["tool"]),
        "memory_option_bytes": 512_000_000,
        "tool_says": runs["tool"][-1].says,
    }
    result.update(
        {f"times_{name}": round(best[name] / best["tool"], 2) for name in names if name not in ("floor", "tool")}
    )
    return result


def memory(root, limit, factors):
    """Peak memory of all processes together at several sizes of data."""
    table = []
    for factor in factors:
        size = make_data(root / "data", limit * factor, 8000)
        output = root / "out"
        run = run_tool(root / "data", output, "--memory", f"{limit}B", "--max_line", "2MB", "--workers", "1")
        entry = {"times_memory": factor, "memory_bytes": limit, "bytes": size, "seconds": round(run.seconds, 1)}
        entry.update(peak_rss_bytes=run.peak_rss, peak_pss_bytes=run.peak_pss, tool_says=run.says)
        entry["megabytes_per_second"] = round(size / 1e6 / run.seconds)
        table.append(entry)
        sys.stderr.write(json.dumps(entry) + "\n")
        shutil.rmtree(root / "data")
        shutil.rmtree(output)
    return table


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def kills(root, count, megabytes):
    """Kills a run at a random moment and runs it again, `count` times; the outputs must be those of a run in peace."""
    make_data(root / "data", megabytes * 1_000_000, 8000)
    inputs = digests(root / "data")
    arguments = ("--memory", "200MB", "--seed", "7")
    took = run_tool(root / "data", root / "peace", *arguments).seconds
    expected = digests(root / "peace")
    rng = random.Random(0)
    outcome = {"killed": 0, "ended_before": 0, "same_bytes": 0, "without_manifest": 0}
    while outcome["killed"] < count:
        output = root / "killed"
        command = tool_command(root / "data", output, *arguments)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, took))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            outcome["ended_before"] += 1
        else:
            outcome["killed"] += 1
            outcome["without_manifest"] += not (output / "base64_manifest.json").exists()
            run_tool(root / "data", output, *arguments)
            outcome["same_bytes"] += digests(output) == expected and digests(root / "data") == inputs
        shutil.rmtree(output, ignore_errors=True)
    return {"megabytes": megabytes, "seconds_in_peace": round(took, 2), **outcome}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3)
    parser.add_argument("--image_bytes", type=int, default=8000, help="mean size of an image before base64")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of speed")
    parser.add_argument("--limit", type=int, default=60_000_000, help="--memory of the tool, bytes")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--kills", type=int, default=0, help="kill this many runs instead")
    parser.add_argument("--megabytes", type=int, default=300, help="data of the kill test")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    parser.add_argument("--cap", type=int, default=0, help="bytes of memory, page cache and all, for the speed test")
    parser.add_argument(
        "--only", nargs="+", choices=[*CONTENDERS, "tool", "spark"], help="floor, tool, and what to compare with"
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        CONTENDERS[options.one[0]](Path(options.one[1]), Path(options.one[2]))
        return
    root = Path(tempfile.mkdtemp(dir=options.folder))
    result = {
        "command": " ".join(sys.argv),
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
    }
    try:
        if options.memory:
            result["memory"] = memory(root, options.limit, options.factors)
        elif options.kills:
            result["kills"] = kills(root, options.kills, options.megabytes)
        else:
            result["speed"] = speed(
                root, options.gigabytes, options.image_bytes, options.rounds, options.cap, options.only
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
