"""Trains on 1,000 characters, the class centres sharded over the ranks: demo/train.py DATA RUN_DIR."""

import sys

import settings

from plsc import Entry

ins = Entry()
settings.apply(ins, dataset_dir=sys.argv[1])
ins.set_model_save_dir(sys.argv[2])
ins.train()
