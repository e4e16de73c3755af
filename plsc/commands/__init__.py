"""The commands of `plsc`, one per module: `add_parser` describes the command, `run` runs it.

Paddle takes seconds to load, so only `run` imports what needs it.
"""
