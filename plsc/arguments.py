"""The manners of command lines: help with examples, suggestions for what is misspelt, and how a command ends."""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Optional

from plsc.errors import PlscError

_WIDEST = 110  # columns of a help page, on wider terminals too
_INTERRUPTED, _NOBODY_READS = 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as shells count


def at_least(least: int) -> Callable[[str], int]:
    """An `argparse` type: a whole number of at least `least`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that takes options by their whole name only, and says which one may have been meant.

    Args:
        examples: command lines, shown below the options.
        description: paragraphs, separated by an empty line; they are filled to the width of the terminal.
    """

    def __init__(self, *, examples: Sequence[str] = (), description: str = "", **options: Any) -> None:
        width = min(shutil.get_terminal_size().columns - 2, _WIDEST)
        if examples:
            options["epilog"] = "\n".join(["examples:", *(f"  {line}" for line in examples)])
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, width=width, max_help_position=32)
        filled = [textwrap.fill(paragraph, width) for paragraph in description.split("\n\n")]
        super().__init__(
            allow_abbrev=False, formatter_class=formatter, description="\n\n".join(filled) or None, **options
        )
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what it does not know: left to the parser above, the error would show that one's usage."""
        self._given = list(sys.argv[1:] if args is None else args)
        if not self._given and self._subparsers is not None:
            self.print_help(sys.stderr)
            self.exit(2)
        found, unknown = super().parse_known_args(self._given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Shows the usage, the mistake and what may have been meant; exits with 2."""
        super().error(f"{message}{self._hint(message)}")

    def _hint(self, message: str) -> str:
        known, wrong = self._words(message)
        for word in wrong:
            alike = difflib.get_close_matches(word, known, 1)
            if alike:
                return f"; did you mean {alike[0]} instead of {word}?"
        return ""

    def _words(self, message: str) -> tuple[list[str], list[str]]:
        """What could stand where the message found a mistake, and what stood there."""
        choice = re.search(r"invalid choice: '(.*)' \(", message)
        if choice is not None:
            return [str(one) for action in self._actions for one in action.choices or ()], [choice[1]]
        if "unrecognized" not in message and "required" not in message:
            return [], []
        known = list(self._option_string_actions)
        words = [word.partition("=")[0] for word in self._given if word.startswith("-")]
        return known, [word for word in words if word not in known]


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
        details: more paragraphs for the command's own page.
    """
    description = about[0].upper() + about[1:] + "." + (f"\n\n{details}" if details else "")
    return commands.add_parser(name, help=about, description=description, examples=examples)


def exit_status(command: Callable[[], int]) -> int:
    """Runs a command; returns its exit status.

    A `PlscError` is said in one line and gives 1. Ctrl-C ends with 130, and a reader of the output that has had enough
    (`| head`) with 141, both without a word.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except PlscError as error:
        print(f"plsc: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written goes nowhere
        return _NOBODY_READS
