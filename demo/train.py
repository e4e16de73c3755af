"""Trains on 1,000 characters, with the class centres sharded over the ranks: `train.py DATA RUN_DIR`."""

import sys

import settings

from plsc import Entry

ins = Entry()
settings.apply(ins, dataset_dir=sys.argv[1])
ins.set_model_save_dir(sys.argv[2])
ins.train()
