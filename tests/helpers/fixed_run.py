"""Trainings whose numbers depend on their settings alone.

`fixed_run.py OUTPUT RUNS` trains one network after the other. RUNS is a JSON object of {name: {setter: values}}; each
run saves to `OUTPUT/<name>`, after calls of `ins.set_<setter>(*values)`.

It uses the public interface alone, so that it also runs on the plsc of earlier commits.
"""

import json
import sys

import numpy as np
import paddle

from plsc import BaseModel, Entry


class SmallNet(BaseModel):
    """A convolution, BatchNorm, dropout and a linear layer: what keeps state, and what draws random numbers."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 8, 3, stride=2, padding=1)
        self.norm = paddle.nn.BatchNorm2D(8)
        self.dropout = paddle.nn.Dropout(0.1)
        self.linear = paddle.nn.Linear(8 * 8 * 8, 16)

    def build_network(self, input, label, is_train):
        features = paddle.nn.functional.relu(self.norm(self.conv(input)))
        return self.linear(self.dropout(features.flatten(1)))


class Images(paddle.io.Dataset):
    """48 made images 3x16x16 of 37 classes."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=(48, 3, 16, 16)).astype("float32")
        self.labels = rng.integers(37, size=48)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


def train(output, settings):
    ins = Entry()
    ins.set_class_num(37)
    ins.set_image_shape((3, 16, 16))
    ins.set_emb_size(16)
    ins.set_train_batch_size(8)
    ins.set_train_epochs(2)
    ins.set_lr(4.0)
    ins.set_scale(8.0)
    ins.set_log_period(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(output)
    paddle.seed(0)
    ins.set_model(SmallNet())
    ins.train_reader = Images()
    for name, values in settings.items():
        getattr(ins, f"set_{name}")(*values)
    ins.train()


def main(output, runs):
    for name, settings in json.loads(runs).items():
        train(f"{output}/{name}", settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
