"""Lets a benchmark that is run as a script, from any folder, import plsc and the tests' helpers from this checkout."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = [str(ROOT / name) for name in ("", "tests", "tests/helpers", "demo")]

sys.path[:0] = _FOLDERS
# for the Python processes that the benchmark starts
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_FOLDERS[0], os.environ.get("PYTHONPATH")]))
