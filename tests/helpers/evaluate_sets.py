"""Tests an untrained network on sets of every kind; each rank writes its results.

Usage: evaluate_sets.py GLYPHS OUTPUT
"""

import json
import sys
from pathlib import Path

import paddle

from plsc import parallel
from plsc.config import Config
from plsc.evaluation.build import build_evaluator
from plsc.inference.networks import TrainedNetwork


def main(glyphs, output):
    parallel.initialise()
    paddle.seed(1)
    net = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 32 * 32, 16))
    config = Config(
        dataset_dir=glyphs,
        val_targets="glyphs,images",
        identification=(f"{glyphs}/images", f"{glyphs}/label.txt"),
        image_shape=(3, 32, 32),
        emb_dim=16,
        test_batch_size=9,
        model_save_dir="",
    )
    results = build_evaluator(config)(TrainedNetwork(net, config))
    Path(output).mkdir(parents=True, exist_ok=True)
    (Path(output) / f"rank_{parallel.rank()}.json").write_text(json.dumps(results))


main(*sys.argv[1:])
