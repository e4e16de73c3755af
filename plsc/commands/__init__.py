"""The commands of `python -m plsc`, one a module: `add_parser` describes it, `run` does it.

Paddle takes seconds to load, so only `run` imports what needs it.
"""
