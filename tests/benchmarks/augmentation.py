"""Processor time of the random changes to an image, next to decoding it, as JSON.

    python tests/benchmarks/augmentation.py --images 500 --side 112

`off` is a loader without effects, which mirrors images alone; its baseline is the same loader with the two lines of the
mirror in place of `augment`.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import time
from collections.abc import Callable
from typing import Any

import checkout  # noqa: F401
import numpy as np
from PIL import Image

from plsc.data.augmentation import EFFECTS, Augmentation, Effect, augment
from plsc.data.transforms import decode, normalize


def photos(count: int, side: int) -> list[bytes]:
    """Returns smooth images with some noise, as JPEG files of about the size of photographs."""
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        corners = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        smooth = np.array(corners.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        image = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def mirrored(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Mirrors half of the images."""
    return image[:, ::-1] if augmentation.mirror and rng.random() < 0.5 else image


def microseconds(action: Callable[[], Any], count: int) -> float:
    """Returns the processor time of an image, in microseconds."""
    began = time.process_time()
    action()
    return (time.process_time() - began) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    files, shape = photos(options.images, options.side), (3, options.side, options.side)
    images = [decode(file, shape, "") for file in files]

    def load(change: Callable[..., np.ndarray], augmentation: Augmentation) -> Callable[[], Any]:
        def run() -> Any:
            made = [
                change(decode(file, shape, ""), augmentation, np.random.default_rng((0, 0, number)))
                for number, file in enumerate(files)
            ]
            return normalize(np.stack(made))

        return run

    def change_all(augmentation: Augmentation) -> Callable[[], Any]:
        rng = np.random.default_rng(0)
        return lambda: [augment(image, augmentation, rng) for image in images]

    plain = Augmentation(mirror=False)
    every = {name: Effect(1, kind.strength) for name, kind in EFFECTS.items()}
    cases = {
        "loader with mirrors alone": load(mirrored, Augmentation()),
        "loader with effects off": load(augment, Augmentation()),
        "loader with each effect at 0.2": load(
            augment,
            dataclasses.replace(plain, **{name: effect._replace(probability=0.2) for name, effect in every.items()}),
        ),
        "rotate and translate": change_all(Augmentation(False, 10, 0.1)),
        **{name: change_all(dataclasses.replace(plain, **{name: effect})) for name, effect in every.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):  # in turns, since the machine may be shared
        for name, action in cases.items():
            times[name].append(microseconds(action, options.images))
    best = {name: round(min(some), 2) for name, some in times.items()}
    off, base = best["loader with effects off"], best["loader with mirrors alone"]
    print(json.dumps({"microseconds per image": best, "off / baseline": round(off / base, 3)}, indent=2))


if __name__ == "__main__":
    main()
