"""`plsc report RUN_DIR... --output report.html`."""

from __future__ import annotations

import argparse
from pathlib import Path

from plsc.arguments import add_command, add_json, print_json
from plsc.commands import places
from plsc.machine.names import to_text


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "report",
        "show runs as one HTML page: curves, tests, hardest pairs, settings",
        [
            "plsc report output",
            "plsc report run-a run-b --output compared.html --png charts",
        ],
        "The page contains everything it shows and needs no network. It compares several runs. Needs pip install "
        "'.[report]'.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=places.place(places.RUN),
        metavar="RUN_DIR",
        help="folder of a run, with its metrics.jsonl",
    )
    parser.add_argument(
        "--output",
        type=places.place(places.PAGE),
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default report.html); an earlier report there is replaced",
    )
    parser.add_argument(
        "--png",
        type=places.place(places.NEW_FOLDER),
        metavar="DIR",
        help="folder that also receives each chart as a PNG; in a store, a new one",
    )
    places.add_retrying(parser)
    add_json(parser, "print the files that were written and the headline numbers as JSON")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.report.make import make_report, report_lines

    made = make_report(options.runs, options.output, options.png)
    if options.json:
        runs = [{**run, "folder": to_text(run["folder"])} for run in made["runs"]]
        print_json({**made, "report": to_text(made["report"]), "png": list(map(to_text, made["png"])), "runs": runs})
    else:
        print("\n".join(report_lines(made)))
    return 0
