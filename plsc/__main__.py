"""Runs `python -m plsc`."""

import sys

from plsc.cli import main

sys.exit(main())
