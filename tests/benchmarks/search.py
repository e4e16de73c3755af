"""`plsc index` and searching it: exact against ivf, on made-up embeddings, as JSON.

python tests/benchmarks/search.py [--identities 100000] [--images 10] [--dim 512] [--noise 1.0] \\
        [--queries 1000] [--folder DIR]

An embedding is the unit centre of its identity plus normal noise of length about `noise`; queries are new images of
known identities. Each index is built in a process of its own, whose memory is watched: `peak_memory` is anonymous
memory, without the pages of the embeddings file that the system may drop.
"""

import argparse
import csv
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import checkout  # noqa: F401
import numpy as np

from plsc.search.index import SearchIndex, build_index


def make_embeddings(folder, options):
    """The folder of embeddings, and queries."""
    rng = np.random.default_rng(0)
    count = options.identities * options.images
    vectors = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", "float32", (count, options.dim))
    scale = options.noise / options.dim**0.5
    centres = rng.standard_normal((options.identities, options.dim), dtype="float32")
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for first in range(0, options.identities, 5000):
        block = np.repeat(centres[first : first + 5000], options.images, axis=0)
        vectors[first * options.images :][: len(block)] = block + scale * rng.standard_normal(
            block.shape, dtype="float32"
        )
    vectors.flush()
    with open(folder / "images.tsv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, csv.excel_tab, lineterminator="\n")
        writer.writerows((f"{row // options.images}/{row}.jpg", row // options.images) for row in range(count))
    meta = {"count": count, "emb_dim": options.dim, "source": "/", "images": "", "model": "",
            "image_shape": [3, 112, 112], "flip": False}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(meta))
    chosen = centres[rng.choice(options.identities, options.queries)]
    return chosen + scale * rng.standard_normal(chosen.shape, dtype="float32")


def anonymous_memory():
    """Bytes of this process that are in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def build(folder, file, kind, results):
    """In a process of its own."""
    peak, done = [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    meta = build_index(folder, file, kind)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    results.put({"build_seconds": round(seconds, 1), "index_bytes": file.stat().st_size, "peak_memory": peak[0],
                 **{key: meta[key] for key in ("lists", "probes", "recall") if key in meta}})  # fmt: skip


def queries_per_second(index, queries, batch, probes, limit):
    """Over all queries, or as many as take about `limit` seconds."""
    index.nearest(queries[:batch], 10, probes)
    began, done = time.perf_counter(), 0
    while done + batch <= len(queries) and time.perf_counter() - began < limit:
        index.nearest(queries[done : done + batch], 10, probes)
        done += batch
    return round(done / (time.perf_counter() - began), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--identities", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=10, help="of an identity")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement of speed")
    parser.add_argument("--folder", help="for temporary files")
    options = parser.parse_args()
    import faiss

    with open("/proc/cpuinfo") as stream:
        cpu = next((line.split(":")[1].strip() for line in stream if line.startswith("model name")), "")
    result = {"command": " ".join(sys.argv), **vars(options), "cpu": cpu, "threads": int(os.environ["OMP_NUM_THREADS"]),
              "faiss": faiss.__version__, "numpy": np.__version__, "python": platform.python_version(),
              "kinds": {}}  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        queries = make_embeddings(folder, options)
        exact = None
        for kind in ("flat", "ivf"):
            file, results = folder / f"{kind}.index", context.Queue()
            process = context.Process(target=build, args=(folder, file, kind, results))
            process.start()
            one = result["kinds"][kind] = results.get()
            process.join()
            began = time.perf_counter()
            index = SearchIndex(file)
            one["open_seconds"] = round(time.perf_counter() - began, 1)
            one["searches"] = []
            for probes in (1,) if kind == "flat" else sorted({16, 64, 256, 512, 1024, one["probes"]}):
                found = index.nearest(queries, 10, probes)[1]
                exact = found if exact is None else exact
                alike = [len(set(a) & set(b)) for a, b in zip(found, exact)]
                one["searches"].append({
                    **({} if kind == "flat" else {"probes": probes}),
                    "recall@1": round(float((found[:, 0] == exact[:, 0]).mean()), 4),
                    "recall@10": round(sum(alike) / exact.size, 4),
                    **{f"queries_per_second, batch {batch}":
                       queries_per_second(index, queries, batch, probes, options.seconds) for batch in (1, 100)},
                })  # fmt: skip
            del index
            file.unlink()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
