"""The version of plsc. This module stands alone, so that setup.py can read it without loading Paddle."""

__version__ = "0.1.0"
