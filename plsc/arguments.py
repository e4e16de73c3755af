"""Parsing of command lines: help with examples, suggestions for what is misspelt."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Optional


def at_least(least: int) -> Callable[[str], int]:
    """An `argparse` type: a whole number of at least `least`."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that takes options by their whole name only, and says which one may have been meant.

    Args:
        examples: command lines, shown below the options.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        if examples:
            options["epilog"] = "\n".join(["examples:", *(f"  {line}" for line in examples)])
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what it does not know: left to the parser above, the error would show that one's usage."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Shows the usage, the mistake and what may have been meant; exits with 2."""
        super().error(f"{message}{self._hint(message)}")

    def _hint(self, message: str) -> str:
        known, wrong = self._words(message)
        for word in wrong:
            alike = difflib.get_close_matches(word.partition("=")[0], known, 1)
            if alike:
                return f"; did you mean {alike[0]}?"
        return ""

    def _words(self, message: str) -> tuple[list[str], list[str]]:
        """What could stand where the message found a mistake, and what stood there."""
        if message.startswith("unrecognized arguments: "):
            wrong = [word for word in message.split(": ", 1)[1].split() if word.startswith("-")]
            return list(self._option_string_actions), wrong
        choice = re.search(r"invalid choice: '(.*)' \(", message)
        if choice is None:
            return [], []
        choices = [str(one) for action in self._actions for one in action.choices or ()]
        return choices, [choice[1]]


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    about: str,
    examples: Sequence[str],
    details: Optional[str] = None,
) -> Parser:
    """A parser for one more command.

    Args:
        commands: what `add_subparsers` gave.
        about: one line for the list of commands.
        examples: whole command lines.
        details: more lines for the command's own page.
    """
    description = about[0].upper() + about[1:] + "." + (f"\n\n{details}" if details else "")
    return commands.add_parser(name, help=about, description=description, examples=examples)
