"""Trains a small network on a folder of glyphs, as a user's script would, and can go wrong on request.

    train_glyphs.py DATA OUTPUT train_epochs=1 loss_type=softmax --kill-rank=1 --kill-step=4

Each `name=value` calls `ins.set_<name>(value)`; values are JSON, and a list or an object holds the arguments of a
setter that takes several. `--help` lists the options. Each rank writes what `train()` returned to
`<OUTPUT>/result_<rank>.json`.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import paddle

from plsc import Entry, parallel
from plsc.models.base_model import BaseModel

CLASSES = 12
TEXT_SETTERS = ("loss_type", "checkpoint_dir", "head_init")  # their values are no JSON
MANY_ARGUMENTS = (
    "schedule",
    "dataset_dir",
    "mixed_precision", "augmentation", "data_format", "data_cache", "sampler", "hdfs_info", "hdfs_upload", "teacher",
)  # fmt: skip


class TinyNet(BaseModel):
    """A convolution and a linear layer. A training step can be slow, wait, be killed, or have infinite gradients."""

    def __init__(self, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = paddle.nn.Dropout(dropout)
        self.kill_at: Optional[int] = None
        self.hold_at: Optional[int] = None
        self.release: Optional[Path] = None
        self.pause = 0.0
        self.conv = paddle.nn.Conv2D(3, 8, 3, stride=4, padding=1, bias_attr=False)
        self.norm = paddle.nn.BatchNorm2D(8) if norm else paddle.nn.Identity()
        self.fc = paddle.nn.Linear(8 * 8 * 8, 16)
        self.steps = 0
        self.infinite_from: Optional[int] = None

    def build_network(self, input, label, is_train):
        embedding = self.fc(self.dropout(paddle.nn.functional.relu(self.norm(self.conv(input))).flatten(1)))
        if is_train and not embedding.stop_gradient:
            self.steps += 1
            time.sleep(self.pause)
            if self.steps == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.steps == self.hold_at and self.release is not None:
                hold(self.steps, self.release)
            if self.infinite_from is not None and self.steps > self.infinite_from:
                embedding = embedding * 1.0  # Paddle does not call a hook on the result of a rounding.
                embedding.register_hook(lambda gradient: gradient * float("inf"))
        return embedding


def hold(step: int, release: Path) -> None:
    """Waits until the file `release` exists; prints when this begins, and when SIGTERM arrives."""
    previous = signal.getsignal(signal.SIGTERM)

    def say(text):
        # The launcher may have been killed. A signal may interrupt a `print`, inside which another one is an error.
        with contextlib.suppress(BrokenPipeError):
            os.write(2, f"{text}\n".encode())

    def handle(number, frame):
        say("received SIGTERM")
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGTERM, handle)
    say(f"holding step {step}")
    while not release.exists():
        time.sleep(0.01)


def make_reader(
    rank: int, sizes: list[int], fails: bool = False, bad_from: Optional[int] = None, bad_value: float = np.nan
) -> Callable[[], Iterator]:
    """Returns a reader of random images in batches of these sizes.

    Args:
        rank: Seeds the images and labels.
        sizes: Number of images of each batch.
        fails: Whether the second batch raises an error.
        bad_from: First batch, from 0, whose images hold `bad_value`.
        bad_value: A pixel of every other image of the bad batches.
    """

    if fails:
        atexit.register(time.sleep, 0.5)  # the process of this rank takes longer to end than the others

    def reader():
        rng = np.random.default_rng(rank)
        for number, size in enumerate(sizes):
            if fails and number == 1:
                raise RuntimeError("the reader broke here")
            images = rng.normal(size=(size, 3, 32, 32)).astype("float32")
            if bad_from is not None and number >= bad_from:
                images[::2, :, 5, 5] = bad_value
            yield [(image, int(rng.integers(CLASSES))) for image in images]

    return reader


def make_global_random_reader(rank: int) -> Callable[[], Iterator]:
    """Returns a reader whose batches depend on the state of Python's and NumPy's global generators."""

    def reader():
        order = list(range(5 + rank))
        random.shuffle(order)
        for number in order:
            images = np.random.normal(number, size=(8, 3, 32, 32)).astype("float32")
            yield [(image, random.randrange(CLASSES)) for image in images]

    return reader


def small_entry(data: str, output: str) -> Entry:
    """Returns an entry for the 12 classes of the `glyphs` fixture."""
    ins = Entry()
    ins.set_dataset_dir(data)
    ins.set_model_save_dir(output)
    ins.set_class_num(CLASSES)
    ins.set_image_shape((3, 32, 32))
    ins.set_train_batch_size(16)
    ins.set_emb_size(16)
    ins.set_train_epochs(2)
    ins.set_log_period(2)
    ins.set_val_targets("glyphs")
    ins.set_augmentation(mirror=False)
    return ins


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of this script's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--no-norm", action="store_true", help="leave out BatchNorm, which sees one rank's batch only")
    parser.add_argument("--dropout", type=float, default=0.0, help="share of the features to drop")
    parser.add_argument("--optimizer", help="class of paddle.optimizer, with a learning rate of 0.01")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that are added to each step")
    parser.add_argument("--clock", type=float, default=0.0, help="seconds by which the clock is wrong")
    parser.add_argument("--disks", type=json.loads, help="for each rank the n of <output>/disk_<n>, where it saves")

    readers = parser.add_argument_group("readers that replace the folder")
    readers.add_argument("--global-random-reader", action="store_true", help="draw from the global generators")
    readers.add_argument("--uneven", action="store_true", help="2 + r batches on rank r, the last of them smaller")
    readers.add_argument("--fail-rank", type=int, help="rank whose reader fails at its second batch; implies --uneven")
    readers.add_argument("--batches", type=int, help="number of batches of 8 images on every rank")
    readers.add_argument("--poison", default="nan", help="what a bad batch holds: a number, or 'gradient'")
    readers.add_argument("--poison-rank", type=int, help="rank that gets bad batches")
    readers.add_argument("--poison-from", type=int, help="its first bad batch, from 0")

    stops = parser.add_argument_group("what happens in the forward pass of a step")
    stops.add_argument("--kill-rank", type=int, help="rank that kills itself, unless its run is resumed")
    stops.add_argument("--kill-step", type=int, help="its step, from 1")
    stops.add_argument("--kill-after-resume", action="store_true", help="also if the run is resumed, but not restarted")
    stops.add_argument("--hold-step", type=int, help="step, from 1, in which all ranks wait for <output>.release")
    return parser


def apply_settings(ins: Entry, settings: list[str]) -> None:
    """Calls `ins.set_<name>(value)` for each `name=value`."""
    for setting in settings:
        name, _, text = setting.partition("=")
        value = text if name in TEXT_SETTERS else json.loads(text)
        setter = getattr(ins, f"set_{name}")
        if name not in MANY_ARGUMENTS:
            setter(value)
        elif isinstance(value, dict):
            setter(**value)
        else:
            setter(*value)


def is_first_start(options: argparse.Namespace) -> bool:
    """Returns whether a rank shall be killed in this process, and not in the one that resumes its run."""
    if options.kill_after_resume:
        return "PLSC_RESTART" not in os.environ
    return not any(Path(options.output).glob("**/meta.json"))


def choose_reader(options: argparse.Namespace, rank: int, model: TinyNet) -> Optional[Callable[[], Iterator]]:
    """Returns the reader the options ask for, or None for the images of the folder."""
    if options.global_random_reader:
        return make_global_random_reader(rank)
    if options.uneven or options.fail_rank is not None:
        return make_reader(rank, [8] * (1 + rank) + [3], fails=rank == options.fail_rank)
    if options.batches is None:
        return None
    bad_from = options.poison_from if rank == options.poison_rank else None
    if options.poison == "gradient":
        model.infinite_from = bad_from
        return make_reader(rank, [8] * options.batches)
    return make_reader(rank, [8] * options.batches, bad_from=bad_from, bad_value=float(options.poison))


def main() -> None:
    options = make_parser().parse_intermixed_args()
    rank, clock = parallel.rank(), time.time
    time.time = lambda: clock() + options.clock
    ins = small_entry(options.data, options.output)
    if options.disks:
        ins.set_model_save_dir(f"{options.output}/disk_{options.disks[rank]}")
    paddle.seed(0)
    model = TinyNet(not options.no_norm, options.dropout)
    ins.set_model(model)
    model.pause = options.pause
    if rank == options.kill_rank and is_first_start(options):
        model.kill_at = options.kill_step
    model.hold_at, model.release = options.hold_step, Path(f"{options.output}.release")
    if options.optimizer:
        ins.set_optimizer(lambda parameters: getattr(paddle.optimizer, options.optimizer)(0.01, parameters=parameters))
    reader = choose_reader(options, rank, model)
    if reader is not None:
        ins.train_reader = reader
    apply_settings(ins, options.settings)
    result = ins.train()
    Path(options.output).mkdir(exist_ok=True)
    Path(options.output, f"result_{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
