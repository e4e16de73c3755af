"""Builds the documentation as a site in build/site.

    python tools/make_site.py

The pages of docs/ are written for readers of the repository. This program copies them to build/site-source, into one
folder for each language, and has Zensical make a site of each. On the way it
* turns links to other Markdown files of the repository, such as ../README.md, into links to pages of the site,
* turns links to source files into their names,
* removes the marks by which the tests know how to run a block of code.

Zensical fails on a link to a page or heading that does not exist. This program fails on such a link between languages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Optional
from urllib.parse import unquote

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
LANGUAGES = {"en": "English", "zh": "中文"}
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def main() -> None:
    """Builds the site, or ends with what is wrong."""
    pages = find_pages()
    source, site = BUILD / "site-source", BUILD / "site"
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    for page in pages:
        target = source / place_of(page)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(convert(page, pages), encoding="utf-8")
    for language in LANGUAGES:
        shutil.copytree(DOCS / "images", source / language / "images")
        build(language, source / language, pages)
    problems = broken_links(site)
    if problems:
        sys.exit("\n".join(problems))
    print(f"{site / 'index.html'}: {len(pages)} pages")


def find_pages() -> list[Path]:
    """Returns the Markdown files of docs/, and those elsewhere in the repository that they lead to."""
    pages = [path for folder in (DOCS, DOCS / "zh") for path in sorted(folder.glob("*.md"))]
    for page in pages:  # grows on the way
        for _, _, target, _ in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            path = resolve(page, target)
            if path is not None and path.suffix == ".md" and path.is_file() and path not in pages:
                pages.append(path)
    return pages


def resolve(page: Path, target: str) -> Optional[Path]:
    """Returns the file of the repository that a link of a page names, or None for other links."""
    if not target or "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = Path(os.path.normpath(page.parent / target))
    return path if path.is_relative_to(ROOT) else None


def place_of(path: Path) -> Path:
    """Returns where a file of the repository is in the source of the site: first the language, then its place there."""
    if path.is_relative_to(DOCS / "zh"):
        return "zh" / path.relative_to(DOCS / "zh")
    if path.is_relative_to(DOCS):
        return "en" / path.relative_to(DOCS)
    return "en" / Path("project") / path.relative_to(ROOT)


def url_of(path: Path) -> str:
    """Returns where a file of the repository is in the site: English at the top, other languages in their folders."""
    place = place_of(path)
    url = place.relative_to("en") if place.parts[0] == "en" else place
    return str(url.with_name("index.html") if url.name == "README.md" else url.with_suffix(".html"))


def convert(page: Path, pages: list[Path]) -> str:
    """Returns the text of a page with the links and the blocks of the site."""

    def link(match: re.Match) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = resolve(page, target)
        is_source = path is not None and path.suffix != ".md" and not path.is_relative_to(DOCS)
        if path is None or not (path.exists() or is_source):  # Zensical reports a file that does not exist
            return match[0]
        if image or path in pages and place_of(path).parts[0] == place_of(page).parts[0]:
            language = place_of(page).parts[0]
            place = Path(language, path.relative_to(DOCS)) if image else place_of(path)
            return f"{image}[{text}]({os.path.relpath(place, place_of(page).parent)}{anchor})"
        if path in pages:  # in the other language: Zensical knows only the pages of one
            return f'<a href="{os.path.relpath(url_of(path), os.path.dirname(url_of(page)) or ".")}{anchor}">{text}</a>'
        return text

    parts = FENCE.split(page.read_text(encoding="utf-8"))
    parts[::2] = [LINK.sub(link, prose) for prose in parts[::2]]
    parts[1::2] = [re.sub(r"^```(\w+) .*", r"```\1", block) for block in parts[1::2]]
    return "".join(parts)


def build(language: str, folder: Path, pages: list[Path]) -> None:
    """Has Zensical build the site of a language; ends the program when it fails."""
    index = (folder / "README.md").read_text(encoding="utf-8")
    order = dict.fromkeys(re.findall(r"\]\((\w+\.md)\)", index))
    others = [place_of(page) for page in pages if place_of(page).parts[:2] == (language, "project")]
    top = "" if language == "en" else "../"
    config = {
        "INHERIT": "../mkdocs.yml",
        "docs_dir": f"site-source/{language}",
        "site_dir": "site" if language == "en" else f"site/{language}",
        "theme": {"language": language, "custom_dir": "../tools/site_theme"},
        "nav": ["README.md", *order, *(str(place.relative_to(language)) for place in others)],
        "extra": {
            "generator": False,
            "alternate": [
                {"name": name, "lang": code, "link": top + ("" if code == "en" else f"{code}/")}
                for code, name in LANGUAGES.items()
            ],
        },
    }
    file = BUILD / f"site-{language}.yml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(file)]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if process.returncode:
        plain = re.sub(r"\x1b\[[\d;]*m", "", process.stdout)  # its colours separate the letters of a word
        sys.exit(plain.partition("Traceback")[0] or plain)


class Addresses(HTMLParser):
    """The links and the anchors of one HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        """Notes the addresses of one element."""
        known = dict(attributes)
        self.links += [known[name] for name in ("href", "src") if known.get(name)]
        self.anchors |= {known[name] for name in ("id", "name") if known.get(name)}


def broken_links(site: Path) -> list[str]:
    """Returns a line for each link within the site that leads nowhere."""
    pages = {
        path: Addresses(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"
    }
    problems = []
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:|//", target):
                continue
            place = Path(os.path.normpath(path.parent / target)) if target else path
            if not place.exists() or anchor and place in pages and anchor not in pages[place].anchors:
                problems.append(f"{path.relative_to(site)}: {link} leads nowhere")
    return problems


if __name__ == "__main__":
    main()
