"""`plsc import-weights SOURCE OUTPUT`."""

from __future__ import annotations

import argparse
import dataclasses

from plsc.arguments import add_command, add_json, at_least, print_json, sides
from plsc.commands import places
from plsc.errors import counted


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "import-weights",
        "make a checkpoint of weights that another program has saved",
        [
            "plsc import-weights backbone.pth ms1mv3_r50",
            "plsc import-weights net.pth net --model IResNet18 --order bgr --std 128",
            "plsc import-weights model.pt run --head softmax_fc_gpu_0.pt softmax_fc_gpu_1.pt",
        ],
        "The commands test, predict and export take the checkpoint, and training starts from it with "
        "set_checkpoint_dir and set_head_init('fresh'). SOURCE is a file of PyTorch (.pt, .pth), Paddle (.pdparams), "
        "safetensors or ONNX. Nothing in it is run. The networks of InsightFace's arcface_torch and of PLSC 2 are "
        "recognised.",
    )
    parser.add_argument("source", type=places.place(places.FOLDER), metavar="SOURCE", help="file with the weights")
    parser.add_argument(
        "output", type=places.place(places.NEW_FOLDER), metavar="OUTPUT", help="new folder of the checkpoint"
    )
    parser.add_argument("--model", metavar="NAME", help="name of the built-in network, if it is not recognised")
    parser.add_argument("--emb", type=at_least(1), metavar="D", help="size of an embedding, if it is not recognised")
    parser.add_argument(
        "--image-shape", type=sides, metavar="C,H,W", help="shape of an image, if it is not recognised (3,112,112)"
    )
    parser.add_argument(
        "--head",
        nargs="+",
        type=places.place(places.FOLDER),
        default=[],
        metavar="FILE",
        help="files with the class centres",
    )
    parser.add_argument(
        "--std",
        type=float,
        default=127.5,
        help="what the network's pixels, less 127.5, were divided by (default 127.5)",
    )
    parser.add_argument(
        "--order", choices=("rgb", "bgr"), default="rgb", help="order of the channels of its images (default rgb)"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave tensors that the file does not have at random values"
    )
    places.add_retrying(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.config import Pixels
    from plsc.weights.importing import import_weights

    report = import_weights(
        options.source,
        options.output,
        model=options.model,
        heads=options.head,
        pixels=Pixels(options.std, options.order),
        strict=not options.allow_missing,
        emb_dim=options.emb,
        image_shape=options.image_shape,
    )
    if options.json:
        print_json({"path": str(options.output), **dataclasses.asdict(report)})
        return 0
    for name, why in report.missing.items():
        print(f"left at its random value: {name} ({why})")
    for name in report.unused:
        print(f"not used: {name}")
    classes = f", {counted(report.classes, 'class')}" if report.classes else ", without class centres"
    print(
        f"{options.output}: {report.model}, embedding size {report.emb_dim}, images {report.image_shape[1]}x"
        f"{report.image_shape[2]}, {counted(report.tensors, 'tensor')}{classes}"
    )
    return 0
