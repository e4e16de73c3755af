"""Makes the networks that come with plsc, with their cards and sample images: `python tools/make_zoo.py`.

The demo trains the network on two CPU ranks, in about five minutes; then its weights are rounded to float16, and what
is left is tested. On one machine the same commit gives the same bytes. Needs pip install '.[cpu,demo]'.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

import plsc  # noqa: E402, I001 - before NumPy and Paddle, for its settings of the math library

import numpy as np  # noqa: E402
import settings  # noqa: E402

from plsc.checkpoint import BACKBONE, META, OPTIMIZER, Checkpoint, HeadFiles, head_file, open_checkpoint  # noqa: E402
from plsc.checkpoint.folder import write_meta  # noqa: E402
from plsc.checkpoint.tensor_file import TensorFile, write_tensors  # noqa: E402
from plsc.data.glyphs import choose_characters, class_name, render_character, render_glyphs  # noqa: E402
from plsc.machine.files import sha256_of  # noqa: E402
from plsc.machine.processor import describe  # noqa: E402
from plsc.zoo import CARD, SAMPLES  # noqa: E402

CLASSES, HELD_OUT, SIZE, SEED = 1000, 250, 32, 0  # of the demo
OTHER_SEED = 1  # of images that are neither in the training nor in its tests
KEPT = ("num_classes", "emb_dim", "loss_type", "image_shape", "pixel_rule", "image_ground", "mirror", "model", "step")
# What commands read of any checkpoint: one rank wrote it, without the state of an optimizer.
ADDED = {"sharded": True, "ranks": 1, "dtype": "float32", "by_rows": ["weight"], "accumulators": {}}
SHOWN, IMAGES = 10, 4  # sample characters of each kind, and images of each
ABOUT = "tells characters apart, also those it was not trained on (images of one character, 32x32)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "work" / "zoo", help="folder of data and run")
    parser.add_argument("--output", type=Path, default=ROOT / "plsc" / "zoo" / "glyphs", help="folder to replace")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data, run = options.work / "glyphs", options.work / "run"
    render_glyphs(str(data), CLASSES, held_out=HELD_OUT, size=SIZE, seed=SEED)
    trained = run / str(settings.EPOCHS - 1)
    if not (trained / META).exists():
        words = ["run", "--ranks", "2", str(ROOT / "demo" / "train.py"), str(data), str(run)]
        subprocess.run([sys.executable, "-m", "plsc", *words], check=True, cwd=ROOT)
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    characters = choose_characters(CLASSES, HELD_OUT, SEED)
    write_checkpoint(open_checkpoint(trained), options.output, list(map(class_name, characters[:CLASSES])))
    write_zip(options.output / SAMPLES, samples(characters))
    card = json.dumps(card_of(options.output, data, characters), indent=1, ensure_ascii=False)
    (options.output / CARD).write_text(card + "\n", encoding="utf-8")
    print(card)


def write_checkpoint(source: Checkpoint, folder: Path, class_names: list[str]) -> None:
    """Writes a checkpoint of one rank in float16, without what only a training that resumes would need."""
    with TensorFile(source.folder / BACKBONE, source.files[BACKBONE]) as file:
        backbone = {name: rounded(file.read(name)) for name in file}
    with HeadFiles(source) as files:
        rows = [part.copy() for part in files.rows("weight", 0, source.meta["num_classes"])]
    contents = {BACKBONE: backbone, head_file(0): {"weight": rounded(np.concatenate(rows))}, OPTIMIZER: {}}
    sums = {name: write_tensors(folder / name, tensors) for name, tensors in contents.items()}
    meta = {**{name: source.meta[name] for name in KEPT}, **ADDED}
    write_meta(folder, {**meta, "class_names": class_names, "head_rows": [len(class_names)], "written": 0}, sums)


def rounded(array: np.ndarray) -> np.ndarray:
    """Returns an array in float16."""
    small = array.astype("float16")
    assert np.isfinite(small).all()
    return small


def samples(characters: list[str]) -> Iterable[tuple[str, bytes]]:
    """Yields names and JPEG images: characters of the training, others, and one more image of each of the others."""
    for kind, first in (("trained", 0), ("unseen", CLASSES)):
        for label in range(first, first + SHOWN):
            name = class_name(characters[label])[2:]  # archives and terminals of any kind hold it
            images = render_character(characters[label], label, IMAGES + 1, SIZE, OTHER_SEED)
            for number, image in enumerate(images[:IMAGES]):
                yield f"{kind}/{name}/{number}.jpg", image
            if kind == "unseen":
                yield f"queries/{name}.jpg", images[IMAGES]


def write_zip(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes an archive whose bytes depend on the files alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)


def card_of(folder: Path, data: Path, characters: list[str]) -> dict[str, Any]:
    """Returns the card of the network in `folder`, after testing it."""
    ins = plsc.Entry()
    settings.apply(ins, str(data))
    ins.set_model_save_dir("")
    ins.set_checkpoint_dir(str(folder))
    found = ins.test()
    pairs, rates = found["glyphs"], found["held_out"]["at_far"]
    return {
        "about": ABOUT,
        "use": "trying predict, index, search, classify, export and fine-tuning before a training of your own; a start "
        "for small networks that read signs in print",
        "not for": "photographs, handwriting, words or lines of text, faces; decisions about people",
        "network": f"GlyphNet, images [3, {SIZE}, {SIZE}], embeddings of {settings.EMB_DIM} numbers; weights in "
        "float16, computed in float32; with the centres and names of its classes",
        "data": f"{CLASSES:,} letters, digits and symbols of many scripts, 24 images each, drawn in the twelve styles "
        "of DejaVu Sans, Sans Mono and Serif by python -m plsc.data.glyphs; no photographs, no personal data",
        "licence": "weights, card and sample images: Apache-2.0, as plsc. The DejaVu fonts, which are not included, "
        "come with matplotlib under the licences of Bitstream Vera and Arev; these allow what is drawn with them",
        "training": f"demo/train.py: ArcFace, {settings.EPOCHS} epochs on two CPU ranks, from nothing",
        "figures": {
            "unseen characters": f"{HELD_OUT} characters that were not trained on, all pairs of 4,000 images: "
            + ", ".join(f"TAR {100 * rates[far]['tar']:.1f} % at FAR {far}" for far in ("1e-2", "1e-3"))
            + f" (95 % bounds {100 * rates['1e-3']['low']:.1f} to {100 * rates['1e-3']['high']:.1f} %)",
            "pairs": f"accuracy {100 * pairs['accuracy']:.2f} % on 6,000 pairs of these",
            "trained characters": f"classify names {100 * share_named(folder, characters):.1f} % of 2,000 new images "
            "of the trained characters, 2 each",
            "measured": f"the files below, with plsc {plsc.__version__}, Paddle {version_of('paddle')}, "
            f"{describe()}; fonts alike to those of the training, so expect less in other fonts",
        },
        "threshold": f"cosine {rates['1e-3']['threshold']:.3f} for FAR 1e-3 on the unseen characters",
        "size": {path.name: f"{path.stat().st_size:,} bytes" for path in sorted(folder.iterdir())},
        "sha256": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        "made by": "python tools/make_zoo.py",
    }


def share_named(folder: Path, characters: list[str]) -> float:
    """Returns the share of new images of the trained characters whose class comes first."""
    every = [render_character(characters[label], label, 2, SIZE, OTHER_SEED) for label in range(CLASSES)]
    answers = plsc.Predictor(folder).classify([image for images in every for image in images], top=1)
    return float(np.mean([answer[0].number == number // 2 for number, answer in enumerate(answers)]))


def version_of(module: str) -> str:
    """Returns the version of a module that is loaded."""
    return sys.modules[module].__version__


if __name__ == "__main__":
    main()
