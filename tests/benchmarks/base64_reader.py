"""Speed of reading base64 data for training. Prints JSON.

    python tests/benchmarks/base64_reader.py                  # 20,000 images of 112x112, 2 workers, about a minute
    python tests/benchmarks/base64_reader.py --lines 200000   # more than fits into a small page cache

Batches out of the loader, as training gets them, are compared with a bare loop: the same number of threads decode the
same lines, already in memory and in order, and make batches of them with the same functions, without a shuffle, checks,
positions to resume at, or a queue. Files are fsynced and dropped from the page cache before each cold round.
"""

import argparse
import base64
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from plsc.data.base64_index import index_name
from plsc.data.loader import ImageLoader
from plsc.data.sources import open_images
from plsc.data.transforms import Augmentation, augment, decode, normalize
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options

SHAPE = (3, 112, 112)
BATCH = 128
CLASSES = 1000


def make_data(folder, lines):
    """A split folder of one rank; 64 different pictures of smooth noise, about 4 kB each as JPEG."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((112, 112), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        encoded.append(base64.b64encode(stream.getvalue()))
    with open(folder / "part", "wb") as file:
        for number in range(lines):
            file.write(encoded[number % 64] + b"\t%d\n" % (number % CLASSES))
    (folder / "list").write_text("part\n")
    shuffle_base64(Options(str(folder), "list", 1))
    os.remove(folder / "part")


def chill(path):
    """Writes a file to the disk and drops it from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Timer:
    """Lines a second, and processor seconds of all threads: the latter do not depend on what else the machine does."""

    def __init__(self, lines):
        self.lines = lines
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def stop(self):
        seconds, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu_began
        return {"lines_per_second": round(self.lines / seconds), "cpu_us_per_line": round(1e6 * cpu / self.lines, 1)}


def read(folder, workers, shuffle):
    """One epoch."""
    source = open_images(str(folder), CLASSES, 0, 1, "base64", shuffle)
    loader = ImageLoader(source, SHAPE, BATCH, Augmentation(), 0, workers)
    timer = Timer(source.num_images)
    assert sum(len(labels) for _, labels in loader.epoch(0)) == source.num_images
    return timer.stop()


def bare(lines, workers):
    """The lines in order."""

    def batch(first):
        chosen = lines[first : first + BATCH]
        images, labels = np.empty((len(chosen), *SHAPE[1:], SHAPE[0]), np.uint8), np.empty(len(chosen), np.int64)
        for k, line in enumerate(chosen):
            image, _, label = line.rpartition(b"\t")
            images[k], labels[k] = decode(base64.b64decode(image), SHAPE, ""), int(label)
            images[k] = augment(images[k], Augmentation(), np.random.default_rng((0, 0, first + k)))
        normalize(images)

    timer = Timer(len(lines))
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(batch, range(0, len(lines), BATCH)):
            pass
    return timer.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        make_data(folder, options.lines)
        result = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=1))


def seconds_to_start(folder):
    began = time.perf_counter()
    open_images(str(folder), CLASSES, 0, 1)
    return time.perf_counter() - began


def measure(folder, options):
    path, index = folder / "base64_rank_0", folder / index_name(0)
    held = path.read_bytes().splitlines()[:20_000]  # the bare loop's, in memory
    runs = {"bare": [], "window": [], "window, cold": [], "full": [], "full, cold": []}
    starts = {"index": [], "scan, cold": []}
    for _ in range(options.rounds):  # in turns, as other work on the machine comes and goes
        for name, results in runs.items():
            if name.endswith("cold"):
                chill(path)
            results.append(
                bare(held, options.workers) if name == "bare" else read(folder, options.workers, name.split(",")[0])
            )
        starts["index"].append(seconds_to_start(folder))
        os.rename(index, folder / "away")
        chill(path)
        starts["scan, cold"].append(seconds_to_start(folder))
        os.rename(folder / "away", index)

    def median(name, key):
        return float(np.median([run[key] for run in runs[name]]))

    return {
        "command": " ".join(sys.argv),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "lines": options.lines,
        "bytes": path.stat().st_size,
        "bytes_of_the_index": index.stat().st_size,
        "workers": options.workers,
        "runs": runs,
        "median_lines_per_second": {name: median(name, "lines_per_second") for name in runs},
        "share_of_the_bare_loops_speed": {
            name: round(median(name, "lines_per_second") / median("bare", "lines_per_second"), 3) for name in runs
        },
        "share_by_cpu_seconds": {
            name: round(median("bare", "cpu_us_per_line") / median(name, "cpu_us_per_line"), 3) for name in runs
        },
        "seconds_to_start": {name: round(min(values), 4) for name, values in starts.items()},
    }


if __name__ == "__main__":
    main()
