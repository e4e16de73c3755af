"""Starts a run many times, and counts the starts that fail: each joins the ranks and adds up one number over them.

Prints as JSON the starts, the failures, the last line of each, and the seconds that every start took. The ranks are
forks of a process that has imported Paddle, so that only the joining is measured. Paddle 2 starts a thread when it is
imported, which forks do not have; there, `--fresh` starts every rank as a new process.

python tests/benchmarks/starts.py --ranks 4 --starts 50 --load 4
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import checkout  # noqa: F401
import paddle

from plsc import parallel
from plsc.machine.launch.network import reserved_ports

SECONDS = 120  # after which a start has failed


def join(how):
    """Joins the ranks as plsc does, or in another way for comparison, and checks that all of them answer."""
    if how == "plsc":
        parallel.initialise()
    elif how == "fleet":
        paddle.distributed.fleet.init(is_collective=True)
    else:
        paddle.distributed.init_parallel_env()
    ranks = paddle.distributed.get_world_size()
    number = paddle.full([1], float(paddle.distributed.get_rank() + 1))
    paddle.distributed.all_reduce(number)
    assert number.item() == ranks * (ranks + 1) / 2


def environment(rank, ports):
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    return {
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": str(len(ports)),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_DISTRI_BACKEND": "gloo",
        "GLOG_minloglevel": "2",
    }


def start_rank(how, fresh, variables, log):
    """Starts one rank and returns its process id."""
    if fresh:
        command = [sys.executable, __file__, "--join", how]
        return subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log).pid
    pid = os.fork()
    if pid == 0:
        os.environ.update(variables)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = 1
        try:
            join(how)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return pid


def start(how, ranks, fresh):
    """Starts all ranks; returns the last line of the rank that failed first or None, and the seconds it took."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(reserved_ports(ranks))
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(ranks)]
        running = {start_rank(how, fresh, environment(rank, ports), logs[rank]): rank for rank in range(ranks)}
        failed = None
        while running:
            for pid, rank in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del running[pid]
                    failed = rank if status and failed is None else failed
            if failed is not None or time.monotonic() > began + SECONDS:
                failed = next(iter(running.values())) if failed is None else failed
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                break
            time.sleep(0.005)
        seconds = round(time.monotonic() - began, 2)
        if failed is None:
            return None, seconds
        logs[failed].seek(0)
        lines = logs[failed].read().decode("utf-8", "replace").splitlines()
        return f"rank {failed}: {lines[-1] if lines else 'no answer'}", seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--load", type=int, default=0, help="processes that keep the cores busy meanwhile")
    parser.add_argument("--join", choices=("plsc", "fleet", "without fleet"), default="plsc")
    parser.add_argument("--fresh", action="store_true", help="start every rank as a new process")
    options = parser.parse_args()
    if "PADDLE_TRAINER_ID" in os.environ:
        return join(options.join)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.load)]
    try:
        found = [start(options.join, options.ranks, options.fresh) for _ in range(options.starts)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    seconds = [one for _, one in found]
    result = {
        "command": " ".join(sys.argv),
        "paddle": paddle.__version__,
        "starts": len(found),
        "failures": sum(line is not None for line, _ in found),
        "lines": [line for line, _ in found if line is not None],
        "mean seconds": round(sum(seconds) / len(seconds), 2),
        "seconds": seconds,
    }
    print(json.dumps(result, indent=1))
    return None


if __name__ == "__main__":
    main()
