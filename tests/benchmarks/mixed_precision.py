"""Trains on glyphs in float32 and in float16 simulated on a CPU.

Prints accuracy, lost gradients, recovery, and what scaling costs, as JSON.

python tests/benchmarks/mixed_precision.py --epochs 8
"""

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time

import checkout  # noqa: F401
import numpy as np
import settings as demo

from plsc import Entry, amp
from plsc.config import MixedPrecision
from plsc.data.glyphs import render_glyphs
from plsc.engine.trainer import Trainer
from plsc.errors import TrainingError

CLASSES = 300


def trainer_of(data, epochs, chosen, resources):
    """A trainer of the demo's network on fewer classes."""
    import paddle

    paddle.seed(0)
    ins = Entry()
    demo.apply(ins, str(data))
    ins.set_class_num(CLASSES)
    ins.set_train_epochs(epochs)
    steps = CLASSES * 16 // 64 * epochs
    ins.set_train_batch_size(64)
    ins.set_lr(0.4)
    ins.set_step_boundaries([steps * 2 // 3, steps * 8 // 9])
    ins.set_with_test(True)
    ins.set_model_save_dir(None)
    ins._config.mixed_precision = chosen
    return Trainer(ins._prepare(), resources)


def lost_gradients(trainer, scale):
    """Share of the backbone's gradient elements that float16 turns into 0, of those that are not 0 in float32."""
    import paddle

    images, labels = next(trainer.loader.epoch(0))
    trained = [p for p in trainer.backbone.parameters() if not p.stop_gradient]
    gradients = {}
    for name, chosen, factor in (
        ("float32", MixedPrecision(), 1.0),
        ("float16", MixedPrecision(True, simulate=True), scale),
    ):
        paddle.seed(1)
        with amp.autocast(chosen):
            embedding = trainer.model(paddle.to_tensor(images), paddle.to_tensor(labels))
        output = trainer.head(embedding.detach(), labels)
        embedding.backward(output.embedding_grad * factor)
        gradients[name] = np.concatenate([p.grad.numpy().ravel() for p in trained])
        trainer.backbone.clear_gradients()
    present = gradients["float32"] != 0
    return float((gradients["float16"][present] == 0).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", help="just the run of this name")
    options = parser.parse_args()
    logging.getLogger("plsc").addHandler(logging.NullHandler())
    result = {"command": " ".join(sys.argv), "classes": CLASSES, "epochs": options.epochs, "runs": {}}
    simulated = {"use_fp16": True, "simulate": True}
    runs = {
        "float32": MixedPrecision(),
        "float32 with loss scaling": MixedPrecision(True, 1024.0),
        "float16, dynamic from 1": MixedPrecision(**simulated, incr_every_n_steps=100),
        "float16, fixed at 1": MixedPrecision(**simulated, use_dynamic_loss_scaling=False),
        "float16, dynamic from 2^40": MixedPrecision(**simulated, init_loss_scaling=2.0**40, incr_every_n_steps=200),
        "bfloat16": MixedPrecision(**simulated, dtype="bfloat16"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = f"{temporary}/glyphs"
        render_glyphs(folder, classes=CLASSES, images=16, size=32, held_out=100, pairs=3000, seed=1)
        for name, chosen in runs.items():
            if options.only and name != options.only:
                continue
            began = time.perf_counter()
            try:
                with contextlib.ExitStack() as resources:
                    trainer = trainer_of(folder, options.epochs, chosen, resources)
                    trained = trainer.run()
            except TrainingError as problem:
                result["runs"][name] = {"error": str(problem)}
                continue
            entry = {"loss": trained["loss"], **{k: trained["test"]["glyphs"][k] for k in ("accuracy", "tar@1e-3")}}
            entry.update(skipped_steps=trained["skipped_steps"], steps=trained["steps"], scale=trainer.scaler.scale)
            entry.update(images_per_second=trained["images_per_second"], seconds=time.perf_counter() - began)
            result["runs"][name] = entry
            print(f"{name}: {json.dumps(entry)}", file=sys.stderr, flush=True)
            if name == "float32":
                result["gradients_lost"] = {f"scale {s:g}": lost_gradients(trainer, s) for s in (1.0, 2.0**10, 2.0**16)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
