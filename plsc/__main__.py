"""Runs `python -m plsc`."""

import sys

try:
    from plsc.cli import main

    status = main()
except KeyboardInterrupt:  # during the import
    status = 130
sys.exit(status)
