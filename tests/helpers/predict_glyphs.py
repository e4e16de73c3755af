"""Embeds each source into a folder OUTPUT/<number>, in batches of 5.

Each rank prints how many images it decoded, and checks that it got what the files hold.
"""

import argparse
import os
import signal

import numpy as np

from plsc import Entry, parallel
from plsc.data.collection import Base64Parts, ImageFiles
from plsc.inference import networks
from plsc.search import embeddings

embeddings._SAVE_SECONDS = 0
BATCH = 5


def count_decoded():
    """Returns a list that grows with every decoded image."""
    decoded = []
    for kind in (ImageFiles, Base64Parts):
        pixels = kind.pixels
        kind.pixels = lambda self, i, *how, pixels=pixels: decoded.append(i) or pixels(self, i, *how)
    return decoded


def kill_in_batch(number):
    """Makes rank 0 die when it embeds its `number`-th batch."""
    embed, calls = networks.embed_batch, []

    def embed_or_die(*arguments):
        calls.append(1)
        if len(calls) == number and parallel.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(*arguments)

    networks.embed_batch = embed_or_die


def parse_arguments():
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("output")
    parser.add_argument("sources", nargs="+", help="{rank} stands for the number of the rank")
    parser.add_argument("--skip-damaged", action="store_true")
    parser.add_argument("--kill", type=int, metavar="N", help="kill rank 0 by SIGKILL in its N-th batch")
    return parser.parse_args()


def main(arguments):
    """Runs the program."""
    if arguments.kill:
        kill_in_batch(arguments.kill)
    decoded = count_decoded()
    ins = Entry()
    ins.set_image_shape([3, 32, 32])
    ins.set_model_name("MobileFaceNet")
    ins.set_emb_size(32)
    ins.set_class_num(12)
    ins.set_test_batch_size(BATCH)
    ins.set_checkpoint_dir(arguments.checkpoint)
    ins.set_model_save_dir(None)
    for number, source in enumerate(arguments.sources):
        folder = os.path.join(arguments.output, str(number))
        vectors = ins.predict(source.format(rank=parallel.rank()), folder, skip_damaged=arguments.skip_damaged)
        assert np.array_equal(vectors, np.load(os.path.join(folder, "embeddings.npy")))
    print(f"decoded {len(decoded)}", flush=True)


if __name__ == "__main__":
    main(parse_arguments())
