"""Speed of `plsc data convert` against reading and writing the same bytes. Prints JSON.

    python tests/benchmarks/convert.py                                # from and to each format once, 300 MB
    python tests/benchmarks/convert.py --all-pairs --megabytes 100
    python tests/benchmarks/convert.py --pairs base64:folder          # these formats alone, source:target
    python tests/benchmarks/convert.py --kills 20                     # SIGKILL at random moments, then run again

`ratio` compares with reading and writing the formats: the time in which the reader of the source reads all images (and
their names, where the output has names), plus the time in which the writer of the output writes them, with nothing else
around. `raw_ratio` compares with plain calls
of the system that read the files of the source and write files like those of the output, whose bytes nobody looks at.
As many processes share the work in all three, and the source is cold (out of the page cache). All sync what they write,
unless each image has a file; such files are kept to the end, because ext4 without a journal is several times slower to
make files for a minute after others were removed, and files that an earlier run removed count as well. Rounds
alternate; a ratio is the median of their quotients, 1 if the conversion is as fast as the baseline. `seconds` are those
of the conversion, the formats and the plain calls. `cpu_ratio` and `cpu_seconds` are the same in seconds of the
processors, which depend less on what else the machine does; starts of processes are left out. Images are random bytes
after the header of a JPEG image, because nothing is decoded.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
from PIL import Image

IMAGE_BYTES = 6000  # of a JPEG image of 112 x 112 pixels, about
SCAN_HEADER = 14  # bytes of the segment SOS of three components, after which the pixels of a JPEG image begin
CLASSES = 1000
CHUNK = 1 << 20
FORMATS = ("base64", "folder", "tar", "recordio", "parquet")
MANY_FILES = 1000  # as where each image is a file


def make_parts(folder, size):
    """Base64 parts of `size` encoded bytes."""
    folder.mkdir()
    rng, names, number = np.random.default_rng(0), [f"part{k}" for k in range(8)], 0
    image = io.BytesIO()
    Image.new("RGB", (112, 112)).save(image, "JPEG")
    header = image.getvalue()[: image.getvalue().index(b"\xff\xda") + SCAN_HEADER]  # so that Pillow can open it
    for name in names:
        with open(folder / name, "wb") as file:
            left = size // len(names)
            while left > 0:
                data = header + rng.bytes(int(rng.integers(IMAGE_BYTES // 2, IMAGE_BYTES * 3 // 2)))
                file.write(base64.b64encode(data) + b"\t%d\n" % (number % CLASSES))
                left, number = left - len(data), number + 1
    (folder / "file_list.txt").write_text("".join(f"{name}\n" for name in names))


class PlainFolder:
    """What a program does that only writes images into the folders of their classes."""

    def __init__(self, folder):
        self._folder, self._made = folder, set()

    def add(self, record):
        place = f"{self._folder}/{record.label:04d}"
        if place not in self._made:
            os.makedirs(place, exist_ok=True)
            self._made.add(place)
        with open(f"{place}/{record.name}", "xb", buffering=0) as file:
            file.write(record.data)

    def close(self):
        pass


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def chill(folder):
    """Writes the files of a folder to the disk and drops them from the page cache."""
    os.sync()
    for path in files_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(paths):
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass


def write(sync, jobs):
    block = os.urandom(CHUNK)
    for path, size in jobs:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            for left in range(size, 0, -CHUNK):
                file.write(block[: min(left, CHUNK)])
            if sync:
                os.fsync(file.fileno())


def floor(source, output, place, workers):
    """Seconds to read the files of `source` and to write files like those of `output`."""
    sources, outputs = files_of(source), [(place / path.relative_to(output), path.stat().st_size)
                                          for path in files_of(output)]  # fmt: skip
    is_large = len(outputs) < MANY_FILES
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(abs, range(workers)))  # the processes have started
        began = time.perf_counter()
        list(pool.map(read, [sources[k::workers] for k in range(workers)]))
        list(pool.map(partial(write, is_large), [outputs[k::workers] for k in range(workers)]))
        return time.perf_counter() - began, 0.0


def read_and_write(task):
    """Seconds, also of the processor, in which the reader and the writer work on a part of a data set, in turn."""
    source, folder, to, number, count = task
    from plsc.data.records import Record
    from plsc.datasets.opening import open_data
    from plsc.datasets.targets import TARGETS

    began, cpu_began = time.perf_counter(), time.process_time()
    records = open_data(str(source))[1]
    first, end = number * records.num_images // count, (number + 1) * records.num_images // count
    folder = folder if to == "folder" else folder / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    is_plain = to == "folder"
    has_names = TARGETS[to].has_image_names and not is_plain  # which the reader has to look up
    name = records.name if has_names else "{}.jpg".format
    writer = PlainFolder(folder) if is_plain else TARGETS[to].open(folder, 0, 1, records.class_names, CLASSES)
    for begin in range(first, end, 100):
        read_some = [(name(i), *records.read(i)) for i in range(begin, min(begin + 100, end))]
        for found, data, label in read_some:
            writer.add(Record(found, data, label))
    writer.close()
    for path in files_of(folder) if TARGETS[to].file else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - began, time.process_time() - cpu_began


def formats(source, to, place, workers):
    """Seconds to read all images of `source` and to write them, in several processes, and those of the processors."""
    with ProcessPoolExecutor(workers) as pool:
        seconds, cpu = zip(*pool.map(read_and_write, [(source, place, to, k, workers) for k in range(workers)]))
    return max(seconds), sum(cpu)


def command(source, output, to, workers):
    return [sys.executable, "-m", "plsc", "data", "convert", str(source), str(output),
            f"--to={to}", f"--workers={workers}", "--json"]  # fmt: skip


def run(words):
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def convert(source, output, to, workers):
    """Seconds of a conversion, without the start of Python, and those of the processors."""
    code = (
        "import os, sys, time; from plsc.datasets.conversion import Conversion, convert; began = time.perf_counter(); "
        "cpu_began = sum(os.times()[:4]); "
        "convert(Conversion(sys.argv[1], sys.argv[2], sys.argv[3], workers=int(sys.argv[4])), lambda *done: None); "
        "print(time.perf_counter() - began, sum(os.times()[:4]) - cpu_began)"
    )
    words = [sys.executable, "-c", code, str(source), str(output), to, str(workers)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


def compare(source, to, folder, options):
    """Rounds of one pair of formats."""
    rounds = []
    folder.mkdir()
    for number in range(options.rounds + 1):  # the first warms up
        output, copy, plain = (folder / f"{name}-{number}" for name in ("output", "copy", "plain"))
        times = []
        for measure in (
            lambda: convert(source, output, to, options.workers),  # noqa: B023 - called at once
            lambda: formats(source, to, copy, options.workers),  # noqa: B023
            lambda: floor(source, output, plain, options.workers),  # noqa: B023
        ):
            chill(source)
            times.append(measure())
        rounds.append(times)
        files = files_of(output)
        size = sum(path.stat().st_size for path in files)
        for made in (output, copy, plain) if len(files) < MANY_FILES else ():
            shutil.rmtree(made)

    def ratio(baseline, unit):
        return round(statistics.median(one[baseline][unit] / one[0][unit] for one in rounds[1:]), 3)

    medians = np.median(rounds[1:], axis=0)
    return {
        "seconds": medians[:, 0].round(3).tolist(),
        "cpu_seconds": medians[:2, 1].round(3).tolist(),
        "ratio": ratio(1, 0),
        "cpu_ratio": ratio(1, 1),
        "raw_ratio": ratio(2, 0),
        "output_bytes": size,
        "output_files": len(files),
    }


def kill(source, folder, options):
    """Kills conversions at random moments, and checks that they resume to the same files."""
    whole, output, counts = folder / "whole", folder / "killed", []
    run(command(source, whole, "base64", options.workers))
    wanted = {path.name: path.read_bytes() for path in files_of(whole)}
    began = time.perf_counter()
    run(command(source, folder / "timed", "base64", options.workers))
    usual, rng = time.perf_counter() - began, random.Random(0)
    while len(counts) < options.kills:
        started = subprocess.Popen(
            command(source, output, "base64", options.workers),
            start_new_session=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(rng.uniform(0.3, 1) * usual)
        if started.poll() is not None:  # it was faster
            shutil.rmtree(output)
            continue
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        if (output / ".converting").exists() or not (output / "file_list.txt").exists():
            counts.append(run(command(source, output, "base64", options.workers))["kept"])  # else it was complete
        assert {path.name: path.read_bytes() for path in files_of(output) if path.parent == output} == wanted
        shutil.rmtree(output)
    return {"kills": len(counts), "shards_kept": counts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", default=None, help="where to make the data (default: the temporary folder)")
    pairs = [f"{source}:{to}" for source, to in zip(FORMATS, (*FORMATS[1:], FORMATS[0]))]
    parser.add_argument("--pairs", nargs="*", default=pairs, help=f"SOURCE:TARGET (default: {' '.join(pairs)})")
    parser.add_argument("--all-pairs", action="store_true", help="from each format to each")
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    if options.all_pairs:
        options.pairs = [f"{source}:{to}" for source in FORMATS for to in FORMATS]
    result = {"command": " ".join(["python", *sys.argv]), "machine": platform.processor() or platform.machine(),
              "workers": options.workers, "megabytes": options.megabytes}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="plsc-", dir=options.folder) as place:
        folder = Path(place)
        make_parts(folder / "parts", options.megabytes * 1_000_000)
        if options.kills:
            result.update(kill(folder / "parts", folder, options))
        for pair in () if options.kills else options.pairs:
            source, to = pair.split(":")
            made = folder / ("parts" if source == "base64" else source)
            if not made.exists():
                convert(folder / "parts", made, source, options.workers)
            result[pair] = compare(made, to, folder / pair.replace(":", "-"), options)
            print(json.dumps({pair: result[pair]}), file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
