"""Tests the last checkpoint of a run on pairs of characters it never saw: `test.py DATA RUN_DIR`."""

import json
import sys
from pathlib import Path

import settings

from plsc import Entry, parallel

ins = Entry()
settings.apply(ins, dataset_dir=sys.argv[1])
ins.set_model_save_dir(sys.argv[2])
ins.set_checkpoint_dir(f"{sys.argv[2]}/{settings.EPOCHS - 1}")
results = ins.test()
if parallel.rank() == 0:
    Path(sys.argv[2], "test.json").write_text(json.dumps(results), encoding="utf-8")
