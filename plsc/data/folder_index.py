"""The index of a folder tree in a file of its folder, so that millions of files are listed once, not at every start.

It holds the names of all images, and the times of each subfolder, which a file that is added, removed or renamed
changes. So the next start asks for the state of each subfolder instead of listing it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.data.image_folders import (
    INDEX,
    LeftOut,
    Visited,
    change_times,
    entries_of,
    image_suffixes,
    runs_of_images,
)
from plsc.data.index_files import CLOCK, bytes_of, open_index, text_of, write_index
from plsc.data.packed import FolderPacker, NamesInFolders, PackedTexts

_VERSION = 2
_FEWEST = 100_000  # images; to list fewer takes no longer than half a second


class Listing(NamedTuple):
    """The images of a folder tree.

    Attributes:
        files: Their names; None if there are none.
        left_out: What was left out.
    """

    files: Optional[NamesInFolders]
    left_out: LeftOut


def listed(root: bytes, without: Collection[bytes], keeps_index: bool) -> Listing:
    """Returns the images in the subfolders of a folder: from its index if that is up to date, or else from its folders.

    Args:
        root: The folder.
        without: Names of subfolders that are not looked into.
        keeps_index: Whether to write the index of many images into the folder.

    Raises:
        DataError: A folder cannot be listed.
    """
    found = _load(root, without) if os.path.exists(_path(root)) else None
    if found is not None:
        return found
    began, visited = time.time_ns(), Visited()
    listing = _list(root, without, visited)
    is_final = began - max((names for names, _ in visited.changed), default=0) > CLOCK
    if keeps_index and visited.is_plain and is_final and listing.files and len(listing.files) >= _FEWEST:
        _keep(root, without, listing.files, listing.left_out, visited)
    return listing


def _list(root: bytes, without: Collection[bytes], visited: Visited) -> Listing:
    packer, left_out, is_empty = FolderPacker(), LeftOut(), True
    for run in runs_of_images(root, left_out, without, visited):
        if run.prefix:
            packer.add(run.prefix, run.names)
            is_empty = False
            continue
        for name in run.names:
            left_out.add("images in no subfolder", name)
    return Listing(None if is_empty else packer.finish(), left_out)


def _suffixes() -> list[str]:
    """Returns the suffixes by which files count as images on this machine."""
    return sorted(map(text_of, image_suffixes()))


def _top(root: bytes) -> str:
    """Returns what lies in the folder itself, whose time the index changes."""
    left_out = LeftOut()
    names, folders = entries_of(root, b"", [], left_out)
    return text_of(b"\0".join(name + b"/" * (name in folders) for name in names)) + f"\0{left_out}"


def _path(root: bytes) -> Path:
    return Path(os.fsdecode(root), os.fsdecode(INDEX))


def _keep(root: bytes, without: Collection[bytes], files: NamesInFolders, left_out: LeftOut, visited: Visited) -> None:
    about = {
        "version": _VERSION,
        "without": sorted(map(text_of, without)),
        "images": _suffixes(),
        "top": _top(root),
        "counts": left_out.counts,
        "first": {reason: text_of(name) for reason, name in left_out.first.items()},
        "suffixes": {text_of(suffix): count for suffix, count in left_out.suffixes.items()},
    }
    texts = {
        "names": files.names.buffer,
        "prefixes": files.prefixes.buffer,
        "folders": b"\0".join(visited.folders),
    }
    arrays: dict[str, Any] = {
        **{name: np.frombuffer(data, np.uint8) for name, data in texts.items()},
        "name_ends": files.names.ends,
        "prefix_ends": files.prefixes.ends,
        "firsts": files.firsts,
        "changed": np.array(visited.changed, np.int64),
    }
    write_index(_path(root), about, arrays)


def _load(root: bytes, without: Collection[bytes]) -> Optional[Listing]:
    """Returns what the index says; None if it is damaged, or the folder has changed since it was made."""
    try:
        with open_index(_path(root)) as (about, file):
            if about["version"] != _VERSION or about["without"] != sorted(map(text_of, without)):
                return None
            if about["images"] != _suffixes():  # it was written by another Pillow, which opens other formats
                return None
            folders, changed = file["folders"].tobytes().split(b"\0"), file["changed"].tolist()
            if len(folders) != len(changed) or about["top"] != _top(root):
                return None
            for folder, when in zip(folders, changed):
                if change_times(os.path.join(root, folder)) != tuple(when):
                    return None
            names = PackedTexts(file["names"].data, file["name_ends"])
            prefixes, firsts = PackedTexts(file["prefixes"].data, file["prefix_ends"]), file["firsts"]
        if firsts[-1] != len(names) or len(firsts) != len(prefixes) + 1:
            return None
        left_out = LeftOut(
            Counter({str(reason): int(count) for reason, count in about["counts"].items()}),
            {str(reason): bytes_of(name) for reason, name in about["first"].items()},
            Counter({bytes_of(suffix): int(count) for suffix, count in about["suffixes"].items()}),
        )
        return Listing(NamesInFolders(names, prefixes, firsts), left_out)
    except Exception:  # NumPy raises exceptions of many types for damaged files; the folders say what is right.
        return None
