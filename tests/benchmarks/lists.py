"""Time and memory of label files of millions of lines, and of the order of an epoch, as JSON.

    python tests/benchmarks/lists.py --lines 1000000 --images 100000000

The baselines, in the same run, are a loop over the lines that keeps a path and a label for each, and a permutation of
all images. Times are those of the processor. The image files need not exist: the check for them is timed on a listing
that holds them all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import numpy as np

from plsc.data import missing_files
from plsc.data.label_file import read_label_file
from plsc.data.sampler import epoch_indices


def write_list(path: Path, lines: int) -> None:
    """Writes a label file of 20 images for each class."""
    with open(path, "w") as stream:
        for first in range(0, lines, 100_000):
            some = range(first, min(first + 100_000, lines))
            stream.writelines(f"images/{i // 20:07d}/{i:07d}.jpg {i // 20}\n" for i in some)


def read_list(folder: str) -> Any:
    """Reads the list as training does."""
    keys_of = missing_files._keys_of
    missing_files._keys_in = lambda root, paths, folders, where: (keys for _, _, keys in keys_of(paths, folders))
    return read_label_file(folder, None)


def read_plainly(folder: str) -> Any:
    """Reads the list line by line, without a check of files."""
    paths, labels = [], []
    with open(Path(folder, "label.txt"), encoding="utf-8") as stream:
        for line in stream:
            path, label = line.rsplit(None, 1)
            paths.append(path)
            labels.append(int(label))
    return paths, np.array(labels)


def permute_all(images: int) -> Any:
    """Draws a permutation of all images, and takes the share of one of eight ranks."""
    return np.random.default_rng((0, 0)).permutation(images)[np.arange(-(-images // 8)) * 8 % images]


def permute_share(images: int) -> Any:
    """Computes the share of one of eight ranks."""
    return epoch_indices(images, 0, 0, 0, 8)


def measured(work: Callable[[Any], Any], argument: Any) -> dict[str, float]:
    """Returns the processor time of some work in seconds, and by how many bytes memory grew at its peak."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, argument))


def _measure(work: Callable[[Any], Any], argument: Any) -> dict[str, float]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    kept = work(argument)
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    del kept
    return {"seconds": round(seconds, 3), "peak_bytes": grown}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000, help="lines of the label file")
    parser.add_argument("--images", type=int, default=100_000_000, help="images of the epoch")
    options = parser.parse_args()
    result: dict[str, Any] = {"lines": options.lines, "images": options.images, "ranks": 8}
    with tempfile.TemporaryDirectory() as folder:
        write_list(Path(folder, "label.txt"), options.lines)
        result["list"], result["list_baseline"] = measured(read_list, folder), measured(read_plainly, folder)
    result["order"] = measured(permute_share, options.images)
    result["order_baseline"] = measured(permute_all, options.images)
    for name, count in (("list", options.lines), ("order", -(-options.images // 8))):
        own, baseline = result[name], result[f"{name}_baseline"]
        own["bytes_each"] = round(own["peak_bytes"] / count, 1)
        own["times_as_fast"] = round(baseline["seconds"] / own["seconds"], 2)
        own["memory_ratio"] = round(own["peak_bytes"] / baseline["peak_bytes"], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
