"""The reader that demo/custom_reader.py trains on."""

import os
import random

import numpy as np
from PIL import Image


def get_train_image_list(data_dir):
    """Returns the lines of `label.txt` as [(path, label), ...]."""
    with open(os.path.join(data_dir, "label.txt"), encoding="utf-8") as f:
        lines = [line.rsplit(maxsplit=1) for line in f if line.strip()]
    return [(path, int(label)) for path, label in lines]


def arc_train(data_dir):
    """Returns a reader of (image float32 [C, H, W], label). Images are mirrored at random."""
    train_image_list = get_train_image_list(data_dir)

    def reader():
        for j in range(len(train_image_list)):
            path, label = train_image_list[j]
            path = os.path.join(data_dir, path)
            img = Image.open(path)
            if random.randint(0, 1) == 1:
                img = img.transpose(Image.FLIP_LEFT_RIGHT)
            if img.mode != "RGB":
                img = img.convert("RGB")
            img = np.array(img).astype("float32").transpose((2, 0, 1))
            yield img, label

    return reader
