"""Data on HDFS: base64 data through the data cache, and other data that is read in place; prints JSON.

    python tests/benchmarks/data_cache.py [--megabytes 256] [--files 32] [--images 20000] [--rounds 3]

The server is that of tests/hdfs_server.py, and the contenders take turns. Base64 data is compared with plain downloads
and with data on the local disk: the best of the rounds, in MB/s, where one thread reads every line of an epoch and
takes the image out of its base64. What is read in place is compared with the same files on the local disk, as batches
of decoded images that come out of the loader of training: all images of an epoch, or the first `--single` ones where
each image is a request. A share is the median of the quotients of the rounds.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
from hdfs_server import HdfsServer
from sources import BATCH, CLASSES, SHAPE, make_data

IMAGE = 8000  # bytes
IN_PLACE = (("tar", "window"), ("recordio", "window"), ("recordio", "full"), ("folder", None))


def make(folder: Path, megabytes: int, files: int) -> Path:
    """Makes split data of lines with random bytes."""
    from plsc.shuffle.local import shuffle_base64
    from plsc.shuffle.plan import Options

    source = folder / "source"
    source.mkdir()
    with open(source / "part", "wb") as stream:
        for number in range(megabytes * 1_000_000 // (IMAGE * 4 // 3)):
            stream.write(base64.b64encode(os.urandom(IMAGE)) + b"\t%d\n" % (number % 100))
    (source / "list").write_text("part\n")
    shuffle_base64(Options(str(source), "list", files, str(folder / "split"), workers=1))
    return folder / "split"


def read_epoch(records) -> None:
    order = records.epoch_order(0, 0, 0, 1)
    records.will_read(order)
    for i in order.tolist():
        records.read(i)


def time_batches(records, workers: int, most: int) -> tuple[float, float]:
    """Reads an epoch of images, or the first `most`, with the loader.

    Returns:
        Images a second, and seconds of the processor for an image, which depend less on what else the machine does.
    """
    from plsc.data.augmentation import Augmentation
    from plsc.data.loader import ImageLoader

    loader = ImageLoader(records, SHAPE, BATCH, Augmentation(), 0, workers)
    began, used, images, batches = time.perf_counter(), time.process_time(), 0, loader.epoch(0)
    for _, labels in batches:
        images += len(labels)
        if images >= most:
            break
    found = images / (time.perf_counter() - began), (time.process_time() - used) / images
    batches.close()
    return found


def compare_in_place(folder: Path, server: HdfsServer, options: argparse.Namespace) -> list[dict]:
    """Reads data that does not fit into the cache: pairs of figures, of the same data on the disk, and in place."""
    from plsc.data.place import Place
    from plsc.data.remote import open_images as open_remote
    from plsc.data.sources import open_images
    from plsc.storage.address import split_address
    from plsc.storage.login import Login

    counts = {kind: options.single if kind == "folder" else options.images for kind, _ in IN_PLACE}
    paths = {kind: make_data(folder, kind, count) for kind, count in counts.items()}
    for kind, path in paths.items():
        server.client("root").upload(f"/{kind}", str(path), n_threads=8)
    pairs: dict[tuple, list[tuple]] = {one: [] for one in IN_PLACE}
    for _ in range(options.rounds):
        for kind, shuffle in IN_PLACE:
            address = split_address("", f"hdfs:///{kind}")
            place = Place(address, folder / "cache", 1_000_000, Login(server.web, "root,"))
            remote, _ = open_remote(place, CLASSES, kind, shuffle, in_flight=1)
            local, most = open_images(str(paths[kind]), CLASSES, 0, 1, kind, shuffle), options.single
            most = most if local.blocks is None else options.images
            try:
                both = time_batches(local, options.workers, most), time_batches(remote, options.workers, most)
                pairs[kind, shuffle].append(both)
            finally:
                remote.close()
    return [
        {
            "format": kind,
            "shuffle": shuffle,
            "images_per_second": [round(max(one[side][0] for one in rounds)) for side in (0, 1)],
            "cpu_us_per_image": [round(1e6 * min(one[side][1] for one in rounds)) for side in (0, 1)],
            "share": round(statistics.median(there[0] / here[0] for here, there in rounds), 2),
            "cpu_share": round(statistics.median(here[1] / there[1] for here, there in rounds), 2),
        }
        for (kind, shuffle), rounds in pairs.items()
    ]


def compare_base64(folder: Path, server: HdfsServer, options: argparse.Namespace) -> dict:
    """Reads base64 data through the cache, and the same data on the disk."""
    from plsc.data.place import Place
    from plsc.data.remote import open_images as open_remote
    from plsc.data.sources import open_images
    from plsc.storage import open_hdfs
    from plsc.storage.address import split_address
    from plsc.storage.login import Login
    from plsc.storage.transfer import get

    split = make(folder, options.megabytes, options.files)
    size = sum(path.stat().st_size for path in split.glob("base64_rank_*"))
    server.client("root").upload("/split", str(split), n_threads=8)
    store = open_hdfs(server.web, "root,").with_patience(30)
    address = split_address("", "hdfs:///split")
    times: dict[str, list[float]] = {}

    def read_remote(cache: str, bound: int) -> None:
        place = Place(address, folder / cache, bound, Login(server.web, "root,"))
        records, _ = open_remote(place, None, "auto", None, in_flight=1)
        try:
            read_epoch(records)
        finally:
            records.close()

    for number in range(options.rounds):
        for what, action in (
            ("plain get", lambda number=number: get(store, "/split", folder / f"get{number}")),
            ("read local", lambda: read_epoch(open_images(str(split), None, 0, 1))),
            ("fetch and read, cache holds all", lambda number=number: read_remote(f"all{number}", 10**12)),
            ("read again, cache holds all", lambda number=number: read_remote(f"all{number}", 10**12)),
            ("fetch and read, cache holds 3/4", lambda number=number: read_remote(f"part{number}", size * 3 // 4)),
        ):
            began = time.perf_counter()
            action()
            times.setdefault(what, []).append(time.perf_counter() - began)
        for cache in ("get", "all", "part"):
            shutil.rmtree(folder / f"{cache}{number}")
    rates = {what: round(size / min(seconds) / 1e6, 1) for what, seconds in times.items()}
    return {"files": options.files, "megabytes": size / 1e6, "mb_per_s": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256, help="base64 data; 0 leaves it out")
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--images", type=int, default=20000, help="images that are read in place")
    parser.add_argument("--single", type=int, default=2000, help="how many of them where each is a request")
    parser.add_argument("--workers", type=int, default=2, help="threads of the loader that reads them")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, HdfsServer(Path(name) / "hdfs") as server:
        of_base64 = compare_base64(Path(name), server, options) if options.megabytes else None
        in_place = compare_in_place(Path(name), server, options)
    print(json.dumps({"command": sys.argv, "base64": of_base64, "in_place": in_place}))


if __name__ == "__main__":
    main()
