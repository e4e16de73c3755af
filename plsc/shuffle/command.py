"""The command line of `tools/process_base64_files.py`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from tqdm import tqdm

from plsc.arguments import Parser, at_least, exit_status, size
from plsc.errors import ConfigError, PlscError, counted
from plsc.machine.names import readable
from plsc.machine.signals import heeded
from plsc.shuffle.local import Result, shuffle_base64
from plsc.shuffle.plan import Options

_NOT_FOR_SPARK = {
    "memory": "set spark.executor.memory and spark.python.worker.memory",
    "workers": "set the master, for example local[4], or spark.executor.instances",
    "tmp_dir": "set spark.local.dir",
    "compress_tmp": "Spark compresses by itself",
}
_PERIOD = 10  # seconds between two lines of progress where there is no terminal


class Stopped(BaseException):
    """The exception that ends the run after a signal."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the tool and returns its exit status."""
    return exit_status(lambda: _run(make_parser().parse_args(arguments)))


def _run(parsed: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(parsed).items() if value is not None}
    progress = _Progress()
    began = time.monotonic()
    try:
        with _signals():
            result = _shuffle(options, progress)
    except (PlscError, OSError) as error:
        progress.close()
        print(f"plsc: error: {readable(str(error))}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        progress.close()
        print(f"plsc: error: stopped by {stopped} before it was done; run it again to start over", file=sys.stderr)
        return 1
    progress.close()
    print(_summary(result, time.monotonic() - began))
    return 0


def _shuffle(options: dict[str, Any], progress: _Progress) -> Result:
    engine, skip_errors = options.pop("engine"), options.pop("on_error") == "skip"
    if engine == "local":
        return shuffle_base64(Options(**options, skip_errors=skip_errors), progress.show)
    for name, instead in _NOT_FOR_SPARK.items():
        if options.get(name):
            raise ConfigError(f"--{name} is not for --engine spark; leave it out ({instead})")
    from plsc.shuffle.spark import shuffle_on_spark

    return shuffle_on_spark(Options(**options, skip_errors=skip_errors, memory=1 << 62))


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    tool = "python tools/process_base64_files.py"
    parser = Parser(
        prog=tool,
        description="Shuffles all lines of base64 data and splits them into base64_rank_0 ... base64_rank_<N-1>, files "
        "with equal counts of lines; if the total does not divide, random samples are repeated. Also writes "
        "base64_file_list.txt and base64_manifest.json. The inputs are never changed, and the outputs appear when all "
        "of them are complete. Sizes may be written 512MB, 1.5GB or 256MiB.",
        examples=[
            f"{tool} --data_dir=./dataset --file_list=file_list.txt --nranks=8",
            f"{tool} --data_dir=./dataset --file_list=file_list.txt --nranks=8 --check --on-error skip",
            f"{tool} --data_dir=hdfs://namenode:9000/dataset --file_list=file_list.txt --nranks=8 --engine spark",
        ],
    )
    _add_data(parser)
    _add_resources(parser)
    _add_checks(parser)
    return parser


def _add(parser: Parser, name: str, **settings: Any) -> None:
    """Adds an option that may be spelled with - or _."""
    parser.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), dest=name, **settings)


def _add_data(parser: Parser) -> None:
    _add(parser, "data_dir", required=True, metavar="DIR", help="folder of the training data")
    _add(
        parser,
        "file_list",
        required=True,
        metavar="NAME",
        help="file in it that names the parts, one per line; a part is lines of base64<TAB>label",
    )
    _add(parser, "nranks", required=True, type=at_least(1), metavar="N", help="number of ranks (GPUs) to split for")
    _add(parser, "output_dir", metavar="DIR", help="folder for the outputs (default: data_dir)")
    _add(
        parser,
        "tmp_dir",
        metavar="DIR",
        help="folder for temporary files, which are as large as the data (default: output_dir)",
    )
    _add(
        parser,
        "seed",
        type=at_least(0),
        default=0,
        metavar="N",
        help="seed of the order; the same seed gives the same bytes (default 0)",
    )


def _add_resources(parser: Parser) -> None:
    _add(
        parser,
        "engine",
        choices=["local", "spark"],
        default="local",
        help="this machine (default), or Apache Spark, which also reads and writes hdfs:// folders and gives the same "
        "files; start it with spark-submit to use a cluster",
    )
    _add(
        parser,
        "memory",
        type=size,
        metavar="SIZE",
        help="most memory of all processes together, whatever the size of the data (default 512MB)",
    )
    _add(
        parser,
        "workers",
        type=at_least(1),
        metavar="N",
        help="number of processes (default: one per core, as far as the memory allows)",
    )
    _add(
        parser,
        "compress_tmp",
        action="store_true",
        help="make temporary files a quarter smaller, at the price of more computing",
    )


def _add_checks(parser: Parser) -> None:
    _add(
        parser,
        "check",
        action="store_true",
        help="also decode every image, and treat the line of a broken one as bad",
    )
    _add(
        parser,
        "on_error",
        choices=["stop", "skip"],
        default="stop",
        help="at a bad line, stop and report it (default), or leave it out and list it in base64_skipped.txt",
    )
    _add(
        parser,
        "max_line",
        type=size,
        default="8MB",
        metavar="SIZE",
        help="longest line that is not bad (default 8MB)",
    )


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turns the first signal that asks to end into Stopped, and ignores later ones while everything is cleaned up."""
    numbers = heeded()

    def stop(number: int, frame: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """The display of progress on stderr: on a terminal a bar for each pass, elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self._bar: Optional[tqdm] = None
        self._stage = ""
        self._began = self._spoke = 0.0

    def show(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` bytes of the pass `stage` are done."""
        if stage != self._stage:
            self.close()
            self._stage, self._began = stage, time.monotonic()
            self._spoke = self._began
            if sys.stderr.isatty():
                tqdm.monitor_interval = 0  # workers are forked, and must not inherit a thread of tqdm
                self._bar = tqdm(total=total, desc=stage, unit="B", unit_scale=True, leave=False)
        if self._bar is not None:
            self._bar.update(min(done, total) - self._bar.n)
        elif time.monotonic() - self._spoke > _PERIOD:
            self._spoke = time.monotonic()
            print(self._line(done, total), file=sys.stderr, flush=True)

    def _line(self, done: int, total: int) -> str:
        rate = done / (time.monotonic() - self._began)
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        return f"{self._stage}: {min(1, done / total):.0%} of {total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s{left}"

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _summary(result: Result, seconds: float) -> str:
    made = result.manifest
    skipped = f", {counted(made.skipped, 'bad line')} skipped (base64_skipped.txt)" if made.skipped else ""
    memory = f", at most {result.peak_memory / 1e6:.0f} MB of memory" if result.peak_memory else ""
    return (
        f"{counted(made.samples, 'sample')} from {counted(len(made.sources), 'part')} "
        f"({result.input_bytes / 1e6:.1f} MB){skipped}\n"
        f"{made.nranks} files of {made.samples_per_file} lines ({result.output_bytes / 1e6:.1f} MB), "
        f"{made.padding} of them padding; the largest label is {made.largest_label}\n"
        f"{seconds:.1f} s, {result.input_bytes / 1e6 / max(seconds, 1e-9):.0f} MB/s "
        f"with {counted(result.workers, 'worker')}{memory}"
    )
