"""What a checkpoint costs: the stall of training, writing and reading against plain files of the same bytes on the same
disk, and the bytes and memory of loading a head on another number of ranks. JSON.

python tests/benchmarks/checkpoint.py --classes 500000 --reshard 4000000
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
import numpy as np

DIM, BLOCK = 512, 8 << 20


def timed(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - began, result


def plain_write(path, arrays):
    """The same bytes, one after the other, fsynced."""
    with open(path, "wb", buffering=0) as stream:
        for array in arrays:
            data = array.reshape(-1).view(np.uint8).data
            for first in range(0, len(data), BLOCK):
                stream.write(data[first : first + BLOCK])
        os.fsync(stream.fileno())


def plain_read(path, into):
    """The bytes of a file, into memory that is there already."""
    view = into.reshape(-1).view(np.uint8).data
    with open(path, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        for first in range(0, size, BLOCK):
            stream.readinto(view[first : min(first + BLOCK, len(view))])


def forget(path):
    """Drops a file's pages, so that it is read from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def clear(path):
    """Removes a file or folder, and lets the disk come to rest."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.sync()


def load(found, head, velocity):
    from plsc import checkpoint

    checkpoint.load_head(found, head)
    checkpoint.load_head_optimizer(found, head, {"weight": {"velocity": velocity}})


def stall_and_throughput(folder, classes, rounds):
    import paddle

    from plsc import checkpoint
    from plsc.heads import build_head

    head = build_head("dist_arcface", classes, DIM)
    velocity = paddle.ones([classes, DIM])
    arrays = {"weight": checkpoint.host_array(head.weight), "weight/velocity": checkpoint.host_array(velocity)}
    files = {checkpoint.head_file(0): arrays, checkpoint.BACKBONE: {}, checkpoint.OPTIMIZER: {}}
    meta = {
        "num_classes": classes,
        "emb_dim": DIM,
        "head_rows": [classes],
        "by_rows": list(arrays),
        "step": 0,
        "sharded": True,
    }
    size = sum(array.nbytes for array in arrays.values())
    result = {"bytes": size, "rounds": []}
    writer, inline = checkpoint.Writer(folder / "b"), checkpoint.Writer(folder / "i", background=False)
    whole = np.empty((2, classes, DIM), "float32")
    copies = [whole[0], whole[1]]
    head_file = checkpoint.head_file(0)

    def in_background(number, one):
        one["stall"], place = timed(writer.start, str(number), files, meta, {})
        one["background write, till in place"], _ = timed(writer.finish)
        clear(place)

    def plain(number, one):
        one["plain write"], _ = timed(plain_write, folder / "plain", list(arrays.values()))
        forget(folder / "plain")
        one["plain read"], _ = timed(plain_read, folder / "plain", whole)
        clear(folder / "plain")

    def at_once(number, one):
        one["write"], place = timed(inline.start, str(number), files, meta, {})
        found = checkpoint.open_checkpoint(place)
        forget(place / head_file)
        one["read, checked"], _ = timed(load, found, head, velocity)
        clear(place)

    contenders = [in_background, plain, at_once]
    for number in range(rounds):
        one = {}
        one["copy"], _ = timed(lambda: [np.copyto(copy, array) for copy, array in zip(copies, arrays.values())])
        for contender in contenders:
            contender(number, one)
        contenders.append(contenders.pop(0))  # a disk is not the same after a write as after a read
        result["rounds"].append({name: round(value, 3) for name, value in one.items()})
    best = {name: min(one[name] for one in result["rounds"]) for name in result["rounds"][0]}
    result["best"] = best
    result["write, share of plain"] = best["plain write"] / best["write"]
    result["background write, share of plain"] = best["plain write"] / best["background write, till in place"]
    result["read, share of plain"] = best["plain read"] / best["read, checked"]
    result["stall / copy"] = best["stall"] / best["copy"]
    result["stall of the first save / copy"] = result["rounds"][0]["stall"] / best["copy"]
    return result


def make_source(folder, classes, dim, ranks):
    """A checkpoint of `ranks` ranks, written without holding it."""
    from plsc.checkpoint import BACKBONE, OPTIMIZER, head_file
    from plsc.checkpoint.folder import write_meta
    from plsc.checkpoint.tensor_file import Stream, write_tensors
    from plsc.heads import shard_bounds

    folder.mkdir()
    files = {name: write_tensors(folder / name, {}) for name in (BACKBONE, OPTIMIZER)}
    rows = []
    for rank in range(ranks):
        lower, upper = shard_bounds(classes, ranks, rank)
        rows.append(upper - lower)

        def parts(lower=lower, upper=upper):
            for first in range(lower, upper, 10000):
                numbers = np.arange(first, min(upper, first + 10000), dtype="float32")
                yield np.repeat(numbers[:, None], dim, axis=1)

        tensors = {
            name: Stream(np.dtype("float32"), (rows[-1], dim), parts()) for name in ("weight", "weight/velocity")
        }
        files[head_file(rank)] = write_tensors(folder / head_file(rank), tensors)
    meta = {"num_classes": classes, "emb_dim": dim, "head_rows": rows, "by_rows": ["weight", "weight/velocity"]}
    write_meta(folder, {**meta, "step": 0, "sharded": True, "loss_type": "dist_arcface"}, files)


def reset_peak():
    """Peak resident memory from now on; what it is now."""
    from plsc.machine.memory import peak_memory

    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def load_as_rank(folder, classes, dim):
    """What one rank reads and holds; run in a process of its own, whose environment says which rank it is."""
    import paddle

    from plsc import checkpoint
    from plsc.checkpoint.load import HeadFiles
    from plsc.heads import build_head
    from plsc.machine.memory import peak_memory

    found = checkpoint.open_checkpoint(Path(folder))
    build_head("dist_arcface", 10, dim)  # what the first head of a process needs is not counted
    base = reset_peak()
    head = build_head("dist_arcface", classes, dim)
    velocity = paddle.zeros_like(head.weight)
    seconds, _ = timed(checkpoint.load_head, found, head)
    with HeadFiles(found) as files:
        files.fill(velocity, "weight/velocity", head.lower)
        velocity_bytes = files.bytes_read
    numbers = np.arange(head.lower, head.upper, dtype="float32")
    for tensor in (head.weight, velocity):
        assert (checkpoint.host_array(tensor)[:, 3] == numbers).all()
    size = 2 * (head.upper - head.lower) * dim * 4
    return {
        "rows": head.upper - head.lower,
        "bytes of its rows": size,
        "bytes read": 2 * velocity_bytes,
        "read / rows": 2 * velocity_bytes / size,
        "peak / rows": (peak_memory() - base) / size,
        "seconds for W": round(seconds, 2),
    }


def reshard(folder, classes, dim, source, target):
    make_source(folder / "source", classes, dim, source)
    ranks = []
    for rank in range(target):
        environment = {**os.environ, "PADDLE_TRAINERS_NUM": str(target), "PADDLE_TRAINER_ID": str(rank)}
        command = [sys.executable, __file__, "--as-rank", str(folder / "source"), str(classes), str(dim)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        ranks.append(json.loads(process.stdout.splitlines()[-1]) if process.returncode == 0 else process.stderr[-2000:])
    words = "import sys, time; sys.argv = sys.argv[1:]\nfrom plsc.cli import main\nbegan = time.time(); main()\n"
    words += "from plsc.machine.memory import peak_memory; print(time.time() - began, peak_memory())"
    arguments = ["plsc", "convert-checkpoint", str(folder / "source"), str(folder / "target"), "--ranks", str(target)]
    process = subprocess.run([sys.executable, "-c", words, *arguments], capture_output=True, text=True)
    seconds, peak = process.stdout.splitlines()[-1].split()
    offline = {"seconds": round(float(seconds), 2), "peak bytes of the process": int(peak)}
    return {"classes": classes, "dim": dim, "from": source, "to": target, "ranks": ranks, "convert-checkpoint": offline}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--reshard", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to measure (default: the system's temporary folder)")
    parser.add_argument("--as-rank", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        folder, classes, dim = options.as_rank
        print(json.dumps(load_as_rank(folder, int(classes), int(dim))))
        return
    result = {"command": " ".join(sys.argv)}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        result["one rank"] = stall_and_throughput(Path(temporary), options.classes, options.rounds)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        result["another number of ranks"] = reshard(Path(temporary), options.reshard, 128, 4, 3)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
