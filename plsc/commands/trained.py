"""What the commands that use a trained network share: their options, and the settings that these give."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plsc import arguments, settings
from plsc.errors import ConfigError
from plsc.machine import launch

if TYPE_CHECKING:
    from plsc.entry import Entry

_Settings = Mapping[str, Any]
_NONE: _Settings = {}


def add_options(parser: argparse.ArgumentParser, exports: bool = False) -> None:
    """Adds `--checkpoint`, `--set` and `--config`, and with `exports` also `--model`, which replaces `--checkpoint`."""
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--checkpoint", metavar="DIR", help="folder of the checkpoint, such as output/19")
    if exports:
        network.add_argument("--model", metavar="DIR", help="folder of an export, instead of a checkpoint")
    settings.add_options(parser)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Adds `--ranks`, for `on_ranks`."""
    arguments.add_ranks(parser, "number of processes that share the work (default 1)")


def on_ranks(options: argparse.Namespace, action: Callable[[], int]) -> int:
    """Runs `action` in this process, or the whole command in as many processes as `--ranks` says.

    Returns:
        The exit status.
    """
    if options.ranks == 1 or "PADDLE_TRAINER_ID" in os.environ:  # the latter in those processes
        return action()
    return launch.run([sys.executable, "-m", "plsc", *options.arguments], options.ranks)


def entry_of(options: argparse.Namespace, own: _Settings = _NONE, defaults: _Settings = _NONE) -> Entry:
    """Returns an `Entry` with the settings of `settings_of`."""
    from plsc.entry import Entry

    return Entry(settings=settings_of(options, own, defaults))


def settings_of(options: argparse.Namespace, own: _Settings = _NONE, defaults: _Settings = _NONE) -> dict[str, Any]:
    """Returns the settings of a command line with `add_options`.

    `--config` wins over what the checkpoint says about its network, `--set` over both, and other options over `--set`.

    Args:
        options: The parsed command line.
        own: The settings of the command's other options. A value of None stands for an option that was not given.
        defaults: The defaults of the command, where they are not those of training.

    Raises:
        ConfigError: A setting does not exist, or a script made the model of the checkpoint.
        CheckpointError: The checkpoint cannot be read.
    """
    chosen = settings.read_options(options)
    given = {name: value for name, value in own.items() if value is not None}
    if getattr(options, "model", None):
        network, place = {}, {"export_dir": options.model}
    else:
        network, place = _settings_of_checkpoint(options.checkpoint), {"checkpoint_dir": options.checkpoint}
    return {"model_save_dir": "", **defaults, **network, **chosen, **place, **given}


def _settings_of_checkpoint(folder: str) -> dict[str, Any]:
    from plsc.checkpoint import open_checkpoint
    from plsc.models import MODEL_NAMES

    meta = open_checkpoint(Path(folder)).meta
    if meta["model"] not in MODEL_NAMES:
        raise ConfigError(
            f"{folder}: its model {meta['model']!r} is a custom one, which only the script knows; call set_model, "
            "set_checkpoint_dir and the action in the script, or export the model there and name the export with "
            "--model"
        )
    return {
        "model_name": meta["model"],
        "image_shape": meta["image_shape"],
        "emb_dim": meta["emb_dim"],
        "num_classes": meta["num_classes"],
    }
