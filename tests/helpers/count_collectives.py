"""Counts the collectives of one step of the head.

`count_collectives.py OUTPUT_DIR` writes one JSON file for each rank.
"""

import collections
import json
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import distributed

from plsc import parallel
from plsc.heads import build_head
from plsc.optim import take_rows

COUNTED = ("all_gather", "all_reduce", "broadcast", "reduce", "scatter", "alltoall", "all_gather_object", "barrier")


def main(output):
    parallel.initialise()
    calls = collections.Counter()

    def counted(name, call):
        def counting(*arguments, **options):
            calls[name] += 1
            return call(*arguments, **options)

        return counting

    for name in COUNTED:
        setattr(distributed, name, counted(name, getattr(distributed, name)))
    results = {}
    for loss_type in ("dist_arcface", "dist_magface", "dist_adaface", "dist_softmax", "dist_curricularface"):
        for ratio in (1.0, 0.3):
            head = build_head(loss_type, 50, 8, sample_ratio=ratio)
            optimizer = paddle.optimizer.Momentum(0.1, parameters=head.parameters())
            updates = take_rows(optimizer, dict(head.named_parameters()))
            calls.clear()
            rows = 3 + parallel.rank()
            head(paddle.rand([rows, 8]), np.arange(rows))
            head.backward(updates["weight"], updates.get("bias"))
            results[f"{loss_type} {ratio}"] = dict(calls)
    # A batch larger than any before is gathered twice, once.
    head = build_head("dist_arcface", 50, 8)
    for name in ("first large batch", "second large batch"):
        calls.clear()
        head(paddle.rand([100, 8]), np.arange(100) % 50)
        results[name] = dict(calls)
    Path(output, f"{parallel.rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
