"""Tests the last checkpoint of a run on pairs of characters it never saw: `test.py DATA RUN_DIR`."""

import sys

import settings

from plsc import Entry

ins = Entry()
settings.apply(ins, dataset_dir=sys.argv[1])
ins.set_model_save_dir(sys.argv[2])
ins.set_checkpoint_dir(f"{sys.argv[2]}/{settings.EPOCHS - 1}")
ins.test()
