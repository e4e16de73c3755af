"""Tests that commands, options, files and links on the pages exist, and that Chinese pages match the English ones."""

import re
import runpy
import shlex

import pages
import pytest
from pages import CHINESE, DOCS, PAGES
from ranks import ROOT

from plsc import cli
from plsc.data import glyphs
from plsc.shuffle import command as base64_command

EVERY_PAGE = [*PAGES, *CHINESE]
PARSERS = {
    "python -m plsc.data.glyphs ": glyphs.make_parser,
    "python -m plsc ": cli.make_parser,
    "plsc ": cli.make_parser,
    "python tools/process_base64_files.py ": base64_command.make_parser,
}
# Files that a command of the page makes, or that belong to the reader.
NOT_OF_THE_PROJECT = re.compile(r"demo/work\b")

NOT_TRANSLATED = {"api.md"}  # it is generated from docstrings, and the Chinese page says so


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_command_lines_parse(page):
    for line in pages.commands(page):
        start = next((start for start in PARSERS if line.startswith(start)), None)
        if start is None:
            continue
        try:
            PARSERS[start]().parse_args(shlex.split(line[len(start) :]))
        except SystemExit as end:
            assert end.code == 0, line


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_options_in_the_text_exist(page):
    commands = cli.make_parser()._subparsers._group_actions[0].choices
    for line in re.findall(r"`(?:python -m )?plsc ((?!<)[^`]+)`", pages.prose(page)):
        words = line.split()
        assert words[0] in commands, line
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        known = [*commands[words[0]]._option_string_actions, "--fs", "--user"]
        assert set(options) <= set(known) or words[0] == "run", line


@pytest.mark.parametrize("script", sorted((ROOT / "demo").glob("*.sh")), ids=name)
def test_command_lines_of_the_demo_parse(script):
    text = script.read_text().replace("\\\n", " ").replace('"$python"', "python")
    for line in re.findall(r"^(python .*)$", text, re.M):
        for start in PARSERS:
            if line.startswith(start):
                PARSERS[start]().parse_args(shlex.split(line[len(start) :]))


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_extras_that_a_page_installs_exist(page):
    extras = re.findall(r'"(\w+)": \[', (ROOT / "setup.py").read_text())
    for named in re.findall(r"pip install '\.\[([\w,]+)\]'", page.read_text()):
        assert set(named.split(",")) <= set(extras), named


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_named_files_exist(page):
    for path in re.findall(r"(?<![\w./])((?:demo|tools|tests|plsc|docs)/[\w./]+\.\w+)", page.read_text()):
        assert NOT_OF_THE_PROJECT.match(path) or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", pages.prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if anchor:
            assert anchor in [pages.anchor(heading) for heading in pages.headings(place)], target


def test_the_api_reference_is_up_to_date_with_the_docstrings():
    tool = runpy.run_path(str(ROOT / "tools" / "make_api_reference.py"))
    assert (DOCS / "api.md").read_text() == tool["page"](), "run python tools/make_api_reference.py"


def test_files_and_pages_named_in_the_source_exist():
    """Checks references such as `see docs/hdfs.md` in docstrings and messages."""
    for source in (ROOT / "plsc").rglob("*.py"):
        for path in re.findall(r"\b((?:docs|demo|tools|tests)/[\w/]+\.(?:md|py|sh))", source.read_text()):
            assert (ROOT / path).exists(), f"{source}: {path}"


def test_every_page_has_a_chinese_page_and_both_indexes_link_all_pages():
    assert {path.name for path in DOCS.glob("*.md")} == {path.name for path in CHINESE}
    for index in (DOCS / "README.md", DOCS / "zh" / "README.md"):
        linked = set(re.findall(r"\]\((\w+\.md)\)", index.read_text()))
        assert linked == {path.name for path in DOCS.glob("*.md")} - {"README.md"}, index


@pytest.mark.parametrize(
    "chinese, english",
    [(chinese, english) for chinese, english in CHINESE.items() if english.name not in NOT_TRANSLATED],
    ids=lambda page: page.name,
)
def test_a_chinese_page_has_the_sections_code_and_commands_of_the_english_page(chinese, english):
    levels = [[heading.split()[0] for heading in pages.headings(page)] for page in (chinese, english)]
    assert levels[0] == levels[1]
    code = [
        [pages.meaning(block.text) for block in pages.fenced(page) if block.kind == "python"]
        for page in (chinese, english)
    ]
    assert code[0] == code[1]
    marks = [[(block.kind, block.mark.split()[:1]) for block in pages.fenced(page)] for page in (chinese, english)]
    assert marks[0] == marks[1]
    assert pages.commands(chinese) == pages.commands(english)
