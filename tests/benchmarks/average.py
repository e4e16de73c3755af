"""What an average of weights costs and what it is good for, as JSON: python tests/benchmarks/average.py

`milliseconds` is the CPU time in which one thread moves the averages of a network after a step, the best of several
rounds. `accuracy` is that of pairs of glyphs that training never saw, after each epoch of the same trainings: with the
weights as they are, and with their average.
"""

import argparse
import json
import os
import tempfile
import time

import checkout  # noqa: F401

NETWORKS = ("GlyphNet", "MobileFaceNet", "ResNet50", "ViT")
ROUNDS = 7


def milliseconds(name):
    """The time of an update of the average."""
    from plsc.engine.average import Average
    from plsc.models import build_model

    model = build_model(name, 512, (3, 112, 112))
    model.build((3, 112, 112))
    average = Average(model, 0.9999)
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        average.update()
        times.append(time.process_time() - begin)
    values = average.values().values()
    return {
        "network": name,
        "tensors": len(values),
        "bytes": sum(4 * value.size for value in values),
        "milliseconds": round(min(times) * 1e3, 2),
    }


def glyph_entry(data, epochs, seed):
    """Returns an entry that trains GlyphNet on glyphs, and tests pairs of characters that it does not train on.

    Args:
        data: Folder of the set, with `glyphs.bin`.
        epochs: Number of epochs.
        seed: The seed.
    """
    from plsc import Entry

    ins = Entry()
    ins.set_dataset_dir(data)
    ins.set_class_num("auto")
    ins.set_image_shape((3, 32, 32))
    ins.set_model_name("GlyphNet")
    ins.set_emb_size(128)
    ins.set_loss_type("dist_cosface")
    ins.set_scale(32.0)
    ins.set_train_batch_size(128)
    ins.set_lr(0.8)
    ins.set_augmentation(mirror=False)
    ins.set_val_targets("glyphs")
    ins.set_train_epochs(epochs)
    ins.set_model_save_dir(None)
    ins.set_seed(seed)
    return ins


def accuracies(data, decay, epochs, seed):
    """The accuracies of the pairs after each epoch."""
    from plsc import Callback

    class Tests(Callback):
        def __init__(self):
            self.found = []

        def on_test(self, run, results):
            self.found.append(round(results["glyphs"]["accuracy"], 4))

    tests = Tests()
    ins = glyph_entry(data, epochs, seed)
    ins.set_ema(decay)
    ins.add_callback(tests)
    ins.train()
    return tests.found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--decay", type=float, default=0.995)
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import paddle

    from plsc.data.glyphs import render_glyphs

    result = {"paddle": paddle.__version__, "costs": [milliseconds(name) for name in NETWORKS], "accuracy": []}
    with tempfile.TemporaryDirectory() as folder:
        render_glyphs(folder + "/glyphs", classes=options.classes)
        for seed in range(options.seeds):
            row = {
                f"decay {decay:g}": accuracies(folder + "/glyphs", decay, options.epochs, seed)
                for decay in (0, options.decay)
            }
            result["accuracy"].append({"seed": seed, **row})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
