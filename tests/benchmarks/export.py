"""Exported networks against the networks that were trained, as JSON.

python tests/benchmarks/export.py parity [--side 112] [--emb 512] [--models ResNet50 ViT ...]
    the largest difference of an embedding's value, by the largest value, over batches of 1, 3 and 64, of every
    built-in model
python tests/benchmarks/export.py precision FOLDER [--epochs 4]
    the demo's network, trained on glyphs in FOLDER: accuracy, size and speed in every format and precision
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
import paddle
from norm_statistics import randomize_norms

from plsc import Entry, Predictor
from plsc.data.verification import load_verification
from plsc.inference.export import export
from plsc.metrics import verification_metrics
from plsc.models import MODEL_NAMES, build_model

KINDS = [("paddle", "float32"), ("onnx", "float32"), ("onnx", "float16"), ("onnx", "int8")]


def parity(name, shape, emb_dim):
    """Of one model whose statistics come from three batches of noise and whose norms' scales are random."""
    paddle.seed(0)
    model = build_model(name, emb_dim, shape)
    model.build(shape)
    randomize_norms(model, shape).eval()
    images = [np.random.default_rng(0).normal(size=(batch, *shape)).astype("float32") for batch in (1, 3, 64)]
    with paddle.no_grad():
        wanted = [model(paddle.to_tensor(batch)).numpy() for batch in images]
    row = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        for format in ("paddle", "onnx"):
            began = time.perf_counter()
            export(model, Path(folder) / format, shape, format)
            row[f"{format}_seconds"] = round(time.perf_counter() - began, 1)
            predictor = Predictor(Path(folder) / format)
            found = [predictor.embed_batch(batch) for batch in images]
            row[format] = max(float(np.abs(f - w).max() / np.abs(w).max()) for f, w in zip(found, wanted))
            row[f"{format}_bytes"] = size_of(Path(folder) / format)
    return row


def size_of(folder):
    """Bytes of an export's network."""
    meta = json.loads((folder / "inference_meta.json").read_text())
    return sum((folder / name).stat().st_size for name in meta["files"])


def precisions(folder, epochs):
    """Trains in `folder` unless it is done, exports every kind, and tests each on glyphs.bin."""
    import settings  # of the demo

    from plsc.data.glyphs import render_glyphs

    render_glyphs(str(folder / "glyphs"))
    ins = Entry()
    settings.apply(ins, str(folder / "glyphs"))
    ins.set_train_batch_size(64)  # in one process, as the demo has it on two ranks
    ins.set_train_epochs(epochs)
    ins.set_step_boundaries([225 * epochs, 325 * epochs])
    ins.set_model_save_dir(str(folder / "run"))
    if not (folder / "run" / str(epochs - 1)).exists():
        ins.train()
    else:
        ins.set_checkpoint_dir(str(folder / "run" / str(epochs - 1)))
    trained = ins.test()["glyphs"]
    yield {"kind": "the network", "accuracy": trained["accuracy"], "tar": trained["tar@1e-3"]}
    pairs = load_verification(str(folder / "glyphs" / "glyphs.bin"), settings.IMAGE_SHAPE)
    predictors, rows = {}, {}
    for format, precision in KINDS:
        place = folder / f"{format}-{precision}"
        ins.set_model_save_dir(str(place))
        ins.convert_for_prediction(format, precision, folder / "glyphs" / "label.txt")
        predictors[place] = Predictor(place)
        metrics = verification_metrics(predictors[place].embed(list(pairs.images)), pairs.issame)
        cosine = json.loads((place / "inference_meta.json").read_text())["cosine_with_network"]
        rows[place] = {"kind": place.name, "accuracy": metrics["accuracy"], "tar": metrics["tar@1e-3"]}
        rows[place].update(
            mean_cosine=cosine["mean"], lowest_cosine=cosine["lowest"], bytes=size_of(place), seconds=9e9
        )
    images = np.random.default_rng(0).uniform(-1, 1, (64, *settings.IMAGE_SHAPE)).astype("float32")
    for number in range(12):  # alternating; the first one is warm-up
        for place, predictor in predictors.items():
            began = time.perf_counter()
            for _ in range(5):
                predictor.embed_batch(images)
            if number:
                rows[place]["seconds"] = min(rows[place]["seconds"], time.perf_counter() - began)
    for row in rows.values():
        row["images_per_second"] = round(5 * 64 / row.pop("seconds"))
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("parity")
    one.add_argument("--side", type=int, default=112)
    one.add_argument("--emb", type=int, default=512)
    one.add_argument("--models", nargs="+", choices=MODEL_NAMES, default=MODEL_NAMES)
    one = kinds.add_parser("precision")
    one.add_argument("folder", type=Path)
    one.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    if options.kind == "parity":
        rows = (parity(name, (3, options.side, options.side), options.emb) for name in options.models)
    else:
        rows = precisions(options.folder, options.epochs)
    print(
        json.dumps(
            {"command": " ".join(sys.argv), "threads": int(os.environ["OMP_NUM_THREADS"]), "paddle": paddle.__version__}
        )
    )
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
