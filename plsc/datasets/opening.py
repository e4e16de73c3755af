"""Opens a data set for a tool: every format that training reads, and base64 parts that are not split yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from plsc.arguments import Parser
from plsc.data.inputs import Inputs
from plsc.data.records import Records
from plsc.data.sources import DATA_FORMATS, format_of, open_images
from plsc.datasets.unsplit import LIST_NAMES, UnsplitLines
from plsc.errors import DataError

UNSPLIT = "base64 parts"
_LEAST = ("folder",)  # formats that take every folder, even one that a list of parts describes better


def open_data(path: str, data_format: str = "auto", inputs: Optional[Inputs] = None) -> tuple[str, Records]:
    """Opens all images of a data set.

    Args:
        path: Data of a format that `set_dataset_dir` takes; or base64 parts that are not split for the ranks yet, by
            their folder or by the file that lists them. With `inputs` also the address of such data in a store.
        data_format: A name of `plsc.data.sources.FORMATS`, or 'auto'.
        inputs: Fetches what is in a store.

    Returns:
        The name of the format, and the images.

    Raises:
        DataError: The path holds no such data, or no image, or is an address; or the data has a mistake.
        PlscError: The data cannot be fetched.
    """
    if inputs is not None:
        streamed = inputs.in_order(path, data_format)
        if streamed is not None:
            return "base64", streamed
        path = inputs.data(path, data_format)
    _check_local(path)
    name = format_of(path) if data_format == "auto" else data_format
    file_list = _list_of_parts(path)
    records: Records
    if file_list and (name is None or name in _LEAST or (data_format == "base64" and format_of(path) != "base64")):
        name, records = UNSPLIT, UnsplitLines(file_list)
    else:
        records = open_images(path, None, 0, 1, data_format=data_format)
    if not records.num_images:
        raise DataError(f"{path}: holds no image")
    return str(name), records


def _check_local(path: str) -> None:
    """Raises DataError if a path is the address of data on another machine."""
    scheme, is_address, _ = path.partition("://")
    if is_address and not os.path.exists(path):
        shown = f"{scheme}://..." if "@" in path else path  # It may hold a password.
        raise DataError(f"{shown}: is not on this machine; copy or mount the data, and give its path here")


def _list_of_parts(path: str) -> str:
    """Returns the file that lists base64 parts in a folder, or `path` itself if it can be one; '' if there is none."""
    if os.path.isfile(path):
        return path if path.endswith(".txt") else ""
    found = (os.path.join(path, name) for name in LIST_NAMES)
    return next(filter(os.path.isfile, found), "")


def test_sets_near(path: str) -> list[str]:
    """Returns the names of the files in the folder of a data set that look like test sets, sorted."""
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if name.endswith(".bin") or ("pairs" in name and name.endswith(".txt"))]


def add_format(parser: Parser, **options: Any) -> None:
    """Adds `--format` to a command."""
    parser.add_argument(
        "--format",
        choices=DATA_FORMATS,
        default="auto",
        help="format of SOURCE (default: recognised by the names of its files)",
        **options,
    )
