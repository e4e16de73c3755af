"""The version, apart so that setup.py and the engine can read it without loading Paddle."""

__version__ = "0.1.0"
