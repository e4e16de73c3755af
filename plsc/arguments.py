"""What all command lines share: types of arguments, help pages, suggestions for misspelt words, exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, Optional

from plsc.errors import PlscError, UsageError
from plsc.machine.beginning import INTERRUPTED, hand_over
from plsc.machine.json_files import json_text
from plsc.machine.streams import CheckedOutput, OutputError, open_closed_streams, silence_stdout
from plsc.machine.uncaught import is_interrupt, line_of

_WIDEST = 110  # columns of a help page, on wider terminals too
_NO_READER = 141  # 128 + SIGPIPE, as shells count
_SIZE = re.compile(r"(\d+(?:\.\d*)?(?:E\d+)?) ?([KMGT]I?)?(B?)", re.ASCII)
_LARGEST_SIZE = 10**18
_MOST_RANKS = 1 << 16
_LONGEST_SHOWN = 80


def at_least(least: int, most: int = 10**9) -> Callable[[str], int]:
    """Returns an `argparse` type: an integer in [least, most], which may be written as 1e6."""

    def number(text: str) -> int:
        shown = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
        try:
            value = Decimal(text)
            is_integer = value.is_finite() and value == value.to_integral_value()
        except ArithmeticError:
            is_integer = False
        if not is_integer:
            raise argparse.ArgumentTypeError(f"{shown!r} is not an integer")
        if value < least:
            raise argparse.ArgumentTypeError(f"{shown} is too small; it must be at least {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{shown} is too large; it must be at most {most:,}")
        return int(value)

    return number


def sides(text: str) -> list[int]:
    """Returns the shape of an image, such as `3,112,112`; an `argparse` type."""
    try:
        return [int(side) for side in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; write for instance 3,112,112") from None


def size(text: str) -> int:
    """Returns the bytes of a text such as `80G`, `512MB`, `1.5 GiB` or `1000B`; an `argparse` type.

    K, M, G and T are powers of 1000, Ki, Mi, Gi and Ti powers of 1024.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for instance 80G, 512MB or 1.5GiB")
    number, prefix, unit = match.groups()
    if not prefix and not unit:
        raise argparse.ArgumentTypeError(f"{text!r} has no unit; write {number}G for gigabytes, or {number}B for bytes")
    factor = (1024 if prefix.endswith("I") else 1000) ** ("KMGT".index(prefix[0]) + 1) if prefix else 1
    value = float(number) * factor
    if not 1 <= value < _LARGEST_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size of a memory or a file")
    return int(value)


def program() -> str:
    """Returns how the user calls plsc: `plsc`, or `python -m plsc`."""
    return "plsc" if Path(sys.argv[0]).stem == "plsc" else "python -m plsc"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that takes options by their whole name only, and suggests the name that was probably meant.

    Args:
        examples: Command lines, shown below the options.
        synonyms: Other words that users try, and what to suggest for each: `{"train": "run"}`.
        description: Paragraphs, separated by an empty line. They are filled to the width of the terminal.
        options: Arguments of `ArgumentParser`.
    """

    def __init__(
        self,
        *,
        examples: Sequence[str] = (),
        synonyms: Optional[Mapping[str, str]] = None,
        description: str = "",
        **options: Any,
    ) -> None:
        width = min(shutil.get_terminal_size().columns - 2, _WIDEST)
        if examples:
            options["epilog"] = "\n".join(["examples:", *(f"  {line}" for line in examples)])
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, width=width, max_help_position=32)
        filled = [textwrap.fill(paragraph, width) for paragraph in description.split("\n\n")]
        super().__init__(
            allow_abbrev=False, formatter_class=formatter, description="\n\n".join(filled) or None, **options
        )
        self.synonyms = dict(synonyms or {})
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses unknown arguments, because the parser above would show its own usage with the error."""
        self._given = list(sys.argv[1:] if args is None else args)
        if not self._given and self._subparsers is not None:
            self.print_help(sys.stderr)
            self.exit(2)
        found, unknown = super().parse_known_args(self._given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Shows the usage, the mistake and the word that was probably meant; exits with 2."""
        super().error(f"{message}{self._hint(message)}")

    def _hint(self, message: str) -> str:
        known, wrong = self._words(message)
        meant = {**self.synonyms, **{word: word for word in known}}
        for word in wrong:
            if word.endswith(".py") and "run" in known:
                return f"; to run a script, write {self.prog} run {word}"
            alike = difflib.get_close_matches(word, meant, 1)
            if alike:
                return f"; did you mean {meant[alike[0]]} instead of {word}?"
        return ""

    def _words(self, message: str) -> tuple[list[str], list[str]]:
        """Returns the words that are allowed where the message found a mistake, and the words that stood there."""
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
    """Adds the parser of a command.

    Args:
        commands: The result of `add_subparsers`.
        name: The name of the command.
        about: One line for the list of commands.
        examples: Whole command lines that begin with `plsc`.
        details: More paragraphs for the command's own page.
    """
    description = about[0].upper() + about[1:] + "." + (f"\n\n{details}" if details else "")
    return commands.add_parser(name, help=about, description=description, examples=as_called(examples))


def as_called(examples: Sequence[str]) -> list[str]:
    """Returns examples that begin with `plsc` the way the user calls it."""
    return [program() + line.removeprefix("plsc") for line in examples]


def add_json(parser: argparse.ArgumentParser, about: str = "print a JSON object") -> None:
    """Adds `--json` to a command."""
    parser.add_argument("--json", action="store_true", help=about)


def print_json(value: Any) -> None:
    """Prints a JSON object. A standard output that is not UTF-8 gets ASCII, which JSON always allows."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    print(json_text(value) if encoding == "utf8" else json.dumps(value))


def add_ranks(parser: argparse._ActionsContainer, about: str, **options: Any) -> None:
    """Adds `--ranks` to a command; its default is 1 unless `options` say otherwise."""
    options = {"default": 1, **options}
    parser.add_argument("--ranks", type=at_least(1, _MOST_RANKS), metavar="N", help=about, **options)


def exit_status(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status.

    A `PlscError` is printed as one line and gives 1, as does a standard output on a full disk; a `UsageError` gives 2.
    Ctrl-C gives 130, and a standard output without a reader (as with `| head`) 141; both print nothing.
    """
    open_closed_streams()
    try:
        hand_over()
        with contextlib.redirect_stdout(CheckedOutput(sys.stdout)):  # type: ignore[type-var]
            try:
                return command()
            finally:
                sys.stdout.flush()
    except (PlscError, UnicodeEncodeError) as error:
        line = line_of(error)
        if line is None:
            raise
        if isinstance(error, OutputError):
            silence_stdout()
        print(line, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, ImportError, SystemError) as error:
        if not is_interrupt(error):
            raise
        return INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return _NO_READER
