"""`train_readers.py OUTPUT` trains on three custom readers, then embeds and tests with them on every rank.

Then freezes a parameter and trains once more. Writes `<OUTPUT>/rank_<rank>.npz`: the embeddings by reader, and what a
single process gets.
"""

import logging
import sys
from pathlib import Path

import numpy as np
import paddle

from plsc import Entry, parallel, shard_reader
from plsc.errors import DataError
from plsc.inference.networks import embed_batch

IMAGES = np.random.default_rng(0).normal(size=(21, 3, 16, 16)).astype("float32")
LABELS = np.arange(21) % 5


class Samples(paddle.io.Dataset):
    def __getitem__(self, i):
        return IMAGES[i], LABELS[i]

    def __len__(self):
        return len(IMAGES)


def samples():
    return zip(IMAGES, LABELS.tolist())


def own_samples():
    """Rank 0 has the first 9 images, rank 1 the others."""
    yield from list(samples())[: 9 if parallel.rank() == 0 else None][0 if parallel.rank() == 0 else 9 :]


def broken():
    """Fails on rank 1 alone, at the second batch."""
    yield list(samples())[:4]
    if parallel.rank() == 1:
        raise DataError("the reader of rank 1 is broken")
    yield list(samples())[4:8]


def main(output):
    paddle.seed(3)
    net = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 16 * 16, 8))
    ins = Entry()
    ins.set_model(net)
    ins.set_class_num(5)
    ins.set_image_shape((3, 16, 16))
    ins.set_emb_size(8)
    ins.set_train_batch_size(4)
    ins.set_train_epochs(1)
    ins.set_train_image_num(21)
    ins.set_model_save_dir(output)
    ins.set_with_test(False)
    ins.set_test_batch_size(4)
    for name, reader in (
        ("same", paddle.batch(samples, 4)),
        ("sharded", paddle.batch(shard_reader(samples), 4)),
        ("dataset", Samples()),
    ):
        ins.train_reader = reader
        logging.getLogger("plsc").warning("now training on %s", name)
        ins.train()
    found = {"alone": embed_batch(net, IMAGES)}
    for name, reader in (
        ("same", paddle.batch(samples, 4)),
        ("own", paddle.batch(own_samples, 4)),
        ("dataset", Samples()),
        ("images", [IMAGES[:10], IMAGES[10:]]),
    ):
        ins.predict_reader = reader
        found[name] = ins.predict()
        if name != "images":
            ins.test_reader = reader
            measured = ins.test()["test_reader"].values()
            found[f"test {name}"] = np.array([value for value in measured if not isinstance(value, dict)])
    ins.test_reader = broken
    try:
        ins.test()
        found["broken"] = np.array("")
    except DataError as problem:
        found["broken"] = np.array(str(problem))
    net[1].bias.stop_gradient = True
    before = [tensor.numpy() for tensor in (net[1].bias, net[1].weight)]
    ins.train()
    found["moved when the bias is frozen"] = np.array(
        [(old != new.numpy()).any() for old, new in zip(before, (net[1].bias, net[1].weight))]
    )
    found["weight"] = net[1].weight.numpy()
    np.savez(Path(output, f"rank_{parallel.rank()}.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
