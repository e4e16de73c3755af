"""What the commands share that work with a trained model: the options, and the `Entry` they describe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from plsc import settings
from plsc.arguments import at_least
from plsc.errors import ConfigError
from plsc.machine import launch

if TYPE_CHECKING:
    from plsc.entry import Entry


def add_options(parser: argparse.ArgumentParser, exports: bool = False) -> None:
    """Adds `--checkpoint`, `--set` and `--config`; with `exports` also `--model`, which may stand in its place."""
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--checkpoint", metavar="DIR", help="folder of the checkpoint, such as output/19")
    if exports:
        network.add_argument("--model", metavar="DIR", help="or folder of an export, of any precision and network")
    settings.add_options(parser)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Adds `--ranks`, for `on_ranks`."""
    parser.add_argument(
        "--ranks", type=at_least(1), default=1, metavar="N", help="processes that share the work (default 1)"
    )


def on_ranks(options: argparse.Namespace, action: Callable[[], int]) -> int:
    """The exit status of `action`, which runs here, or in as many processes as `--ranks` says."""
    if options.ranks == 1 or "PADDLE_TRAINER_ID" in os.environ:  # the latter in those processes
        return action()
    return launch.run([sys.executable, "-m", "plsc", *options.arguments], options.ranks)


def entry_of(options: argparse.Namespace) -> Entry:
    """An entry with the export or the model of the checkpoint, and the settings of the command line.

    Raises:
        ConfigError: its model is no built-in one.
    """
    from plsc.checkpoint import open_checkpoint
    from plsc.entry import Entry
    from plsc.models import MODEL_NAMES

    os.environ.update(settings.to_environment(settings.read_options(options)))
    entry = Entry()
    entry.set_model_save_dir(None)
    if getattr(options, "model", None):
        entry.set_export_dir(options.model)
        return entry
    meta = open_checkpoint(Path(options.checkpoint)).meta
    if meta["model"] not in MODEL_NAMES:
        raise ConfigError(
            f"{options.checkpoint}: its model {meta['model']!r} is the user's own, which only a script knows; call "
            "set_model, set_checkpoint_dir and the action there, or export it and name the export with --model"
        )
    entry.set_model_name(meta["model"])
    entry.set_image_shape(meta["image_shape"])
    entry.set_emb_size(meta["emb_dim"])
    entry.set_class_num(meta["num_classes"])
    entry.set_checkpoint_dir(options.checkpoint)
    return entry
