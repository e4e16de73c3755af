"""The numbers that a run is judged by."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Optional

import numpy as np

from plsc.errors import counted
from plsc.metrics.records import numbers_of
from plsc.report.run_folder import RunFolder


def headline(run: RunFolder) -> dict[str, Any]:
    """Returns what `--json` prints about a run, with None for what is unknown.

    `test` holds every number of the last test by set, such as `{'lfw': {'accuracy': 0.99, 'at_far/1e-4': 0.9}}`.
    """
    last = run.tests[-1] if run.tests else None
    steps = [*run.train["step"][-1:], *([last.step] if last else [])]
    speed = run.train["images_per_second"]
    skipped = run.last("skipped_steps")
    return {
        "name": run.name,
        "folder": str(run.folder),
        "steps": int(max(steps)) if steps else 0,
        "epochs": last.epoch + 1 if last else None,
        "loss": run.last("loss"),
        "images_per_second": float(np.median(speed[np.isfinite(speed)])) if np.isfinite(speed).any() else None,
        "skipped_steps": None if skipped is None else int(skipped),
        "seconds": run.seconds,
        "resumed": run.record.get("resumed"),
        "test": {} if last is None else {name: _finite(values) for name, values in last.sets.items()},
        "notes": run.notes,
    }


def _finite(values: dict[str, Any]) -> dict[str, Optional[float]]:
    """Returns the numbers with None for NaN, which JSON cannot express."""
    return {name: one if math.isfinite(one) else None for name, one in numbers_of(values)}


def headline_rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (title, value) for each headline number, as texts for humans."""
    rows = []
    for name, measures in numbers["test"].items():
        accuracy, std, tar = (measures.get(key) for key in ("accuracy", "std", "tar@1e-3"))
        if accuracy is not None:
            rows.append(
                (f"{name}: accuracy", f"{accuracy:.2%}" + ("" if std is None else f"\u00a0\u00b1\u00a0{100 * std:.2f}"))
            )
        if tar is not None:
            rows.append((f"{name}: TAR at FAR 1e-3", f"{tar:.2%}"))
        if measures.get("rank@1") is not None:
            rows.append((f"{name}: rank-1 rate", f"{measures['rank@1']:.2%}"))
    rows += [
        ("Loss, last record", _or_dash(numbers["loss"], "{:.4g}")),
        ("Images per second, median", _or_dash(numbers["images_per_second"], "{:,.1f}")),
        ("Steps", f"{numbers['steps']:,}"),
        ("Epochs tested", _or_dash(numbers["epochs"], "{:,}")),
        ("Start to last record", "\u2013" if numbers["seconds"] is None else duration(numbers["seconds"])),
        ("Skipped steps", _or_dash(numbers["skipped_steps"], "{:,}")),
    ]
    if numbers["resumed"]:
        rows.append(("Resumed", counted(numbers["resumed"], "time")))
    return rows


def duration(seconds: float) -> str:
    """Returns a duration as a text, such as '2 h 05 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest:02d} s"
    days = timedelta(hours=hours).days
    return f"{days} d {hours - 24 * days} h" if days else f"{hours} h {minutes:02d} min"


def _or_dash(value: Optional[float], form: str) -> str:
    return "\u2013" if value is None else form.format(value)
