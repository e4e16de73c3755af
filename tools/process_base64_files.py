"""Shuffles base64 image data and splits it into one file per rank; see `--help`."""

import os
import sys

# The tool's use of NumPy needs no threads of a math library, and it runs from a clone without an installation.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from plsc.shuffle.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
