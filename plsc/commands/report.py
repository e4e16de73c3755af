"""`python -m plsc report RUN_DIR... --output report.html`."""

from __future__ import annotations

import argparse
from pathlib import Path

from plsc.arguments import add_command


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "report",
        "show runs as one HTML page: curves, tests, hardest pairs, settings",
        [
            "python -m plsc report output",
            "python -m plsc report run-a run-b --output compared.html --png charts",
        ],
        "Everything is inside the page, which needs no network. Several runs are compared. Needs pip install '.[report]'.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run, with its metrics.jsonl")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default report.html)"
    )
    parser.add_argument("--png", type=Path, metavar="DIR", help="folder that also receives each chart as a PNG")
    parser.add_argument("--json", action="store_true", help="print what was written and the headline numbers")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from plsc.report.make import make_report, report_json, report_lines

    made = make_report(options.runs, options.output, options.png)
    print(report_json(made) if options.json else "\n".join(report_lines(made)))
    return 0
