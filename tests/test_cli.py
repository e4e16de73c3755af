"""The manners of all command lines, whichever commands there are."""

import argparse
import json
import shlex
import subprocess
import sys

import pytest
from ranks import environment

from plsc import cli
from plsc.commands import convert_checkpoint
from plsc.data import glyphs
from plsc.shuffle import command as base64_command


def pages(parser, words=()):
    """Each parser of a command line, with the words that lead to it."""
    yield [*words], parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from pages(command, (*words, name))


MAKERS = {"python -m plsc": cli.make_parser, "python tools/process_base64_files.py": base64_command.make_parser,
          "python -m plsc.data.glyphs": glyphs.make_parser}  # fmt: skip
PAGES = [(name, words) for name, maker in MAKERS.items() for words, _ in pages(maker())]
COMMANDS = [words for name, words in PAGES if name == "python -m plsc"]


def refused(maker, words, capsys):
    """What is said about a wrong command line."""
    with pytest.raises(SystemExit) as end:
        maker().parse_args(words)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("program, words", PAGES, ids=str)
def test_every_page_has_examples_that_parse_and_a_meaning_for_every_option(program, words, capsys):
    maker = MAKERS[program]
    (page,) = (parser for path, parser in pages(maker()) if path == words)
    assert page.description and all(action.help or action.choices for action in page._actions)
    with pytest.raises(SystemExit) as end:
        maker().parse_args([*words, "--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.split("examples:\n")[1].splitlines()
    for line in lines:
        (name,) = (name for name in MAKERS if line.strip().startswith(f"{name} "))
        example = shlex.split(line.strip()[len(name) :], comments=True)
        try:
            MAKERS[name]().parse_args(example)
        except SystemExit as end:
            assert end.code == 0 and "--help" in example, line


@pytest.mark.parametrize("program, words", PAGES, ids=str)
def test_a_misspelt_option_gets_a_suggestion_though_others_are_missing(program, words, capsys):
    maker = MAKERS[program]
    (page,) = (parser for path, parser in pages(maker()) if path == words)
    option = max(page._option_string_actions, key=len)
    said = refused(maker, [*words, option[:-2] + option[-1] + option[-2] + "=3"], capsys)
    assert f"did you mean {option} instead of" in said


def test_a_misspelt_command_or_choice_gets_a_suggestion(capsys):
    assert "did you mean convert-checkpoint instead of convert-chekpoint?" in refused(
        cli.make_parser, ["convert-chekpoint", "a", "b"], capsys
    )
    wrong = ["export", "--checkpoint", "a", "--output", "b", "--format", "padle"]
    assert "did you mean paddle instead of padle?" in refused(cli.make_parser, wrong, capsys)
    assert "did you mean" not in refused(cli.make_parser, ["plan", "--xyz"], capsys)


@pytest.mark.parametrize("words", [[], ["hdfs"]])
def test_without_a_command_there_is_the_help_page_and_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2 and "examples:" in capsys.readouterr().err


def test_the_width_of_the_terminal_is_used_up_to_a_limit(monkeypatch):
    longest = {}
    for columns in (60, 100, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = cli.make_parser().format_help().partition("examples:")[0].splitlines()
        longest[columns] = max(map(len, lines))
    assert longest[60] <= 58 < 80 < longest[100] <= 98 and longest[300] <= 110


def test_help_loads_no_paddle():
    """One process for all pages: Paddle takes seconds."""
    code = f"""
import sys
from plsc import cli
for words in {COMMANDS}:
    try:
        cli.main([*words, "--help"])
    except SystemExit:
        pass
sys.exit("paddle" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("usage:") == len(COMMANDS)


def test_ctrl_c_ends_with_130_and_without_a_word(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_checkpoint, "run", interrupted)
    assert cli.main(["convert-checkpoint", "a", "b", "--ranks", "2"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_had_enough_ends_it_quietly():
    """As `| head` does."""
    buffered = {**environment(), "PYTHONUNBUFFERED": ""}
    code = "import os, sys; from plsc import cli; read, write = os.pipe(); os.dup2(write, 1); os.close(read); "
    code += "sys.exit(cli.main(['--help']))"
    process = subprocess.run([sys.executable, "-c", code], env=buffered, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (141, "")


def test_a_failure_is_one_line_and_status_1(tmp_path, capsys):
    assert cli.main(["convert-checkpoint", str(tmp_path / "none"), str(tmp_path / "new"), "--ranks", "2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("plsc: error: ") and said.count("\n") == 1


def test_convert_checkpoint_prints_json(monkeypatch, capsys):
    from plsc.checkpoint import convert

    monkeypatch.setattr(convert, "convert", lambda source, target, ranks: None)
    assert cli.main(["convert-checkpoint", "a", "b", "--ranks", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "b", "ranks": 2}
