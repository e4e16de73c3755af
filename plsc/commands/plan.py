"""`plsc plan`: the memory and the traffic of a training, before it starts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from plsc import settings
from plsc.arguments import add_command, add_json, add_ranks, at_least, print_json, sides, size
from plsc.config import LARGEST_TOTAL, Config
from plsc.errors import ConfigError
from plsc.machine.memory import out_of_memory_as, resident_memory, size_text, usable_memory

if TYPE_CHECKING:
    from plsc.engine.forecast import OptimizerSize, Workload


_MOST_RATES = 10  # learning rates that the forecast shows
_CURVE_COLUMNS, _CURVE_LINES = 60, 6


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "plan",
        "forecast the memory and the traffic of a training, before it starts",
        [
            "plsc plan --classes 1000000 --ranks 2 --batch 64",
            "plsc plan --classes 10000000 --emb 512 --ranks 8 --batch 128 --device-memory 80G",
            "plsc plan --classes 100000000 --ranks 64 --sample-ratio 0.1 --device-memory 80G --json",
            "plsc plan --classes 92000000 --ranks 8 --head-dtype bfloat16 --device-memory 32G",
            "plsc plan --config settings.yaml --ranks 8 --device-memory 80G   # with the settings of a training",
        ],
        "The settings of a training have the same meaning here (num_classes, emb_dim, train_batch_size, model_name, "
        "loss_type, gradient_accumulation, ...). The options below win over them.",
    )
    parser.add_argument(
        "--classes", type=at_least(1, LARGEST_TOTAL), metavar="N", help="required, unless the settings have num_classes"
    )
    parser.add_argument("--emb", type=at_least(1), metavar="N", help="size of the embedding (default 512)")
    add_ranks(parser, "number of processes or GPUs (default 1)")
    parser.add_argument("--batch", type=at_least(1), metavar="N", help="images per rank in a batch (default 128)")
    parser.add_argument(
        "--sample-ratio", type=float, metavar="R", help="share of the classes that take part in a step (default 1)"
    )
    parser.add_argument(
        "--head-dtype",
        choices=("float32", "bfloat16"),
        help="the type in which the class centres and their momentum are kept (default float32)",
    )
    parser.add_argument("--model", metavar="NAME", help="a built-in model (default ResNet50)")
    parser.add_argument(
        "--image-shape", type=sides, metavar="C,H,W", help="channels, height, width (default 3,112,112)"
    )
    parser.add_argument(
        "--optimizer",
        default="Momentum",
        metavar="NAME",
        help="Paddle's name of the optimizer, or Lion (default Momentum)",
    )
    parser.add_argument(
        "--device-memory",
        type=size,
        metavar="SIZE",
        help="memory of one GPU, such as 80G; without it the ranks run on CPUs",
    )
    settings.add_options(parser)
    add_json(parser)
    parser.set_defaults(wrong_usage=parser.error)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    config = _config(options)
    if "num_classes" not in config.overrides or not config.num_classes:
        options.wrong_usage("--classes is required, or the number num_classes in --set or --config")
    config.check_head()

    from plsc.engine import forecast
    from plsc.engine.class_values import check_given_values
    from plsc.engine.teacher import check_place

    check_given_values(config)
    if config.teacher is not None:
        check_place(config.teacher)
    memory = options.device_memory
    workload = _workload(config, options.ranks, options.optimizer, on_cpu=memory is None)
    made = forecast.forecast(workload)
    known = usable_memory() if memory is None else memory
    shared = options.ranks if memory is None else 1  # ranks on CPUs share the memory of one machine
    most = None if known is None else made.max_classes(known // shared)
    rates = _rates(config, options.ranks)
    if options.json:
        print_json({**made.to_json(), "max_classes": most, "learning_rates": rates})
        return 0
    print("\n".join(made.lines()))
    if rates:
        print("\n".join(_curve(config, options.ranks)))
        print(f"learning rate after each epoch: {', '.join(f'{epoch}: {rate:.4g}' for epoch, rate in rates)}")
    if known is not None and most is not None:
        owner = "of this machine" if memory is None else "a rank"
        print(f"largest class count for {size_text(known)} {owner}: {most:,}")
        if most < config.num_classes:
            print("\n".join(forecast.advice(workload, known, one_machine=memory is None)))
    return 0


def _config(options: argparse.Namespace) -> Config:
    """Returns the settings of `--config` and `--set`, with the options that win over them."""
    config = settings.make_config(settings.read_options(options))
    for option, name, value in (
        ("--classes", "num_classes", options.classes),
        ("--emb", "emb_dim", options.emb),
        ("--batch", "train_batch_size", options.batch),
        ("--sample-ratio", "sample_ratio", options.sample_ratio),
        ("--head-dtype", "head_dtype", options.head_dtype),
        ("--model", "model_name", options.model),
        ("--image-shape", "image_shape", options.image_shape),
    ):
        if value is not None:
            settings.override(config, name, value, f"{option} {value}")
    return config


def _rates(config: Config, ranks: int) -> list[tuple[int, float]]:
    """Returns the learning rate at the end of up to `_MOST_RATES` epochs, if the number of images is known."""
    from plsc.optim import learning_rate_at

    if config.train_image_num is None or config.optimizer is not None:
        return []
    steps, epochs = _steps_per_epoch(config, ranks), config.train_epochs
    shown = sorted({round(epochs * part / _MOST_RATES) for part in range(1, _MOST_RATES + 1)} - {0})
    return [(epoch, learning_rate_at(config, epoch * steps - 1, steps, ranks)) for epoch in shown]


def _curve(config: Config, ranks: int) -> list[str]:
    """Returns the learning rate of all steps as lines of a drawing."""
    from plsc.optim import learning_rate_at

    steps = _steps_per_epoch(config, ranks)
    total = steps * config.train_epochs
    columns = min(_CURVE_COLUMNS, total)
    rates = [learning_rate_at(config, (2 * n + 1) * total // (2 * columns), steps, ranks) for n in range(columns)]
    most = max(rates)
    title = f"learning rate in {total:,} steps of {config.train_epochs:,} epochs"
    if config.schedule.name == "plateau":
        title += ", as long as the metric improves"
    lines = [f"{title}:"]
    for line in range(_CURVE_LINES, 0, -1):
        marks = "".join("#" if rate > most * (line - 0.5) / _CURVE_LINES else " " for rate in rates)
        lines.append(f"{most * line / _CURVE_LINES:>10.4g} |{marks}".rstrip())
    return [*lines, f"{0:>10} +{'-' * columns}"]


def _steps_per_epoch(config: Config, ranks: int) -> int:
    return -(-(config.train_image_num or 0) // (config.batch_per_rank * ranks))


def _workload(config: Config, ranks: int, optimizer: str, on_cpu: bool) -> Workload:
    """Returns the workload of a training with these settings."""
    from plsc.engine import forecast
    from plsc.models import build_backbone
    from plsc.models.freezing import TrainedParts, rate_factors_of

    process, of_optimizer = resident_memory(), _optimizer_size(optimizer, config)
    if config.head_dtype != "float32" and not of_optimizer.moves_in_chunks:
        raise ConfigError(
            f"--optimizer {optimizer}: needs the whole gradient of the class centres, which set_head_dtype"
            f"({config.head_dtype!r}) does not give; choose Momentum, or another optimizer that moves each element by "
            "itself"
        )
    with out_of_memory_as("plan measures the backbone itself: ask for a smaller image or embedding"):
        model = build_backbone(config)
        TrainedParts(model, config.trainable.stages)
        rate_factors_of(config.rate_factors, model, {})  # refuses patterns that name nothing
        size = forecast.backbone_size(model, config.image_shape, config.recompute)
    return forecast.workload_of(config, size, optimizer=of_optimizer, ranks=ranks, process=process, on_cpu=on_cpu)


def _optimizer_size(name: str, config: Config) -> OptimizerSize:
    """Returns what one of Paddle's optimizers, or of plsc's, takes with its own settings.

    Raises:
        ConfigError: There is no optimizer of this name, or a training with these settings cannot use it.
    """
    import paddle

    from plsc import optim
    from plsc.engine.forecast import OptimizerSize

    kinds = {kind: made for kind, made in vars(paddle.optimizer).items() if _is_optimizer(made)}
    kinds["Lion"] = optim.Lion
    if name not in kinds:
        raise ConfigError(f"--optimizer {name}: there is no such optimizer; choose from {', '.join(sorted(kinds))}")
    parameters = [paddle.create_parameter([4, 4], "float32")]
    built = optim.build_optimizer(
        Config(optimizer=lambda given: kinds[name](learning_rate=0.1, parameters=given)), parameters, 1
    )
    if config.rate_factors:
        optim.scale_rates(built, [])  # refuses an optimizer that heeds none
    if len(config.trainable.stages) > 1:
        optim.check_joining(built)
    copies = optim.copies_of_state(built)
    return OptimizerSize(name, copies, bool(optim.take_rows(built, {"weight": parameters[0]})))


def _is_optimizer(made: Any) -> bool:
    import paddle

    base = paddle.optimizer.Optimizer
    return isinstance(made, type) and issubclass(made, base) and made is not base
