"""Base64 data on HDFS through the data cache, next to plain downloads and to data on the local disk; prints JSON.

    python tests/benchmarks/data_cache.py [--megabytes 256] [--files 32] [--rounds 3]

The server is that of tests/hdfs_server.py. The contenders take turns; each figure is the best of the rounds, in MB/s.
Reading means that one thread reads every line of an epoch and takes the image out of its base64.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
from hdfs_server import HdfsServer

IMAGE = 8000  # bytes


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from plsc.data.place import Place
    from plsc.data.remote import open_images as open_remote
    from plsc.data.sources import open_images
    from plsc.storage import open_hdfs
    from plsc.storage.address import split_address
    from plsc.storage.login import Login
    from plsc.storage.transfer import get

    with tempfile.TemporaryDirectory() as name, HdfsServer(Path(name) / "hdfs") as server:
        folder = Path(name)
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
    print(json.dumps({"command": sys.argv, "files": options.files, "megabytes": size / 1e6, "mb_per_s": rates}))


if __name__ == "__main__":
    main()
