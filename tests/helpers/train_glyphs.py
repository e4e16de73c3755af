"""A user's script: trains on a folder. `train_glyphs.py DATA OUTPUT [name=value ...]` calls `ins.set_<name>(value)`.

Writes `<OUTPUT>/result_<rank>.json`. `fail_rank=R` makes rank R fail at its second batch; `uneven=1` uses a reader of
the user's own that gives rank r 2 + r batches, the last of them smaller; `nan=RANK,FIRST,LAST` uses one that gives
every rank LAST + 1 batches, and rank RANK images that are not a number in those from FIRST (from 0) on, or hold
`poison=VALUE` instead; with `poison=gradient` its images are good and the gradient of its embeddings is infinite.
`norm=0` leaves BatchNorm out, which sees one rank's batch only. `dropout=SHARE` adds dropout; `optimizer=NAME` is
Paddle's of that name; `reader=random` uses a reader that draws from Python's and NumPy's own generators.
`kill=RANK,STEP[,SIGNAL]` makes rank RANK (or every one, -1) send itself a signal, KILL by default, in the forward pass
of its step STEP, from 1, if nothing was resumed (with `fresh=1`: unless the launcher started it again); `pause=SECONDS`
makes each step that much longer. `disks=0,0,1` saves to `<OUTPUT>/disk_<n>`, n for each rank, as machines do whose
disks are their own.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import paddle

from plsc import Entry, parallel
from plsc.models.base_model import BaseModel


class TinyNet(BaseModel):
    def __init__(self, norm=True, dropout=0.0):
        super().__init__()
        self.dropout = paddle.nn.Dropout(dropout)
        self.kill_at, self.kill_by, self.pause = None, signal.SIGKILL, 0.0
        self.conv = paddle.nn.Conv2D(3, 8, 3, stride=4, padding=1, bias_attr=False)
        self.norm = paddle.nn.BatchNorm2D(8) if norm else paddle.nn.Identity()
        self.fc = paddle.nn.Linear(8 * 8 * 8, 16)
        self.steps, self.infinite_from = 0, None

    def build_network(self, input, label, is_train):
        embedding = self.fc(self.dropout(paddle.nn.functional.relu(self.norm(self.conv(input))).flatten(1)))
        if is_train and not embedding.stop_gradient:
            self.steps += 1
            time.sleep(self.pause)
            if self.steps == self.kill_at:
                os.kill(os.getpid(), self.kill_by)
            if self.infinite_from is not None and self.steps > self.infinite_from:
                embedding = embedding * 1.0  # a hook on what a rounding made is not called
                embedding.register_hook(lambda gradient: gradient * float("inf"))
        return embedding


def reader_of(rank, classes, batches, smaller_last=True, fail=False, bad_from=None, poison=np.nan):
    def reader():
        rng = np.random.default_rng(rank)
        for number in range(batches):
            if fail and number == 1:
                raise RuntimeError("the reader broke here")
            size = 3 if smaller_last and number == batches - 1 else 8
            images = rng.normal(size=(size, 3, 32, 32)).astype("float32")
            if bad_from is not None and number >= bad_from:
                images[::2, :, 5, 5] = poison
            yield [(image, int(rng.integers(classes))) for image in images]

    return reader


def drawing_reader(rank, classes):
    """Batches that depend on the state of the generators when a pass begins."""

    def reader():
        order = list(range(5 + rank))
        random.shuffle(order)
        for number in order:
            images = np.random.normal(number, size=(8, 3, 32, 32)).astype("float32")
            yield [(image, random.randrange(classes)) for image in images]

    return reader


def small_entry(data, output):
    """An entry for the 12 classes of the `glyphs` fixture."""
    ins = Entry()
    ins.set_dataset_dir(data)
    ins.set_model_save_dir(output)
    ins.set_class_num(12)
    ins.set_image_shape((3, 32, 32))
    ins.set_train_batch_size(16)
    ins.set_emb_size(16)
    ins.set_train_epochs(2)
    ins.set_log_period(2)
    ins.set_val_targets("glyphs")
    ins.set_augmentation(mirror=False)
    return ins


def main(data, output, *options):
    chosen = dict(option.split("=", 1) for option in options)
    fail_rank, uneven = int(chosen.pop("fail_rank", -1)), int(chosen.pop("uneven", 0))
    norm, nan = bool(int(chosen.pop("norm", 1))), chosen.pop("nan", None)
    poison = chosen.pop("poison", "nan")
    ins = small_entry(data, output)
    if "disks" in chosen:
        ins.set_model_save_dir(f"{output}/disk_{chosen.pop('disks').split(',')[parallel.rank()]}")
    paddle.seed(0)
    model = TinyNet(norm, float(chosen.pop("dropout", 0)))
    ins.set_model(model)
    model.pause = float(chosen.pop("pause", 0))
    rank_to_kill, step, *how = (chosen.pop("kill", None) or "-2,0").split(",")
    unresumed = (
        "PLSC_RESTART" not in os.environ if chosen.pop("fresh", 0) else not any(Path(output).glob("**/meta.json"))
    )
    if int(rank_to_kill) in (-1, parallel.rank()) and unresumed:
        model.kill_at, model.kill_by = int(step), getattr(signal, f"SIG{(how or ['KILL'])[0]}")
    optimizer = chosen.pop("optimizer", None)
    if optimizer:
        ins.set_optimizer(lambda parameters: getattr(paddle.optimizer, optimizer)(0.01, parameters=parameters))
    if chosen.pop("reader", None):
        ins.train_reader = drawing_reader(parallel.rank(), 12)
    for name, value in chosen.items():
        parsed = value if name in ("loss_type", "checkpoint_dir", "head_init") else json.loads(value)
        several = name in ("mixed_precision", "augmentation", "data_format", "hdfs_info", "hdfs_upload")
        getattr(ins, f"set_{name}")(*parsed if several else [parsed])
    if uneven or fail_rank >= 0:
        rank = parallel.rank()
        ins.train_reader = reader_of(rank, 12, 2 + rank, fail=rank == fail_rank)
    if nan:
        bad_rank, first, last = map(int, nan.split(","))
        rank = parallel.rank()
        bad_from = first if rank == bad_rank else None
        if poison == "gradient":
            model.infinite_from, bad_from = bad_from, None
        ins.train_reader = reader_of(
            rank, 12, last + 1, False, bad_from=bad_from, poison=float(poison.replace("gradient", "nan"))
        )
    result = ins.train()
    Path(output).mkdir(exist_ok=True)
    Path(output, f"result_{parallel.rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
