"""Kills a training on three ranks at random moments, most of them near saves.

Prints as JSON how many runs end to the bit as one that was left alone.

python tests/benchmarks/kill.py --rounds 50
"""

import argparse
import json
import sys
import tempfile

import checkout  # noqa: F401
from killed_runs import kill_rounds

from plsc.data.glyphs import render_glyphs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = {"command": " ".join(sys.argv), "rounds": 0, "kills": 0, "equal": 0, "with leftovers": 0, "failed": []}
    with tempfile.TemporaryDirectory() as temporary:
        render_glyphs(f"{temporary}/glyphs", classes=12, images=8, size=32, held_out=6, pairs=40, seed=1)
        for number, (killed, good) in enumerate(
            kill_rounds(f"{temporary}/glyphs", temporary, options.rounds, options.seed)
        ):
            result["rounds"] += 1
            result["kills"] += len(killed)
            result["with leftovers"] += sum(
                "writing" in text or "replaced" in text or "removed" in text for text in killed
            )
            result["equal"] += good
            print(
                f"round {number}: {'; '.join(killed) or 'not killed'}: {'equal' if good else 'NOT EQUAL'}",
                file=sys.stderr,
            )
            if not good:
                result["failed"].append(killed)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
