"""Tests a saved checkpoint on pairs of characters it never saw."""

import sys

import settings
from plsc import Entry

ins = Entry()
settings.apply(ins, dataset_dir=sys.argv[1])
ins.set_checkpoint_dir(sys.argv[2])
ins.set_model_save_dir(sys.argv[3])
print(ins.test())
