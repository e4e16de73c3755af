"""`predict_glyphs.py CHECKPOINT SOURCE OUTPUT [name=value ...]`: embeds into files, a batch of 4 after the other.

flip=, parquet= and skip_damaged= are those of `predict`; kill=N kills rank 0 by SIGKILL in its N-th batch. Each rank prints a line
that says how many images it decoded, and checks that it was given what the files hold.
"""

import os
import signal
import sys

import numpy as np

from plsc import Entry, embeddings, parallel
from plsc.data.collection import Base64Parts, ImageFiles
from plsc.engine import embedder

embeddings._SAVE_SECONDS = 0
BATCH = 4


def count_decoded():
    """A list that grows with every image that is decoded."""
    decoded = []
    for kind in (ImageFiles, Base64Parts):
        pixels = kind.pixels
        kind.pixels = lambda self, i, shape, pixels=pixels: decoded.append(i) or pixels(self, i, shape)
    return decoded


def kill_in_batch(number):
    """Has rank 0 die when it embeds its `number`-th batch."""
    embed, calls = embedder.embed_batch, []

    def embed_or_die(*arguments):
        calls.append(1)
        if len(calls) == number and parallel.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(*arguments)

    embedder.embed_batch = embed_or_die


def main(checkpoint, source, output, *options):
    """See above."""
    options = dict(option.split("=") for option in options)
    kill = int(options.pop("kill", 0))
    if kill:
        kill_in_batch(kill)
    decoded = count_decoded()
    ins = Entry()
    ins.set_image_shape([3, 32, 32])
    ins.set_model_name("MobileFaceNet")
    ins.set_emb_size(32)
    ins.set_class_num(12)
    ins.set_test_batch_size(BATCH)
    ins.set_checkpoint_dir(checkpoint)
    ins.set_model_save_dir(None)
    vectors = ins.predict(source, output, **{name: value == "true" for name, value in options.items()})
    assert np.array_equal(vectors, np.load(os.path.join(output, "embeddings.npy")))
    print(f"decoded {len(decoded)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
