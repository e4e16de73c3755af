"""`predict_glyphs.py CHECKPOINT OUTPUT [name=value ...] SOURCE...`: embeds source n into OUTPUT/<n>, in batches of 5.

flip= and skip_damaged= are those of `predict`; kill=N kills rank 0 by SIGKILL in its N-th batch. {rank} in a source is
the number of the rank. Each rank prints a line that says how many images it decoded, and checks that it was given what
the files hold.
"""

import os
import signal
import sys

import numpy as np

from plsc import Entry, parallel
from plsc.data.collection import Base64Parts, ImageFiles
from plsc.inference import networks
from plsc.search import embeddings

embeddings._SAVE_SECONDS = 0
BATCH = 5


def count_decoded():
    """A list that grows with every image that is decoded."""
    decoded = []
    for kind in (ImageFiles, Base64Parts):
        pixels = kind.pixels
        kind.pixels = lambda self, i, shape, pixels=pixels: decoded.append(i) or pixels(self, i, shape)
    return decoded


def kill_in_batch(number):
    """Has rank 0 die when it embeds its `number`-th batch."""
    embed, calls = networks.embed_batch, []

    def embed_or_die(*arguments):
        calls.append(1)
        if len(calls) == number and parallel.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(*arguments)

    networks.embed_batch = embed_or_die


def main(checkpoint, output, *words):
    """See above."""
    options = dict(word.split("=") for word in words if "=" in word)
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
    options = {name: value == "true" for name, value in options.items()}
    for number, source in enumerate(word for word in words if "=" not in word):
        folder = os.path.join(output, str(number))
        vectors = ins.predict(source.format(rank=parallel.rank()), folder, **options)
        assert np.array_equal(vectors, np.load(os.path.join(folder, "embeddings.npy")))
    print(f"decoded {len(decoded)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
