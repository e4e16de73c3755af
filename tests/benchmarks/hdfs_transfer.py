"""Uploads and downloads beside curl on the same server, many small files, and what an upload costs a step; prints JSON.

    python tests/benchmarks/hdfs_transfer.py [--megabytes 512] [--rounds 3] [--files 0] [--classes 200000] [--steps 60]

The server is that of tests/hdfs_server.py. The contenders take turns, each figure is the best of the rounds.
(The name is not hdfs.py: a script's folder comes first where Python looks for the package of that name.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

from hdfs_server import HdfsServer  # noqa: E402


def seconds(action) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def curl(*arguments: object) -> str:
    process = subprocess.run(["curl", "--silent", "--fail", *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 0, process
    return process.stdout


def curl_put(server: HdfsServer, source: Path, target: str) -> None:
    url = f"{server.web}/webhdfs/v1{target}?op=CREATE&overwrite=true&user.name=root"
    place = re.search(r"(?im)^location: (\S+)", curl("--include", "--request", "PUT", url))
    assert place
    curl("--upload-file", source, place[1])


def curl_get(server: HdfsServer, source: str, target: Path) -> None:
    curl("--location", "--output", target, f"{server.web}/webhdfs/v1{source}?op=OPEN&user.name=root")


def transfers(server: HdfsServer, folder: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """MB/s (10^6) of one large file."""
    from plsc.checkpoint import remote
    from plsc.checkpoint.folder import Checkpoint
    from plsc.checkpoint.tensor_file import BLOCK_BYTES, FileSum
    from plsc.storage import open_hdfs
    from plsc.storage.transfer import get, put

    store = open_hdfs(server.web, "root,").with_patience(30)
    data, source = os.urandom(1 << 20), folder / "big"
    with open(source, "wb") as stream:
        for _ in range(megabytes):
            stream.write(data)
    with open(source, "rb") as stream:
        blocks = tuple(hashlib.sha256(block).hexdigest() for block in iter(lambda: stream.read(BLOCK_BYTES), b""))
    size = source.stat().st_size
    checkpoint = Checkpoint(Path("/"), {}, {"plsc": FileSum(size, blocks)})
    found = remote.Remote("/put", b"{}", checkpoint)
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, action in (
            ("upload", lambda number=number: put(store, source, f"/put {number}")),
            ("upload_curl", lambda: curl_put(server, source, "/curl")),
            ("download", lambda number=number: get(store, f"/put {number}", folder / f"get {number}")),
            ("download_curl", lambda: curl_get(server, "/curl", folder / "curl")),
        ):
            times.setdefault(name, []).append(seconds(action))
        store.mkdirs("/put")
        store.rename(f"/put {number}", "/put/plsc")
        checked = folder / f"checked {number}"
        times.setdefault("download_checked", []).append(
            seconds(lambda checked=checked: remote.download(store, found, checked, ["plsc"]))
        )
        assert (checked / "plsc").stat().st_size == (folder / f"get {number}").stat().st_size == size
        for path in (checked / "plsc", folder / f"get {number}", folder / "curl"):
            path.unlink()
        store.delete("/put")
    return {f"{name}_mb_per_s": round(size / min(all_of) / 1e6, 1) for name, all_of in times.items()}


def small_files(server: HdfsServer, folder: Path, count: int) -> dict[str, float]:
    """Files a second, of 1 kB."""
    from plsc.storage import open_hdfs
    from plsc.storage.transfer import get, put

    store, source = open_hdfs(server.web, "root,").with_patience(30), folder / "many"
    for number in range(count):
        path = source / f"{number % 100}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    up = seconds(lambda: put(store, source, "/many"))
    down = seconds(lambda: get(store, "/many", folder / "back"))
    assert sum(path.is_file() for path in (folder / "back").rglob("*")) == count
    return {"files": count, "files_up_per_s": round(count / up, 1), "files_down_per_s": round(count / down, 1)}


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
    for name, default in (("megabytes", 512), ("rounds", 3), ("files", 0), ("classes", 200000), ("steps", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, HdfsServer(Path(folder, "server")) as server:
        result: dict[str, object] = {"load": os.getloadavg()[0], "cores": os.cpu_count()}
        if options.megabytes:
            result["megabytes"] = options.megabytes
            result.update(transfers(server, Path(folder), options.megabytes, options.rounds))
        if options.files:
            result.update(small_files(server, Path(folder), options.files))
        if options.classes:
            result.update(stalls(server, Path(folder), options.classes, options.steps))
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
