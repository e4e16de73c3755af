"""The file `run.json`, which records the settings, the ranks and the machine of a run."""

from __future__ import annotations

import platform
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import paddle

from plsc import parallel
from plsc.config import Config, plain_settings
from plsc.data.class_names import CLASSES
from plsc.errors import ConfigError
from plsc.machine import processor, threads
from plsc.machine.files import replace_file
from plsc.machine.json_files import json_text, read_json
from plsc.machine.memory import machine_memory
from plsc.version import __version__

NAME = "run.json"


def write_run_record(
    save_dir: Optional[Path], config: Config, run: str, resumed: bool, steps_per_epoch: Optional[int]
) -> None:
    """Writes `<save_dir>/run.json` on rank 0, and `classes.txt` if the classes have names.

    Does nothing without a save folder.

    Args:
        save_dir: Folder of the run, or None.
        config: The settings.
        run: Identifies the run; the record of an earlier start of the same run is continued.
        resumed: Whether the run was resumed from a checkpoint.
        steps_per_epoch: Steps in an epoch; None when a reader cannot tell.

    Raises:
        ConfigError: The file cannot be written.
    """
    if save_dir is None or parallel.rank() != 0:
        return
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    earlier = _earlier(save_dir / NAME, run) if resumed else {}
    record = {
        "run": run,
        "started": earlier.get("started", now),
        "resumed": int(earlier.get("resumed", 0)) + 1 if resumed else 0,
        "resumed_at": now if resumed else None,
        "ranks": parallel.world_size(),
        "steps_per_epoch": steps_per_epoch,
        "settings": plain_settings(config),
        "objects": objects_of(config),
        "machine": machine(),
    }
    try:
        replace_file(save_dir / NAME, json_text(record, indent=1).encode())
        if config.class_names:
            replace_file(save_dir / CLASSES, "".join(f"{name}\n" for name in config.class_names).encode())
    except OSError as problem:
        raise ConfigError(
            f"{save_dir / NAME}: cannot write there ({problem.strerror}); choose another folder with set_model_save_dir"
        ) from None


def objects_of(config: Config) -> dict[str, Any]:
    """Returns the class names of the objects that the user has handed over, by setting."""
    values = {name: getattr(config, name) for name in Config.OBJECTS if name not in ("callbacks", "class_names")}
    names: dict[str, Any] = {name: type(value).__name__ for name, value in values.items() if value is not None}
    if config.callbacks:
        names["callbacks"] = [type(one).__name__ for one in config.callbacks]
    return names


def machine() -> dict[str, Any]:
    """Describes what this process runs on; a value that the system does not tell is None."""
    return {
        "cpu": processor.name(),
        "cores": threads.cores(),
        "memory": machine_memory(),
        "gpu": None if parallel.on_cpu() else paddle.device.cuda.get_device_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "paddle": paddle.__version__,
        "plsc": __version__,
    }


def _earlier(path: Path, run: str) -> dict[str, Any]:
    """Returns what the same run recorded before; it is empty on a machine where the run has not been before."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("run") == run else {}
