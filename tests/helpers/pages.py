"""Reads the pages of the documentation: their fenced blocks, commands, headings and anchors."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from ranks import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "demo/README.md")),
    *sorted(DOCS.glob("*.md")),
]
# Maps each Chinese page to the English page that it mirrors. docs/zh/README.md mirrors the project's README.
CHINESE = {
    path: (ROOT if path.name == "README.md" else DOCS) / path.name for path in sorted((DOCS / "zh").glob("*.md"))
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: The first word after the fence, such as "python".
        mark: The words after it, such as "continues".
        text: What stands between the fences.
        line: The number of the line of the page at which the text begins.
    """

    kind: str
    mark: str
    text: str
    line: int


@functools.cache
def fenced(page: Path) -> tuple[Block, ...]:
    """Returns the fenced blocks of a page."""
    content = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", content, re.M | re.S):
        kind, _, mark = match[1].partition(" ")
        found.append(Block(kind, mark.strip(), match[2], content.count("\n", 0, match.start(2)) + 1))
    return tuple(found)


def prose(page: Path) -> str:
    """Returns a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(page: Path) -> list[str]:
    """Returns the command lines of a page in order, indented ones and those of shell blocks, without their comments."""
    shell = "".join(block.text for block in fenced(page) if block.kind in ("sh", "bash", "shell", "console"))
    text = prose(page) + re.sub("^", "    ", shell, flags=re.M)
    lines = re.findall(r"^ {4}(?:\$ )?((?:python|plsc|bash|pip|spark-submit|export|cd|git) .*)$", text, re.M)
    return [re.sub(r"\s+#.*", "", line).rstrip() for line in lines]


def headings(page: Path) -> list[str]:
    """Returns the headings of a page, with their #."""
    return re.findall(r"^#+ .*$", prose(page), re.M)


def anchor(heading: str) -> str:
    """Returns the anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lstrip("#").strip()).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def meaning(code: str) -> str:
    """Returns the syntax tree of Python code without comments and docstrings, which are translated."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
