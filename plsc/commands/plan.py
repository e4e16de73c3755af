"""`python -m plsc plan`: the memory and the traffic of a training, before it is started."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from plsc import settings
from plsc.arguments import add_command, at_least
from plsc.config import Config, check_choice, check_float, check_image_shape

if TYPE_CHECKING:
    from plsc.engine.forecast import Workload


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
            "python -m plsc plan --config settings.yaml --ranks 8 --device-memory 80G   # the settings of a training",
        ],
        "The settings of a training count as they do there (num_classes, emb_dim, train_batch_size, model_name, loss_type, "
        "gradient_accumulation, ...); the options below win over them.",
    )
    parser.add_argument("--classes", type=at_least(1), metavar="N", help="needed, unless the settings have num_classes")
    parser.add_argument("--emb", type=at_least(1), metavar="N", help="size of the embedding (default 512)")
    parser.add_argument("--ranks", type=at_least(1), default=1, metavar="N", help="processes or GPUs (default 1)")
    parser.add_argument("--batch", type=at_least(1), metavar="N", help="images a step, per rank (default 128)")
    parser.add_argument("--sample-ratio", type=float, metavar="R", help="share of the classes in a step (default 1)")
    parser.add_argument("--model", metavar="NAME", help="a built-in model (default ResNet50)")
    parser.add_argument("--image-shape", metavar="C,H,W", help="channels, height, width (default 3,112,112)")
    parser.add_argument("--optimizer", default="Momentum", metavar="NAME", help="Paddle's name (default Momentum)")
    parser.add_argument(
        "--device-memory", metavar="SIZE", help="of one GPU, such as 80G; without it the ranks are on CPUs"
    )
    settings.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print an object")
    parser.set_defaults(wrong_usage=parser.error)


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    chosen = {**settings.read_options(options), **_given(options)}
    if "num_classes" not in chosen:
        options.wrong_usage("--classes is required, or num_classes in --set or --config")

    from plsc.engine import forecast

    config = _config(chosen)
    memory = None if options.device_memory is None else forecast.parse_size(options.device_memory)
    workload = _workload(config, options.ranks, options.optimizer, on_cpu=memory is None)
    made = forecast.forecast(workload)
    known = forecast.host_memory() if memory is None else memory
    shared = options.ranks if memory is None else 1  # ranks on CPUs share a machine
    most = None if known is None else made.max_classes(known // shared)
    if options.json:
        print(json.dumps({**made.to_json(), "max_classes": most}))
        return 0
    print("\n".join(made.lines()))
    if known is not None and most is not None:
        owner = "of this machine" if memory is None else "a rank"
        print(f"largest class count for {forecast.size_text(known)} {owner}: {most:,}")
        if most < config.num_classes:
            print("\n".join(forecast.advice(workload, known, one_machine=memory is None)))
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that stand in options of their own."""
    given = {
        "num_classes": options.classes,
        "emb_dim": options.emb,
        "train_batch_size": options.batch,
        "sample_ratio": options.sample_ratio,
        "model_name": options.model,
        "image_shape": options.image_shape,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if "sample_ratio" in given:
        check_float("--sample-ratio ", given["sample_ratio"], 0, 1, above=True)
    if "image_shape" in given:
        try:
            sides = tuple(int(side) for side in options.image_shape.split(","))
        except ValueError:
            sides = ()
        given["image_shape"] = check_image_shape("--image-shape ", sides)
    return given


def _config(chosen: dict[str, Any]) -> Config:
    """What an `Entry` makes of the settings."""
    from plsc.entry import Entry
    from plsc.models import MODEL_NAMES

    if "model_name" in chosen:
        check_choice("--model ", chosen["model_name"], MODEL_NAMES)
    os.environ.update(settings.to_environment(chosen))
    return Entry()._config


def _workload(config: Config, ranks: int, optimizer: str, on_cpu: bool) -> Workload:
    """Returns the workload of a training with these settings."""
    from plsc.engine import forecast
    from plsc.machine.memory import resident_memory
    from plsc.models import build_model

    process = resident_memory()
    model = build_model(config.model_name, config.emb_dim, config.image_shape)
    size = forecast.backbone_size(model, config.image_shape)
    return forecast.workload_of(config, size, optimizer=optimizer, ranks=ranks, process=process, on_cpu=on_cpu)
