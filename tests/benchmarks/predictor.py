"""Predictor's speed against bare loops of the same libraries on ready arrays, as JSON.

python tests/benchmarks/predictor.py [--model MobileFaceNet] [--side 112] [--file-side 112] [--images 512] \\
        [--batch 64] [--rounds 5]

Rounds alternate between all ways; the best of each counts. `embed` reads JPEG files, decodes and embeds them.
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

from plsc import Predictor
from plsc.data.glyphs import render_glyphs
from plsc.data.transforms import decode, normalize


def bare_paddle(folder):
    """Paddle's inference library as its manual shows it."""
    from paddle import inference

    config = inference.Config(str(folder / "inference.json"), str(folder / "inference.pdiparams"))
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    entrance = predictor.get_input_handle(predictor.get_input_names()[0])
    exit = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images):
        entrance.copy_from_cpu(images)
        predictor.run()
        return exit.copy_to_cpu()

    return run


def bare_onnx(folder):
    """onnxruntime with as many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(str(folder / "inference.onnx"), options, ["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="MobileFaceNet")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--file-side", type=int, default=112, help="of the JPEG files")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import paddle

    from plsc.inference.export import export
    from plsc.models import build_model

    shape = (3, options.side, options.side)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        render_glyphs(
            str(folder / "data"), classes=-(-options.images // 16), images=16, size=options.file_side, held_out=2
        )
        paths = sorted((folder / "data" / "images").rglob("*.jpg"))[: options.images]
        model = build_model(options.model, 512, shape)
        model.build(shape)
        for format in ("paddle", "onnx"):
            export(model, folder / format, shape, format)

        def pixels(chosen):
            return normalize(np.stack([decode(path.read_bytes(), shape, str(path)) for path in chosen]))

        batches = [paths[first : first + options.batch] for first in range(0, len(paths), options.batch)]
        arrays = [pixels(batch) for batch in batches]
        ways = {"decode": lambda: [pixels(batch) for batch in batches]}
        for format, bare in (("paddle", bare_paddle), ("onnx", bare_onnx)):
            run = bare(folder / format)
            predictors = {n: Predictor(folder / format, options.batch, num_workers=n) for n in (0, 2)}
            ways[f"{format}: bare"] = lambda run=run: [run(batch) for batch in arrays]
            ways[f"{format}: embed_batch"] = lambda p=predictors[2]: [p.embed_batch(batch) for batch in arrays]
            ways[f"{format}: embed, decoding in between"] = lambda p=predictors[0]: p.embed(paths)
            ways[f"{format}: embed, decoding in threads"] = lambda p=predictors[2]: p.embed(paths)
        best = dict.fromkeys(ways, float("inf"))
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if number:  # the first one is warm-up
                    best[name] = min(best[name], time.perf_counter() - began)
    result = {
        "command": " ".join(sys.argv),
        **vars(options),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "paddle": paddle.__version__,
        "images_per_second": {name: round(len(paths) / seconds, 1) for name, seconds in best.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
