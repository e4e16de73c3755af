"""Trains on two ranks of which one is late by some seconds, at each place where a rank may work alone.

Prints as JSON for each place whether training succeeds, how long it takes, and the lines about the late rank.

python tests/benchmarks/late.py --seconds 70
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkout  # noqa: F401
from disturbed_ranks import EVERY_PLACE
from ranks import command, environment

from plsc.data.glyphs import render_glyphs


def late_run(data, folder, name, seconds):
    """Returns how a training with a late rank ends."""
    began = time.monotonic()
    words = (data, folder / name.replace(" ", "_"), "delay", name, EVERY_PLACE[name].rank, seconds)
    process = subprocess.run(
        command("disturbed_ranks.py", 2, *words), env=environment(), capture_output=True, text=True
    )
    lines = [line.partition("] ")[2] for line in process.stderr.splitlines() if "waiting for" in line]
    result = {"place": name, "late rank": EVERY_PLACE[name].rank, "status": process.returncode}
    result.update({"seconds": round(time.monotonic() - began), "log": lines})
    return result if process.returncode == 0 else {**result, "end": process.stderr[-2000:]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=70)
    parser.add_argument("--at-once", type=int, default=8, help="trainings that run at a time; they mostly sleep")
    parser.add_argument("places", nargs="*", help="the places; all by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.at_once) as pool:
        render_glyphs(f"{temporary}/glyphs", classes=12, images=8, size=32, held_out=6, pairs=40, seed=1)

        def run(name):
            result = late_run(f"{temporary}/glyphs", Path(temporary), name, options.seconds)
            print(f"{name}: status {result['status']}, {result['seconds']} s", file=sys.stderr, flush=True)
            return result

        runs = list(pool.map(run, options.places or EVERY_PLACE))
    failed = [one["place"] for one in runs if one["status"]]
    print(
        json.dumps(
            {"command": " ".join(sys.argv), "seconds": options.seconds, "failed": failed, "runs": runs}, indent=1
        )
    )


if __name__ == "__main__":
    main()
