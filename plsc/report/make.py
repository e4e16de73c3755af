"""Makes the report: the page, and a PNG file of each chart."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from PIL import Image, UnidentifiedImageError

from plsc.errors import ConfigError
from plsc.machine.files import replace_file
from plsc.report.document import check_replaceable
from plsc.report.headline import headline
from plsc.report.run_folder import file_stem, read_runs


def make_report(folders: Sequence[Path], output: Path, png_folder: Optional[Path] = None) -> dict[str, Any]:
    """Writes one HTML page about runs.

    Args:
        folders: Folders of the runs, as set by `set_model_save_dir`.
        output: The page. An earlier report is replaced; any other file is not.
        png_folder: Folder in which each chart is also written as a PNG file; None writes none.

    Returns:
        `report` and `png`, the files written; `bytes`, the size of the page; and `runs`, the headline numbers of each
        run.

    Raises:
        ConfigError: A package is missing, or a file cannot be written.
        DataError: A folder is not that of a run.
    """
    for package in ("matplotlib", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"a report needs {package}: pip install '.[report]' in the plsc clone")
    from plsc.report.page import GENERATOR, Page  # It loads matplotlib, which takes long.

    check_replaceable(output, GENERATOR, "report", "--output")
    runs = read_runs(list(folders))
    numbers = [headline(run) for run in runs]
    page = Page(runs, numbers)
    data = page.html().encode()
    charts = {} if png_folder is None else _charts(page, png_folder)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, data)
        for path, content in charts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
    except OSError as problem:
        raise ConfigError(
            f"{problem.filename or output}: cannot be written ({problem.strerror}); free space, or name another place"
        ) from None
    return {"report": str(output), "bytes": len(data), "png": [str(path) for path in charts], "runs": numbers}


def report_lines(made: dict[str, Any]) -> list[str]:
    """Returns lines for humans about what `make_report` made."""
    lines = [f"{made['report']}: {made['bytes'] / 1000:,.0f} kB"]
    if made["png"]:
        lines.append(f"{Path(made['png'][0]).parent}: {len(made['png'])} charts")
    return [*lines, *(f"note: {run['name']}: {note}" for run in made["runs"] for note in run["notes"])]


def _charts(page: Any, folder: Path) -> dict[Path, bytes]:
    from plsc.report.charts import SOFTWARE

    found: dict[Path, bytes] = {}
    for chart in page.charts:
        stem, number = file_stem(chart.name), 1
        path = folder / f"{stem}.png"
        while path in found:
            number += 1
            path = folder / f"{stem}_{number}.png"
        if path.exists() and not _is_chart(path, SOFTWARE):
            raise ConfigError(f"{path}: exists, and is not a chart of a report; name another folder with --png")
        found[path] = chart.png()
    return found


def _is_chart(path: Path, software: str) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == software)
    except (OSError, UnidentifiedImageError, ValueError):
        return False
