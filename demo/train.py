"""Trains a small residual network on the glyph data: 1,000 characters, the class centres sharded over the ranks."""

import sys

import settings
from plsc import Entry

ins = Entry()
settings.apply(ins, dataset_dir=sys.argv[1])
ins.set_model_save_dir(sys.argv[2])
ins.train()
