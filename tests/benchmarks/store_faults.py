"""What a user of `plsc fs` sees, and for how long it takes, when a store fails: each store with each fault that it has.

Real servers run on this machine: a NameNode and a DataNode of Hadoop, and the S3 server of moto. Prints JSON with a
row for each store and fault: the exit status, the seconds, how often the command tried again, and its last line.

python tests/benchmarks/store_faults.py --retry-seconds 20
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import checkout  # noqa: F401
from hdfs import HdfsError
from hdfs_server import NAMENODE, HdfsServer
from ranks import environment
from s3_server import S3Server

_RESTARTED_AFTER = 6.0  # seconds


class Stores:
    """The servers, and a file that is large enough for a fault in the middle of its transfer."""

    def __init__(self, folder, hdfs, s3, megabytes):
        self.folder, self.hdfs, self.s3 = folder, hdfs, s3
        self.file = folder / "file"
        self.file.write_bytes(os.urandom(1 << 20) * megabytes)
        self.addresses = {
            "RPC": hdfs.address,
            "WebHDFS": hdfs.web.replace("http", "webhdfs"),
            "S3": "s3://bucket",
            "folder": f"file://{folder}/store",
        }

    def reset(self):
        """Brings all servers back, with the file at `there` and nothing else."""
        self.hdfs.reset()
        if self.s3.process is None:
            self.s3.start()
        for one in self.s3.client().list_objects_v2(Bucket="bucket").get("Contents", ()):
            self.s3.client().delete_object(Bucket="bucket", Key=one["Key"])
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        (self.folder / "store/there").mkdir(parents=True)
        shutil.copy(self.file, self.folder / "store/there/file")
        self.s3.client().upload_file(str(self.file), "bucket", "there/file")
        for folder in ("/there", "/new", "/closed"):
            self.hdfs.client().delete(folder, recursive=True)
        self.hdfs.client().makedirs("/there", permission="777")
        self.hdfs.client().upload("/there/file", str(self.file))
        (self.folder / "back").unlink(missing_ok=True)

    def kill(self, store):
        self.s3.kill() if store == "S3" else self.hdfs.kill_namenode()

    def start(self, store):
        if store == "S3":
            self.s3.start()
            self.s3.client().upload_file(str(self.file), "bucket", "there/file")
        else:
            self.hdfs.start_namenode()

    @contextlib.contextmanager
    def hanging(self, store):
        if store == "S3":
            with self.s3.hanging():
                yield
            return
        group = self.hdfs.processes[NAMENODE].pid
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(group, signal.SIGCONT)

    def is_uploading(self, store):
        """Returns whether a part of a file is on its way to a store."""
        if store == "S3":
            return bool(self.s3.unfinished())
        with contextlib.suppress(HdfsError):
            return bool(self.hdfs.client().list("/new"))
        return False

    def is_downloading(self):
        return any(path.stat().st_size > 1 << 20 for path in self.folder.glob(".back.*.get"))


def fault(stores, store, name):
    """Returns the words of a command, what makes the fault, and variables of the environment."""
    address, nothing = stores.addresses[store], contextlib.nullcontext()
    get = ["get", f"{address}/there/file", str(stores.folder / "back")]
    put = ["put", str(stores.file), f"{address}/new/file"]

    @contextlib.contextmanager
    def away(seconds=None, once=None):
        """Kills the server, at once or when `once` returns true, and starts it again after some seconds."""

        def act():
            deadline = time.monotonic() + 60
            while once is not None and not once() and time.monotonic() < deadline:
                time.sleep(0.02)
            stores.kill(store)
            if once is None:
                killed.set()
            if seconds is not None:
                time.sleep(seconds)
                stores.start(store)

        killed = threading.Event()
        thread = threading.Thread(target=act)
        thread.start()
        if once is None:
            killed.wait()
        yield
        thread.join()

    @contextlib.contextmanager
    def small_disk():
        place = stores.folder / "small"
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", place], check=True)

    def refuse():
        stores.hdfs.client().makedirs("/closed", permission="555")
        return nothing

    def limit():
        stores.hdfs.client().makedirs("/new", permission="777")
        stores.hdfs.set_quota("/new", size=1 << 20)
        return nothing

    def safe():
        stores.hdfs.safe_mode(True)
        return nothing

    return {
        "none": lambda: (put, nothing, {}),
        "no server": lambda: (get, away(), {}),
        "the server hangs": lambda: (get, stores.hanging(store), {}),
        "the server is back after 6 s": lambda: (put, away(_RESTARTED_AFTER), {}),
        "killed in an upload, back after 6 s": lambda: (
            put,
            away(_RESTARTED_AFTER, lambda: stores.is_uploading(store)),
            {},
        ),
        "killed in a download, back after 6 s": lambda: (get, away(_RESTARTED_AFTER, stores.is_downloading), {}),
        "nothing there": lambda: (["get", f"{address}/absent", str(stores.folder / "back")], nothing, {}),
        "something there": lambda: (["put", str(stores.file), f"{address}/there/file"], nothing, {}),
        "the disk is too small": lambda: (
            ["get", f"{address}/there/file", f"{stores.folder}/small/x"],
            small_disk(),
            {},
        ),
        "no permission": lambda: (["put", str(stores.file), f"{address}/closed/x"], refuse(), {}),
        "quota": lambda: (put, limit(), {}),
        "safe mode": lambda: (put, safe(), {}),
        "no bucket": lambda: (["ls", "s3://absent/x"], nothing, {}),
        "no credentials": lambda: (get, nothing, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}),
    }[name]()


EVERY = ("nothing there", "something there", "the disk is too small")
SERVERS = (
    "none",
    "no server",
    "the server hangs",
    "the server is back after 6 s",
    "killed in an upload, back after 6 s",
    "killed in a download, back after 6 s",
)
HADOOP = ("no permission", "quota", "safe mode")
# A server of moto that is restarted has lost its files, so that no download can be resumed.
FAULTS = {
    "RPC": (*SERVERS, *HADOOP, *EVERY),
    "WebHDFS": (*SERVERS, *HADOOP, *EVERY),
    "S3": (*SERVERS[:-1], "no bucket", "no credentials", *EVERY),
    "folder": EVERY,
}


def run(stores, store, name, retry_seconds):
    """Returns a row of the table."""
    stores.reset()
    words, happening, more = fault(stores, store, name)
    options = ["--retry-seconds", str(retry_seconds)]
    if store in ("RPC", "WebHDFS"):
        options += ["--user", "eve"]
    variables = {**environment(), **stores.s3.environment, "HOME": str(stores.folder), **more}
    variables = {key: value for key, value in variables.items() if value}
    with happening:
        began = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", "plsc", "fs", words[0], *options, *words[1:]],
            env=variables, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        seconds = time.monotonic() - began
    if name == "safe mode":
        stores.hdfs.safe_mode(False)
    said = (process.stderr if process.returncode else process.stdout).strip().splitlines()
    line = re.sub(
        rf"{re.escape(str(stores.folder))}|127\.0\.0\.1", lambda found: "" if "/" in found[0] else "host", said[-1]
    )
    tries = process.stderr.count("trying again in")
    return {
        "store": store, "fault": name, "status": process.returncode, "seconds": round(seconds, 1),
        "tried again": tries, "line": line,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retry-seconds", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=300, help="size of the file")
    parser.add_argument("--stores", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("faults", nargs="*", help="the faults; all by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, S3Server() as s3, HdfsServer(Path(temporary)) as hdfs:
        stores = Stores(Path(temporary), hdfs, s3, options.megabytes)
        rows = []
        for store in options.stores:
            for name in FAULTS[store]:
                if not options.faults or name in options.faults:
                    rows.append(run(stores, store, name, options.retry_seconds))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
