"""Data sets of some of the characters of the `glyphs` fixture, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_set(folder: Path, glyphs: Path, classes: Sequence[int], named: bool = True, first: int = 0) -> Path:
    """Writes a data set and returns its folder.

    Args:
        folder: The folder, which is made.
        glyphs: Folder of the glyphs.
        classes: Which of their characters become the classes, in the order of the numbers.
        named: Whether the classes have names, `glyph <number of the character>`.
        first: Number of the first class.
    """
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(glyphs / "images")
    label_of = {character: label for label, character in enumerate(classes, first)}
    lines = [line.rpartition(" ") for line in (glyphs / "label.txt").read_text(encoding="utf-8").splitlines()]
    own = [f"{path} {label_of[int(k)]}\n" for path, _, k in lines if int(k) in label_of]
    (folder / "label.txt").write_text("".join(own), encoding="utf-8")
    if named:
        names = [f"glyph {character}\n" for character in classes]
        (folder / "classes.txt").write_text("".join(names), encoding="utf-8")
    return folder
