"""`python -m plsc run [--ranks N] script.py [args]` and the other commands."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from plsc import hdfs_command, launch, settings
from plsc.arguments import at_least
from plsc.checkpoint import open_checkpoint
from plsc.checkpoint.convert import convert
from plsc.config import check_choice, check_float, check_image_shape
from plsc.engine import plan
from plsc.engine.exporter import FORMATS
from plsc.entry import Entry
from plsc.errors import ConfigError, PlscError
from plsc.heads.workers import walking_threads
from plsc.memory import resident_memory
from plsc.models import MODEL_NAMES, build_model


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m plsc", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a training script on one or several ranks of this machine")
    run.add_argument("--ranks", type=at_least(1), default=1, help="number of processes (default 1)")
    run.add_argument(
        "--restarts",
        type=at_least(0),
        default=0,
        help="start all ranks again after a failure, so often at most; training goes on from its newest checkpoint (default 0)",
    )
    settings.add_options(run)
    run.add_argument("script", help="the Python script every rank runs")
    run.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    cut = commands.add_parser("convert-checkpoint", help="cut the head of a checkpoint for another number of ranks")
    cut.add_argument("source", type=Path, help="folder of the checkpoint; it is only read")
    cut.add_argument("target", type=Path, help="new folder")
    cut.add_argument("--ranks", type=at_least(1), required=True, help="number of head files to make")
    test = commands.add_parser("test", help="test a checkpoint on verification sets")
    _add_checkpoint(test)
    test.add_argument("--dataset", required=True, help="folder of the sets")
    test.add_argument("--targets", default="lfw", help="comma separated names of <dataset>/<name>.bin (default lfw)")
    test.add_argument("--json", action="store_true", help="print an object")
    write = commands.add_parser("export", help="export a checkpoint for Paddle's inference library or as ONNX")
    _add_checkpoint(write)
    write.add_argument("--output", required=True, help="folder that receives the files")
    write.add_argument("--format", choices=FORMATS, default="paddle")
    ask = commands.add_parser("plan", help="forecast the memory and the traffic of a training, before it is started")
    ask.add_argument("--classes", type=at_least(1), required=True)
    ask.add_argument("--emb", type=at_least(1), default=512, help="size of the embedding (default 512)")
    ask.add_argument("--ranks", type=at_least(1), default=1, help="processes or GPUs (default 1)")
    ask.add_argument("--batch", type=at_least(1), default=128, help="images a step, per rank (default 128)")
    ask.add_argument("--sample-ratio", type=float, default=1.0, help="share of the classes in a step (default 1)")
    ask.add_argument("--model", default="ResNet50", help="a built-in model (default ResNet50)")
    ask.add_argument("--image-shape", default="3,112,112", help="channels,height,width (default 3,112,112)")
    ask.add_argument("--optimizer", default="Momentum", help="Paddle's name (default Momentum)")
    ask.add_argument(
        "--device-memory", metavar="SIZE", help="of one GPU, such as 80G; without it the ranks are on CPUs"
    )
    ask.add_argument("--json", action="store_true", help="print an object")
    hdfs_command.add_parser(commands)
    options = parser.parse_args(arguments)
    actions = {
        "run": _run,
        "convert-checkpoint": _convert,
        "test": _test,
        "export": _export,
        "plan": _plan,
        "hdfs": hdfs_command.run,
    }
    try:
        return actions[options.command](options)
    except PlscError as error:
        print(f"plsc: error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if not Path(options.script).is_file():
        raise ConfigError(f"{options.script}: no such script")
    chosen = settings.to_environment(settings.read_options(options))
    return launch.run([sys.executable, options.script, *options.args], options.ranks, options.restarts, chosen)


def _convert(options: argparse.Namespace) -> int:
    convert(options.source, options.target, options.ranks)
    print(f"{options.target}: the checkpoint {options.source} for {options.ranks} ranks")
    return 0


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="folder of the checkpoint, such as output/19")
    settings.add_options(parser)


def _entry_of(options: argparse.Namespace) -> Entry:
    """An entry with the model of the checkpoint, and the settings of the command line.

    Raises:
        ConfigError: its model is no built-in one.
    """
    meta = open_checkpoint(Path(options.checkpoint)).meta
    if meta["model"] not in MODEL_NAMES:
        raise ConfigError(
            f"{options.checkpoint}: its model {meta['model']!r} is the user's own, which only a script knows; call "
            "set_model, set_checkpoint_dir and the action there"
        )
    os.environ.update(settings.to_environment(settings.read_options(options)))
    entry = Entry()
    entry.set_model_name(meta["model"])
    entry.set_image_shape(meta["image_shape"])
    entry.set_emb_size(meta["emb_dim"])
    entry.set_class_num(meta["num_classes"])
    entry.set_checkpoint_dir(options.checkpoint)
    entry.set_model_save_dir(None)
    return entry


def _test(options: argparse.Namespace) -> int:
    entry = _entry_of(options)
    entry.set_dataset_dir(options.dataset)
    entry.set_val_targets(options.targets)
    results = entry.test()  # which logs them
    if options.json:
        print(json.dumps(results))
    return 0


def _export(options: argparse.Namespace) -> int:
    entry = _entry_of(options)
    entry.set_model_save_dir(options.output)
    entry.convert_for_prediction(options.format)
    return 0


def _plan(options: argparse.Namespace) -> int:
    try:
        sides = tuple(int(side) for side in options.image_shape.split(","))
    except ValueError:
        sides = ()
    shape = check_image_shape("--image-shape ", sides)
    memory = None if options.device_memory is None else plan.parse_size(options.device_memory)
    ratio = check_float("--sample-ratio ", options.sample_ratio, 0, 1, above=True)
    check_choice("--model ", options.model, MODEL_NAMES)
    process = resident_memory()
    make = functools.partial(
        plan.forecast,
        options.classes,
        options.emb,
        backbone=plan.backbone_size(build_model(options.model, options.emb, shape), shape),
        image_shape=shape,
        sample_ratio=ratio,
        optimizer=options.optimizer,
        process=process,
        threads=walking_threads(),
        on_cpu=memory is None,
    )
    made = make(ranks=options.ranks, batch=options.batch)
    known = plan.host_memory() if memory is None else memory
    shared = options.ranks if memory is None else 1  # ranks on CPUs share a machine
    most = None if known is None else made.max_classes(known // shared)
    if options.json:
        print(json.dumps({**made.to_json(), "max_classes": most}))
        return 0
    print("\n".join(made.lines()))
    if known is not None and most is not None:
        print(
            f"largest class count for {plan.size_text(known)}{' of this machine' if memory is None else ' a rank'}: {most:,}"
        )
        if most < options.classes:
            print("\n".join(plan.advice(make, options.ranks, options.batch, known, memory is None)))
    return 0
