"""Uploads and downloads next to the plain client of each store, many small files, and what an upload costs a step.

    python tests/benchmarks/hdfs_transfer.py [--stores web,rpc,s3] [--megabytes 512] [--rounds 3] [--files 0]
        [--processes 2] [--classes 200000] [--steps 60]

It prints JSON. The servers are those of tests/hdfs_server.py and tests/helpers/s3_server.py; the plain clients are
curl for WebHDFS, hdfs-native for RPC and boto3 for S3. The contenders take turns, and each is the first in every other
round. Each figure is the best of the rounds; a ratio above 1 means that plsc is faster than the plain client. Seconds
of CPU are those of this process and its children, without the server.
(The name is not hdfs.py: a script's folder comes first where Python looks for the package of that name.)
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkout import ROOT
from hdfs_server import HdfsServer
from s3_server import S3Server


def seconds(action) -> tuple[float, float]:
    """Returns how long an action takes, and how much CPU time of this process and its children."""
    began, before = time.perf_counter(), os.times()
    action()
    after = os.times()
    return time.perf_counter() - began, sum(after[:4]) - sum(before[:4])


def curl(*arguments: object) -> str:
    process = subprocess.run(["curl", "--silent", "--fail", *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 0, process
    return process.stdout


class Curl:
    """The plain client of WebHDFS."""

    def __init__(self, server):
        self.address, self.ugi, self._web = server.web, "root,", server.web

    def put(self, source: Path, target: str) -> None:
        url = f"{self._web}/webhdfs/v1{target}?op=CREATE&overwrite=true&user.name=root"
        place = re.search(r"(?im)^location: (\S+)", curl("--include", "--request", "PUT", url))
        assert place
        curl("--upload-file", source, place[1])

    def get(self, source: str, target: Path) -> None:
        curl("--location", "--output", target, f"{self._web}/webhdfs/v1{source}?op=OPEN&user.name=root")


class Native:
    """The plain client of RPC."""

    def __init__(self, server):
        import hdfs_native

        os.environ["HADOOP_USER_NAME"] = "root"
        self.address, self.ugi, self._client = server.address, "root,", hdfs_native.Client(server.address)

    def put(self, source: Path, target: str) -> None:
        from hdfs_native import WriteOptions

        writer = self._client.create(target, WriteOptions(overwrite=True))
        with open(source, "rb") as stream:
            while chunk := stream.read(1 << 20):
                writer.write(chunk)
        writer.close()

    def get(self, source: str, target: Path) -> None:
        reader = self._client.read(source)
        with open(target, "wb") as stream:
            for part in reader.read_range_stream(0, len(reader)):
                stream.write(part)


class Boto:
    """The plain client of S3, which moves parts of a file in several threads."""

    def __init__(self, server):
        os.environ.update(server.environment)
        self.address, self.ugi, self._client = "s3://bucket", None, server.client()

    def put(self, source: Path, target: str) -> None:
        self._client.upload_file(str(source), "bucket", target.lstrip("/"))

    def get(self, source: str, target: Path) -> None:
        self._client.download_file("bucket", source.lstrip("/"), str(target))


def transfers(plain, folder: Path, megabytes: int, rounds: int) -> dict[str, object]:
    """Returns MB/s (10^6) of one large file, and how plsc compares with the plain client."""
    from plsc.checkpoint import remote
    from plsc.checkpoint.folder import Checkpoint
    from plsc.checkpoint.tensor_file import BLOCK_BYTES, FileSum
    from plsc.storage import open_hdfs
    from plsc.storage.transfer import get, put

    store = open_hdfs(plain.address, plain.ugi).with_patience(300)
    data, source = os.urandom(1 << 20), folder / "big"
    with open(source, "wb") as stream:
        for _ in range(megabytes):
            stream.write(data)
    with open(source, "rb") as stream:
        blocks = tuple(hashlib.sha256(block).hexdigest() for block in iter(lambda: stream.read(BLOCK_BYTES), b""))
    size = source.stat().st_size
    checkpoint = Checkpoint(Path("/"), {}, {"plsc": FileSum(size, blocks)})
    found = remote.Remote("/put", b"{}", checkpoint)
    times: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        pairs = {
            "upload": (lambda number=number: put(store, source, f"/put {number}"), lambda: plain.put(source, "/plain")),
            "download": (
                lambda number=number: get(store, f"/put {number}", folder / f"get {number}"),
                lambda: plain.get("/plain", folder / "plain"),
            ),
        }
        for name, (action, plain_action) in pairs.items():
            turns = [(name, action), (f"{name}_plain", plain_action)]
            for turn, one in turns if number % 2 == 0 else turns[::-1]:  # the first pays for what came before
                times.setdefault(turn, []).append(seconds(one))
        store.mkdirs("/put")
        store.rename(f"/put {number}", "/put/plsc")
        checked = folder / f"checked {number}"
        times.setdefault("download_checked", []).append(
            seconds(lambda checked=checked: remote.download(store, found, checked, ["plsc"]))
        )
        assert (checked / "plsc").stat().st_size == (folder / f"get {number}").stat().st_size == size
        for path in (checked / "plsc", folder / f"get {number}", folder / "plain"):
            path.unlink()
        store.delete("/put")
    best = {name: min(wall for wall, _ in all_of) for name, all_of in times.items()}
    return {
        **{f"{name}_mb_per_s": round(size / wall / 1e6, 1) for name, wall in best.items()},
        **{f"{name}_cpu_s": round(min(cpu for _, cpu in all_of), 2) for name, all_of in times.items()},
        **{f"{name}_ratio": round(best[f"{name}_plain"] / best[name], 2) for name in ("upload", "download")},
    }


def small_files(plain, folder: Path, count: int) -> dict[str, float]:
    """Returns files a second, of 1 kB; the plain client copies a tenth of them, one after the other."""
    from plsc.storage import open_hdfs
    from plsc.storage.transfer import get, put

    store, source = open_hdfs(plain.address, plain.ugi).with_patience(300), folder / "many"
    for number in range(count):
        path = source / f"{number % 100}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    up, _ = seconds(lambda: put(store, source, "/many"))
    down, _ = seconds(lambda: get(store, "/many", folder / "back"))
    assert sum(path.is_file() for path in (folder / "back").rglob("*")) == count
    some = [path for path in sorted(source.rglob("*")) if path.is_file()][: max(1, count // 10)]
    plain_up, _ = seconds(lambda: [plain.put(path, f"/plain-{path.name}") for path in some])
    plain_down, _ = seconds(lambda: [plain.get(f"/plain-{path.name}", folder / "one") for path in some])
    store.delete("/many")
    shutil.rmtree(folder / "back")
    return {
        "files": count,
        "files_up_per_s": round(count / up, 1),
        "files_down_per_s": round(count / down, 1),
        "files_up_plain_per_s": round(len(some) / plain_up, 1),
        "files_down_plain_per_s": round(len(some) / plain_down, 1),
    }


def together(plain, folder: Path, megabytes: int, processes: int) -> dict[str, float]:
    """Returns MB/s of several processes together, each with a file of its own, and the most memory that one took."""
    from plsc.storage import open_hdfs

    found: dict[str, float] = {}
    size, most = processes * (folder / "big").stat().st_size, 0.0
    for name in ("put", "get"):
        arguments = [
            ((folder / "big", f"/together{n}") if name == "put" else (f"/together{n}", folder / f"together{n}"))
            for n in range(processes)
        ]
        began = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, "-c", COPY, name, plain.address, plain.ugi or "", *map(str, pair)],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
            )
            for pair in arguments
        ]  # fmt: skip
        shown = [json.loads(process.communicate()[0]) for process in running]
        assert not any(process.returncode for process in running)
        whole = time.perf_counter() - began
        most = max(most, *(one["peak_mb"] for one in shown))
        found[f"{name}_by_{processes}_processes_mb_per_s"] = round(size / max(one["s"] for one in shown) / 1e6, 1)
        found[f"{name}_by_{processes}_processes_s"] = round(whole, 1)
    store = open_hdfs(plain.address, plain.ugi)
    for n in range(processes):
        store.delete(f"/together{n}")
        (folder / f"together{n}").unlink()
    return {**found, "peak_mb": most}


COPY = """
import json, sys, time
from pathlib import Path
from plsc.machine.memory import peak_memory
from plsc.storage import open_hdfs
from plsc.storage.transfer import get, put
name, address, ugi, source, target = sys.argv[1:]
store = open_hdfs(address, ugi or None).with_patience(300)
began, before = time.perf_counter(), peak_memory()
put(store, Path(source), target) if name == "put" else get(store, source, Path(target))
print(json.dumps({"s": time.perf_counter() - began, "peak_mb": round((peak_memory() - before) / 1e6, 1)}))
"""

STEPS = """
import json, sys, time
import numpy as np, paddle
import plsc
from plsc import Callback, Entry
from plsc.engine.upload import Uploader
from plsc.models.base_model import BaseModel

web, folder, mode, classes, steps = sys.argv[1:4] + [int(value) for value in sys.argv[4:]]

class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = paddle.nn.Linear(3 * 32 * 32, 128)
    def build_network(self, input, label, is_train):
        return self.fc(input.flatten(1))

class Watch(Callback):
    times, last = [], None
    def on_step_end(self, run):
        now = time.perf_counter()
        if self.last is not None:
            self.times.append(now - self.last)
        self.last = now

saves, on_save = [], Uploader.on_save
def timed(self, run, folder):
    began = time.perf_counter()
    on_save(self, run, folder)
    saves.append(time.perf_counter() - began)
Uploader.on_save = timed

def reader():
    rng = np.random.default_rng(0)
    for _ in range(steps):
        yield [(rng.normal(size=(3, 32, 32)).astype("float32"), int(rng.integers(classes))) for _ in range(16)]

ins = Entry()
ins.set_model(Net()); ins.set_emb_size(128); ins.set_image_shape((3, 32, 32)); ins.set_class_num(classes)
ins.set_train_epochs(1); ins.set_with_test(False); ins.set_train_image_num(16 * steps); ins.set_train_batch_size(16)
ins.set_keep_checkpoints(1)
ins.train_reader = reader
ins.set_model_save_dir(folder if mode != "none" else None)
if mode != "none":
    ins.set_save_period(steps // 4)
if mode == "upload":
    ins.set_hdfs_info(web, "root,", "/steps"); ins.set_hdfs_upload("step")
watch = Watch()
ins.add_callback(watch)
began = time.perf_counter()
ins.train()
print(json.dumps({"times": watch.times, "saves": saves}))
"""


def stalls(server: HdfsServer, folder: Path, classes: int, steps: int) -> dict[str, object]:
    """Seconds of the steps of a training without saves, with saves, and with saves that are uploaded at once."""
    script, found = folder / "steps.py", {}
    script.write_text(STEPS)
    for mode in ("none", "save", "upload"):
        process = subprocess.run(
            [sys.executable, script, server.web, folder / mode, mode, str(classes), str(steps)],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-3000:]
        result = json.loads(process.stdout.splitlines()[-1])
        times = sorted(result["times"])
        found[f"step_{mode}"] = {
            "median_s": round(statistics.median(times), 4),
            "p95_s": round(times[int(0.95 * len(times))], 4),
            "max_s": round(times[-1], 4),
            "mean_s": round(statistics.mean(times), 4),
        }
        if result["saves"]:
            found["on_save_max_s"] = round(max(result["saves"]), 4)
    return {"checkpoint_mb": round(classes * 128 * 8 / 1e6, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default="web,rpc,s3")
    for name, default in (
        ("megabytes", 512), ("rounds", 3), ("files", 0), ("processes", 2), ("classes", 200000), ("steps", 60)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    kinds = {"web": (Curl, HdfsServer), "rpc": (Native, HdfsServer), "s3": (Boto, S3Server)}
    result: dict[str, object] = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "megabytes": options.megabytes}
    for name in options.stores.split(","):
        make_plain, make_server = kinds[name]
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            place = Path(folder)
            server = stack.enter_context(make_server(*([place / "server"] if make_server is HdfsServer else [])))
            plain, found = make_plain(server), {}
            if options.megabytes:
                found.update(transfers(plain, place, options.megabytes, options.rounds))
                if options.processes:
                    found.update(together(plain, place, options.megabytes, options.processes))
            if options.files:
                found.update(small_files(plain, place, options.files))
            if options.classes and name == "web":
                found.update(stalls(server, place, options.classes, options.steps))
            result[name] = found
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
