"""Speed of reading training data of each format, as batches come out of the loader. Prints JSON.

    python tests/benchmarks/sources.py                            # 20,000 images of 112x112, 2 workers
    python tests/benchmarks/sources.py --formats base64 recordio --shuffles window full --cold
    python tests/benchmarks/sources.py --formats recordio --torch-python PYTHON

The baseline is a bare loop: the same number of threads decode the same images, already in memory and in order, and make
batches of them with the same functions, without a shuffle, checks, positions to resume at, or a queue. For cold rounds
files are fsynced and dropped from the page cache. With `--torch-python`, a plain reader of RecordIO under PyTorch's
DataLoader, with as many worker processes, decodes, mirrors and normalises the same file. All run in turns;
a share is the median of the quotients with the bare loop of the same round.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
from PIL import Image

SHAPE = (3, 112, 112)
BATCH = 128
CLASSES = 1000
FORMATS = ("jpeg", "folder", "base64", "recordio", "tar", "parquet")


def encoded_images():
    """Returns 64 different pictures of smooth noise, about 4 kB each as JPEG."""
    rng, encoded = np.random.default_rng(0), []
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((112, 112), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        encoded.append(stream.getvalue())
    return encoded


def make_data(folder, kind, count):
    """Writes `count` images in one format, and returns the path to open."""
    from plsc.data.records import Record

    images, folder = encoded_images(), folder / kind
    folder.mkdir()
    if kind in ("jpeg", "folder"):
        for number in range(count):
            place = folder / f"{number % CLASSES:04d}"
            place.mkdir(exist_ok=True)
            (place / f"{number}.jpg").write_bytes(images[number % 64])
        if kind == "jpeg":
            lines = (f"{n % CLASSES:04d}/{n}.jpg {n % CLASSES}\n" for n in range(count))
            (folder / "label.txt").write_text("".join(lines), encoding="utf-8")
        return folder
    if kind == "base64":
        from plsc.shuffle.local import shuffle_base64
        from plsc.shuffle.plan import Options

        texts = [base64.b64encode(image) for image in images]
        with open(folder / "part", "wb") as file:
            file.writelines(texts[number % 64] + b"\t%d\n" % (number % CLASSES) for number in range(count))
        (folder / "list").write_text("part\n", encoding="utf-8")
        shuffle_base64(Options(str(folder), "list", 1))
        os.remove(folder / "part")
        return folder
    path, make = writer_of(folder, kind)
    writer = make(path)
    for number in range(count):
        writer.add(Record(f"{number:08d}.jpg", images[number % 64], number % CLASSES))
    writer.close()
    return folder


def writer_of(folder, kind):
    from plsc.data.parquet_files import ParquetWriter
    from plsc.data.recordio import RecordIOWriter
    from plsc.data.tar_shards import TarWriter

    names = {
        "recordio": ("train.rec", RecordIOWriter),
        "tar": ("0.tar", TarWriter),
        "parquet": ("0.parquet", ParquetWriter),
    }
    return folder / names[kind][0], names[kind][1]


def chill(folder):
    """Writes files to the disk and drops them from the page cache."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Timer:
    """Images a second, and processor seconds of all threads, which depend less on what else the machine does."""

    def __init__(self, images):
        self.images = images
        self.began, self.cpu_began = time.perf_counter(), cpu_seconds()

    def stop(self):
        seconds, cpu = time.perf_counter() - self.began, cpu_seconds() - self.cpu_began
        return {
            "images_per_second": round(self.images / seconds),
            "cpu_us_per_image": round(1e6 * cpu / self.images, 1),
        }


def cpu_seconds():
    """Returns the processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def read(folder, kind, workers, shuffle):
    """Reads one epoch with the loader of plsc."""
    from plsc.data.augmentation import Augmentation
    from plsc.data.loader import ImageLoader
    from plsc.data.sources import open_images

    source = open_images(str(folder), CLASSES, 0, 1, kind, shuffle)
    loader = ImageLoader(source, SHAPE, BATCH, Augmentation(), 0, workers)
    timer = Timer(source.num_images)
    assert sum(len(labels) for _, labels in loader.epoch(0)) == source.num_images
    return timer.stop()


def bare(count, workers):
    """Decodes images that are in memory, in order."""
    from plsc.data.augmentation import Augmentation, augment
    from plsc.data.generators import generators_of
    from plsc.data.transforms import decode, normalize

    encoded = encoded_images()

    def batch(first):
        numbers = range(first, min(first + BATCH, count))
        images, labels = np.empty((len(numbers), *SHAPE[1:], SHAPE[0]), np.uint8), np.empty(len(numbers), np.int64)
        for k, (number, rng) in enumerate(zip(numbers, generators_of(0, 0, np.array(numbers)))):
            image, labels[k] = decode(encoded[number % 64], SHAPE, ""), number % CLASSES
            images[k] = augment(image, Augmentation(), rng)
        normalize(images)

    timer = Timer(count)
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(batch, range(0, count, BATCH)):
            pass
    return timer.stop()


def torch_epoch(path, workers):
    """Reads one epoch of a RecordIO file under PyTorch's DataLoader, the usual way; prints what `Timer` measures."""
    import struct

    import torch

    class RecordIO(torch.utils.data.Dataset):
        def __init__(self):
            lines = [line.split() for line in Path(path).with_suffix(".idx").read_text(encoding="utf-8").splitlines()]
            self.offsets = {int(key): int(offset) for key, offset in lines}
            self.file = None
            _, header, _ = self.record(0)
            self.keys = range(1, int(header[0])) if header is not None else sorted(self.offsets)
            self.file.close()
            self.file = None

        def record(self, key):
            self.file = self.file or open(path, "rb")  # noqa: SIM115 - each worker keeps its own open
            self.file.seek(self.offsets[key])
            _, length = struct.unpack("<II", self.file.read(8))
            payload = self.file.read(length & ((1 << 29) - 1))
            flag, label, _, _ = struct.unpack("<IfQQ", payload[:24])
            values = np.frombuffer(payload[24 : 24 + 4 * flag], "<f4") if flag else None
            return label, values, payload[24 + 4 * flag :]

        def __len__(self):
            return len(self.keys)

        def __getitem__(self, i):
            label, values, data = self.record(self.keys[i])
            label = int(label if values is None else values[0])
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            if np.random.random() < 0.5:
                pixels = pixels[:, ::-1]
            return torch.from_numpy(((pixels.astype("float32") - 127.5) / 128).transpose(2, 0, 1).copy()), label

    torch.set_num_threads(1)
    dataset = RecordIO()
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)
    timer = Timer(len(dataset))
    assert sum(len(labels) for _, labels in loader) == len(dataset)
    print(json.dumps(timer.stop()))


def torch_run(python, path, workers):
    """Runs `torch_epoch` in the environment of another Python."""
    command = [python, __file__, "--torch-epoch", str(path), "--workers", str(workers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(folder, options):
    """Returns the runs of all cases, in turns, and their ratios to the bare loop."""
    paths = {kind: make_data(folder, kind, options.images) for kind in options.formats}
    runs: dict[str, list] = {"bare": []}
    cases = {"bare": lambda: bare(options.images, options.workers)}
    for kind, path in paths.items():
        for shuffle in options.shuffles if kind not in ("jpeg", "folder") else [None]:
            name = f"{kind} {shuffle or ''}".strip()
            cases[name] = lambda kind=kind, path=path, shuffle=shuffle: read(path, kind, options.workers, shuffle)
            if options.cold:
                cases[f"{name}, cold"] = lambda name=name, path=path: (chill(path), cases[name]())[1]
    if options.torch_python and "recordio" in paths:
        place = paths["recordio"] / "train.rec"
        cases["PyTorch"] = lambda: torch_run(options.torch_python, place, options.workers)
    for _ in range(options.rounds):  # in turns, as other work on the machine comes and goes
        for name, case in cases.items():
            runs.setdefault(name, []).append(case())

    def median(name, key):
        return float(np.median([run[key] for run in runs[name]]))

    def share(name, key):
        return round(float(np.median([run[key] / bare[key] for run, bare in zip(runs[name], runs["bare"])])), 3)

    shares = {
        name: {
            "of the speed": share(name, "images_per_second"),
            "by CPU seconds": round(1 / share(name, "cpu_us_per_image"), 3),
        }
        for name in runs
    }
    return runs, {name: median(name, "images_per_second") for name in runs}, shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--shuffles", nargs="+", choices=("window", "full"), default=[None])
    parser.add_argument("--cold", action="store_true", help="also measure with files that are not in the page cache")
    parser.add_argument("--torch-python", help="Python of an environment with PyTorch and Pillow")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    parser.add_argument("--torch-epoch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch_epoch:
        torch_epoch(options.torch_epoch, options.workers)
        return
    from plsc.machine import processor

    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        runs, speeds, shares = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    result = {
        "command": " ".join(sys.argv),
        "processor": processor.describe(),
        "cores": os.cpu_count(),
        "images": options.images,
        "workers": options.workers,
        "runs": runs,
        "median_images_per_second": speeds,
        "share_of_the_bare_loop": shares,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
