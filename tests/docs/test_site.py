"""The documentation as a site, built as CONTRIBUTING.md says."""

import importlib.util
import json
import runpy
import shutil
import subprocess
import sys

import pytest
from ranks import ROOT, TIMEOUT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None,
    reason="Zensical, which needs Python 3.11, is not installed: pip install '.[docs]'",
)


@pytest.fixture
def copy(tmp_path):
    """What the site is made of, in a folder of its own."""
    for name in ("docs", "tools", "demo"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("work", "__pycache__"))
    for path in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml"]:
        shutil.copy(path, tmp_path)
    return tmp_path


def build(folder):
    command = [sys.executable, folder / "tools" / "make_site.py"]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)


def test_every_page_is_in_the_site_in_both_languages_and_found_by_its_search(copy):
    process = build(copy)
    assert process.returncode == 0, process.stdout + process.stderr
    site = copy / "build" / "site"
    for folder, language in ((site, "en"), (site / "zh", "zh")):
        pages = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} - {"README.html"}
        assert {"index.html", *pages} <= {path.name for path in folder.glob("*.html")}
        assert f'<html lang="{language}"' in (folder / "head.html").read_text()
        found = json.loads((folder / "search.json").read_text())
        assert {"head.html", "settings.html"} <= {item["location"].partition("#")[0] for item in found["items"]}
    # The language menu leads to the same page.
    assert '/zh/head.html" hreflang="zh"' in (site / "head.html").read_text()
    assert 'href="../head.html" hreflang="en"' in (site / "zh" / "head.html").read_text()
    assert 'href="../head.html#' in (site / "project" / "index.html").read_text(), "README.md leads into the site"
    assert "```" not in (site / "quickstart.html").read_text()


def test_links_that_lead_nowhere_fail(copy):
    """Those that the generator finds end its run; then those that only the finished pages show."""
    page = copy / "docs" / "zh" / "head.md"
    text = page.read_text()
    page.write_text(f"{text}\n[这里](no_such_page.md)\n[这里](settings.md#no-such-heading)\n")
    process = build(copy)
    said = process.stdout + process.stderr
    assert process.returncode == 1 and "no_such_page" in said and "no-such-heading" in said
    page.write_text(f"{text}\n[here](../settings.md#no-such-heading)\n")
    process = build(copy)
    assert process.returncode == 1
    assert "zh/head.html: ../settings.html#no-such-heading" in process.stdout + process.stderr


def test_marks_of_blocks_and_links_to_source_files_are_left_out():
    site = runpy.run_path(str(ROOT / "tools" / "make_site.py"))
    page = ROOT / "docs" / "head.md"
    pages = site["find_pages"]()
    assert {ROOT / "README.md", ROOT / "demo" / "README.md"} <= set(pages)
    assert "](../plsc" not in site["convert"](page, pages)
    text = site["convert"](ROOT / "docs" / "custom.md", pages)
    assert "```python\n" in text and "```python continues" not in text
