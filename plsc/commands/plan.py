"""`python -m plsc plan`: the memory and the traffic of a training, before it is started."""

from __future__ import annotations

import argparse
import functools
import json

from plsc.arguments import add_command, at_least
from plsc.config import check_choice, check_float, check_image_shape


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "plan",
        "forecast the memory and the traffic of a training, before it is started",
        [
            "python -m plsc plan --classes 1000000 --ranks 2 --batch 64",
            "python -m plsc plan --classes 10000000 --emb 512 --ranks 8 --batch 128 --device-memory 80G",
            "python -m plsc plan --classes 100000000 --ranks 64 --sample-ratio 0.1 --device-memory 80G --json",
        ],
    )
    parser.add_argument("--classes", type=at_least(1), required=True, metavar="N")
    parser.add_argument("--emb", type=at_least(1), default=512, metavar="N", help="size of the embedding (default 512)")
    parser.add_argument("--ranks", type=at_least(1), default=1, metavar="N", help="processes or GPUs (default 1)")
    parser.add_argument(
        "--batch", type=at_least(1), default=128, metavar="N", help="images a step, per rank (default 128)"
    )
    parser.add_argument(
        "--sample-ratio", type=float, default=1.0, metavar="R", help="share of the classes in a step (default 1)"
    )
    parser.add_argument("--model", default="ResNet50", metavar="NAME", help="a built-in model (default ResNet50)")
    parser.add_argument(
        "--image-shape", default="3,112,112", metavar="C,H,W", help="channels, height, width (default 3,112,112)"
    )
    parser.add_argument("--optimizer", default="Momentum", metavar="NAME", help="Paddle's name (default Momentum)")
    parser.add_argument(
        "--device-memory", metavar="SIZE", help="of one GPU, such as 80G; without it the ranks are on CPUs"
    )
    parser.add_argument("--json", action="store_true", help="print an object")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from plsc.engine import plan
    from plsc.heads.workers import walking_threads
    from plsc.memory import resident_memory
    from plsc.models import MODEL_NAMES, build_model

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
        owner = "of this machine" if memory is None else "a rank"
        print(f"largest class count for {plan.size_text(known)} {owner}: {most:,}")
        if most < options.classes:
            print("\n".join(plan.advice(make, options.ranks, options.batch, known, memory is None)))
    return 0
