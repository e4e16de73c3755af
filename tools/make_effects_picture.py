"""Draws what each argument of `set_augmentation` does to a photo, for docs/data.md.

    python tools/make_effects_picture.py photo.png docs/images/augmentation.png --crop 165 40 300 175

It needs matplotlib. The picture in docs/data.md was made of NASA's portrait of Eileen Collins, which is in the public
domain (the file `astronaut.png` of scikit-image).
"""

from __future__ import annotations

import argparse
import dataclasses

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from plsc.data.augmentation import EFFECTS, Augmentation, Effect, augment

COLUMNS = 6
SIZE = 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo")
    parser.add_argument("output")
    parser.add_argument("--crop", type=int, nargs=4, help="left, top, right and bottom of the part that is shown")
    options = parser.parse_args()
    photo = Image.open(options.photo).convert("RGB").crop(options.crop).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    plain = Augmentation(mirror=False)
    rows = {
        "the photo": plain,
        "mirror": Augmentation(),
        "rotate=15, translate=0.1": Augmentation(False, 15, 0.1),
        **{
            f"{name}=(1, {kind.strength:g})": dataclasses.replace(plain, **{name: Effect(1, kind.strength)})
            for name, kind in EFFECTS.items()
        },
    }
    figure, places = plt.subplots(len(rows), COLUMNS, figsize=(COLUMNS + 2.4, len(rows)), dpi=100)
    for number, (title, augmentation) in enumerate(rows.items()):
        for column, place in enumerate(places[number]):
            place.axis("off")
            if column == 0 or title != "the photo":
                place.imshow(augment(np.array(photo), augmentation, np.random.default_rng((1, number, column))))
        places[number, 0].text(-0.12, 0.5, title, transform=places[number, 0].transAxes, ha="right", va="center")
    figure.subplots_adjust(left=0.27, right=0.995, top=0.995, bottom=0.005, wspace=0.04, hspace=0.04)
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
