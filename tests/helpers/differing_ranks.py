"""Trains on two ranks that differ in one thing after the other.

`differing_ranks.py DATA OUTPUT` writes `<OUTPUT>/<rank>.json`: {case: the error, or ""}.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
from train_glyphs import TinyNet, small_entry

import plsc.engine.agreement
from plsc import Callback, Entry, optim, parallel
from plsc.errors import PlscError
from plsc.heads.margins import MagFace

RANK = parallel.rank()


class Noise(paddle.io.Dataset):
    """A data set of noise images."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Any:
        return np.full((3, 32, 32), i / self._length, "float32"), i % 12


def other_labels(change: Callable[[list[str]], list[str]]) -> Callable[[Entry, Path], None]:
    """Returns a change to an entry that gives it a copy of its data with other lines in label.txt."""

    def apply(ins: Entry, folder: Path) -> None:
        copy = shutil.copytree(ins._config.dataset_dir, folder / "copy")
        lines = (copy / "label.txt").read_text().splitlines()
        (copy / "label.txt").write_text("\n".join(change(lines)) + "\n")
        ins.set_dataset_dir(str(copy))

    return apply


def swap_labels(lines: list[str]) -> list[str]:
    first, *others, last = lines
    return [first.rpartition(" ")[0] + " " + last.rpartition(" ")[2], *others, last]


def other_script(ins: Entry, folder: Path) -> None:
    sys.modules["__main__"].__file__ = plsc.engine.agreement.__file__


def other_version(ins: Entry, folder: Path) -> None:
    plsc.engine.agreement.__version__ = "0.0.1"


def set_strategy(ins: Entry, size: int) -> None:
    strategy = paddle.distributed.fleet.DistributedStrategy()
    strategy.fuse_grad_size_in_MB = size
    ins.set_strategy(strategy)


def sgd_of(rate: float) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.SGD(rate, parameters=optim.deferred())


class OtherRate(Callback):
    """Changes the learning rate in the middle of training."""

    def on_step_end(self, run: Any) -> None:
        if run.progress.step == 2:
            run.optimizer.set_lr(0.5)


def momentum_of(momentum: float) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(0.1, momentum, parameters=optim.deferred())


def set_attr(ins: Entry, rate: float, decay: float) -> None:
    ins.set_distfc_attr(paddle.ParamAttr(learning_rate=rate, regularizer=paddle.regularizer.L2Decay(decay)))


def other_places(ins: Entry, folder: Path) -> None:
    other_labels(lambda lines: lines)(ins, folder)
    ins.set_model_save_dir(str(folder / "elsewhere"))
    ins.set_num_workers(1)
    ins.set_log_period(7)


# What rank 1 has that rank 0 has not, and words of the error; none if the two may differ in it.
CASES: dict[str, tuple[Callable[[Entry, Path], None], tuple[str, ...]]] = {
    "order of images": (other_labels(lambda lines: lines[::-1]), ("rank 1", "the labels in label.txt, or their order")),
    "labels": (other_labels(swap_labels), ("rank 1", "the labels in label.txt")),
    "number of images": (other_labels(lambda lines: lines[:-1]), ("number of images", "(96 on rank 0, 95 on rank 1)")),
    "class count": (lambda ins, folder: ins.set_class_num(13), ("num_classes (12 on rank 0, 13 on rank 1)",)),
    "rate": (lambda ins, folder: ins.set_lr(0.5), ("the setting lr (0.1 on rank 0, 0.5 on rank 1)",)),
    "batch": (lambda ins, folder: ins.set_train_batch_size(8), ("train_batch_size (16 on rank 0, 8 on rank 1)",)),
    "precision": (lambda ins, folder: ins.set_mixed_precision(True), ("mixed_precision",)),
    "seed": (lambda ins, folder: ins.set_seed(3), ("the setting seed (0 on rank 0, 3 on rank 1)",)),
    "model": (lambda ins, folder: ins.set_model(paddle.nn.Linear(2, 2)), ("the setting model ('TinyNet' on rank 0",)),
    "margin": (lambda ins, folder: ins.set_loss_type(MagFace(l_m=0.3)), ("rank 1", "MagFace.", "0.3 on rank 1")),
    "optimizer": (lambda ins, folder: ins.set_optimizer(sgd_of(0.2)), ("the learning rate (0.1 on rank 0, 0.2 on",)),
    "layers": (lambda ins, folder: setattr(ins._config.model, "more", paddle.nn.Linear(2, 2)), ("the parameters and",)),
    "strategy": (lambda ins, folder: set_strategy(ins, 3), ("rank 1", "the strategy", "same model and set_strategy")),
    "length": (lambda ins, folder: setattr(ins, "train_reader", Noise(40)), ("train_reader (48 on rank 0, 40 on",)),
    "script": (other_script, ("the script", "same script")),
    "version": (other_version, ("plsc (", "0.0.1 on rank 1")),
    "save folder": (
        lambda ins, folder: ins.set_model_save_dir(None),
        ("whether model_save_dir is set (yes on rank 0, no on rank 1)",),
    ),
    "patience": (lambda ins, folder: ins.set_rank_timeout(7), ("rank_timeout (30.0 on rank 0, 7.0 on rank 1)",)),
    "places": (other_places, ()),
    "head rate": (lambda ins, folder: set_attr(ins, 10.0, 0.1), ("param_attr.learning_rate (1.0 on rank 0, 10.0 on",)),
    "head decay": (lambda ins, folder: set_attr(ins, 1.0, 0.2), ("param_attr.regularizer", "0.1 on rank 0, 0.2 on")),
    "callback": (
        lambda ins, folder: ins.add_callback(OtherRate()),
        ("step 3: the backbone of rank 1", "its conv.weight differs", "set_lr"),
    ),
    "momentum": (
        lambda ins, folder: ins.set_optimizer(momentum_of(0.5)),
        ("step 3: the backbone of rank 1 is no longer that of rank 0", "the same optimizer"),
    ),
}


def main() -> None:
    data, output = sys.argv[1], Path(sys.argv[2])
    found = {}
    version, script = plsc.engine.agreement.__version__, sys.modules["__main__"].__file__
    for name, (change, _) in CASES.items():
        folder = output / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        ins = small_entry(data, str(folder / "output"))
        ins.set_model(TinyNet())
        ins.set_with_test(False)
        if name == "length":
            ins.train_reader = Noise(48)
        if name == "optimizer":
            ins.set_optimizer(sgd_of(0.1))
        if name == "margin":
            ins.set_loss_type(MagFace(l_m=0.4))
        if name == "strategy":
            set_strategy(ins, 4)
        if name in ("momentum", "callback"):
            ins.set_optimizer(momentum_of(0.9))
        if name.startswith("head"):
            set_attr(ins, 1.0, 0.1)
        if RANK == 1:
            change(ins, folder)
        try:
            ins.train()
            found[name] = ""
        except PlscError as problem:
            found[name] = str(problem)
        plsc.engine.agreement.__version__, sys.modules["__main__"].__file__ = version, script
    (output / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
