"""What holds for all command lines, whichever commands there are."""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ranks import ROOT, TIMEOUT, environment

from plsc import arguments, cli
from plsc.commands import convert_checkpoint
from plsc.data import glyphs
from plsc.errors import ConfigError
from plsc.shuffle import command as base64_command


def pages(parser, words=()):
    """Yields each parser of a command line, with the words that lead to it."""
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
    """Returns the message about a wrong command line."""
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


HOSTILE = ["0", "-1", "", "x", "nan", "inf", "1e6", "1e400G", "1e999999999", "1.5", "9" * 30, "9" * 5000, "1e-9G",
           "1,2", "3,99999,99999"]  # fmt: skip


@pytest.mark.parametrize("program, words", PAGES, ids=str)
def test_an_option_takes_any_text_or_refuses_it(program, words, capsys):
    parser = MAKERS[program]()
    (page,) = (one for path, one in pages(parser) if path == words)
    for action in page._actions:
        for text in HOSTILE if action.option_strings and action.type is not None else ():
            with contextlib.suppress(SystemExit, ConfigError):  # the latter for what is no path and no address
                parser.parse_args([*words, f"{action.option_strings[-1]}={text}"])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text, value", [("1e6", 10**6), ("12", 12), ("1.5", None), ("1e99", None), ("0", None)])
def test_a_count_may_have_an_exponent_and_has_bounds(text, value):
    if value is not None:
        assert arguments.at_least(1)(text) == value
        return
    with pytest.raises(argparse.ArgumentTypeError, match="not an integer|at least 1|at most 1,000,000,000"):
        arguments.at_least(1)(text)


def test_plan_answers_or_refuses_whatever_its_options_say(capsys):
    small = [
        "plan",
        "--json",
        "--classes=100",
        "--model=MobileFaceNet",
        "--image-shape=3,16,16",
        "--emb=8",
        "--batch=2",
    ]
    options = ["--classes", "--emb", "--ranks", "--batch", "--sample-ratio", "--image-shape", "--device-memory"]
    texts = ["0", "nan", "1e6", "1e400G", "9" * 30, "3,99999,99999"]
    for option, text in itertools.product([*options, "--set=num_classes", "--set=scale"], texts):
        try:
            status = cli.main([*small, f"{option}={text}"])
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        if status == 0:
            assert json.loads(out)["total_bytes_per_rank"] > 0
        else:
            assert status in (1, 2) and err.splitlines()[-1].startswith(("plsc: error:", "python -m plsc plan: error:"))


def test_the_installed_program_is_the_main_function_and_calls_itself_plsc(monkeypatch, capsys):
    """As the console script that pip makes from setup.py does."""
    (target,) = re.findall(r'"console_scripts": \["plsc=([\w.:]+)"\]', (ROOT / "setup.py").read_text())
    module, _, name = target.partition(":")
    main = getattr(importlib.import_module(module), name)
    assert main is cli.main
    monkeypatch.setattr(sys, "argv", ["/usr/bin/plsc", "plan", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    page = capsys.readouterr().out
    assert end.value.code == 0 and page.startswith("usage: plsc plan ") and "\n  plsc plan --classes" in page
    assert "python -m plsc" not in page
    monkeypatch.setattr(sys, "argv", ["/usr/bin/plsc", "convert-checkpoint", "none", "new", "--ranks", "2"])
    assert main() == 1


def test_run_without_a_script_says_so(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "--set", "lr=1"])
    assert end.value.code == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("error: the script is missing; name it, as in python -m plsc run train.py")
    )


@pytest.mark.parametrize(
    "text, name", [("class_num=300", "num_classes"), ("set_lr=1", "lr"), ("train_batchsize=3", "train_batch_size")]
)
def test_run_suggests_the_name_of_a_setting_in_one_line(text, name, capsys):
    assert cli.main(["run", "--set", text, "train.py"]) == 2
    said = capsys.readouterr().err
    assert f"did you mean '{name}'?" in said and said.count("\n") == 1


def test_a_size_is_a_number_with_a_unit():
    sizes = {
        "80G": 80e9,
        "24GB": 24e9,
        "1500m": 1.5e9,
        " 2T ": 2e12,
        "1.5 GiB": 1.5 * 2**30,
        "3ki": 3072,
        "1000B": 1000,
    }
    assert {text: arguments.size(text) for text in sizes} == sizes


@pytest.mark.parametrize("text", ["", "G", "-1G", "0G", "many", "nan", "1e30G", "80 X", "80GG"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        arguments.size(text)


@pytest.mark.parametrize(
    "maker, words",
    [
        (cli.make_parser, ["plan", "--classes", "10", "--device-memory", "80"]),
        (base64_command.make_parser, ["--data_dir=.", "--file_list=a", "--nranks=2", "--memory", "80"]),
        (base64_command.make_parser, ["--data_dir=.", "--file_list=a", "--nranks=2", "--max_line", "80"]),
    ],
)
def test_a_size_without_a_unit_is_refused_by_every_command(maker, words, capsys):
    assert "'80' has no unit; write 80G for gigabytes, or 80B for bytes" in refused(maker, words, capsys)


@pytest.mark.parametrize(
    "maker, words",
    [
        (cli.make_parser, ["run", "--ranks", "0", "train.py"]),
        (cli.make_parser, ["plan", "--classes", "10", "--ranks", "two"]),
        (cli.make_parser, ["convert-checkpoint", "a", "b", "--ranks", "-1"]),
        (base64_command.make_parser, ["--data_dir=.", "--file_list=a", "--nranks=0"]),
    ],
)
def test_a_number_of_ranks_is_at_least_1(maker, words, capsys):
    assert re.search("must be at least 1|is not an integer", refused(maker, words, capsys))


def test_a_misspelt_command_or_choice_gets_a_suggestion(capsys):
    assert "did you mean convert-checkpoint instead of convert-chekpoint?" in refused(
        cli.make_parser, ["convert-chekpoint", "a", "b"], capsys
    )
    wrong = ["export", "--checkpoint", "a", "--output", "b", "--format", "padle"]
    assert "did you mean paddle instead of padle?" in refused(cli.make_parser, wrong, capsys)
    assert "did you mean" not in refused(cli.make_parser, ["plan", "--xyz"], capsys)


@pytest.mark.parametrize("words", ["lr", "=3", " =3", "lrr=1", "model=1", "lr=["])
@pytest.mark.parametrize("command", [["run", "train.py"], ["plan", "--classes", "9"]])
def test_a_set_that_cannot_be_read_is_a_wrong_command_line(command, words, capsys):
    assert cli.main([command[0], "--set", words, *command[1:]]) == 2
    said = capsys.readouterr().err
    assert said.startswith("plsc: error: --set") and said.count("\n") == 1 and len(said) < 200


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
    """One process asks for all pages, because Paddle takes seconds to load."""
    code = f"""
import sys
from plsc import arguments, cli
for words in {COMMANDS}:
    try:
        cli.main([*words, "--help"])
    except SystemExit:
        pass
sys.exit("paddle" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("usage:") == len(COMMANDS)


def raise_as_an_import_does():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise ImportError("initialization failed")  # noqa: B904 - as a module in C++ raises it


@pytest.mark.parametrize("is_importing", [False, True])
def test_ctrl_c_ends_with_130_and_without_a_word(is_importing, monkeypatch, capsys):
    def interrupted(options):
        if is_importing:
            raise_as_an_import_does()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_checkpoint, "run", interrupted)
    assert cli.main(["convert-checkpoint", "a", "b", "--ranks", "2"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_had_enough_ends_it_quietly(unbuffered):
    """`| head` closes the pipe in this way. Without a buffer it is argparse that finds out, and that ignores it."""
    buffered = {**environment(), "PYTHONUNBUFFERED": unbuffered}
    code = "import os, sys; from plsc import cli; read, write = os.pipe(); os.dup2(write, 1); os.close(read)\n"
    code += "sys.exit(cli.main(['--help']))"
    process = subprocess.run(
        [sys.executable, "-c", code], env=buffered, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (process.returncode, process.stderr) == (141, "")


def test_a_failure_is_one_line_and_status_1(tmp_path, capsys):
    assert cli.main(["convert-checkpoint", str(tmp_path / "none"), str(tmp_path / "new"), "--ranks", "2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("plsc: error: ") and said.count("\n") == 1


def test_a_command_takes_its_settings_from_the_checkpoint_the_options_and_the_file_in_that_order(tmp_path, monkeypatch):
    """And leaves the environment alone."""
    from plsc.commands import trained

    meta = {"model": "ViT", "image_shape": [3, 32, 32], "emb_dim": 16, "num_classes": 5}
    monkeypatch.setattr("plsc.checkpoint.open_checkpoint", lambda folder, partial: SimpleNamespace(meta=meta))
    (tmp_path / "train.yaml").write_text("emb_dim: 32\nmodel_save_dir: ./output\ncheckpoint_dir: other\nlr: 0.5\n")
    words = [
        "export",
        "--checkpoint",
        "output/3",
        "--output",
        "net",
        "--config",
        str(tmp_path / "train.yaml"),
        "--set",
        "lr=1",
    ]
    before = dict(os.environ)
    entry = trained.entry_of(cli.make_parser().parse_args(words), {"model_save_dir": "net", "dataset_dir": None})
    assert dict(os.environ) == before
    config = entry._config
    assert (config.model_name, config.image_shape, config.num_classes) == ("ViT", (3, 32, 32), 5)
    assert (config.emb_dim, config.lr) == (32, 1.0)
    assert (config.checkpoint_dir, config.model_save_dir, config.dataset_dir) == ("output/3", "net", "./train_data")


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--dataset", "faces"], ("faces", "lfw", None)),
        (["--dataset", "faces", "--targets", "a,b", "--set", "val_targets=c"], ("faces", "a,b", None)),
        (["--dataset", "faces", "--set", "val_targets=c", "--set", "dataset_dir=other"], ("faces", "c", None)),
        (["--gallery", "known", "--probes", "new"], ("./train_data", "", ("known", "new"))),
    ],
)
def test_the_options_of_test_win_over_settings(words, expected, monkeypatch):
    from plsc.entry import Entry

    seen = []
    monkeypatch.setattr(Entry, "test", lambda self: seen.append(self._config) or {})
    assert cli.main(["test", "--model", "net", *words]) == 0
    (config,) = seen
    assert (config.dataset_dir, config.val_targets, config.identification) == expected
    assert config.export_dir == "net" and config.model_save_dir == ""


def test_commands_touch_no_private_of_an_entry_and_no_environment():
    for path in (ROOT / "plsc" / "commands").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"[Ee]ntry\w*(\([^()]*\))?\._(?!_)|os\.environ(\.update|\[[^]]*\] =)", text), path.name


def test_convert_checkpoint_prints_json(monkeypatch, capsys):
    from plsc.checkpoint import convert

    monkeypatch.setattr(convert, "convert", lambda source, target, ranks, head_dtype: None)
    assert cli.main(["convert-checkpoint", "a", "b", "--ranks", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "b", "ranks": 2, "head_dtype": None}


@pytest.mark.parametrize(
    "words, said",
    [
        (["trian"], "did you mean run instead of trian?"),
        (["train"], "did you mean run instead of train?"),
        (["embed"], "did you mean predict instead of embed?"),
        (["evaluate"], "did you mean test instead of evaluate?"),
        (["convert"], "did you mean export instead of convert?"),
        (["train.py"], "to run a script, write {program} run train.py"),
        (["plan", "--class-num", "4"], "did you mean --set num_classes=... instead of --class-num?"),
        (["plan", "--epochs=4"], "did you mean --set train_epochs=... instead of --epochs?"),
    ],
)
def test_words_of_other_programs_are_answered_with_those_of_plsc(words, said, capsys):
    assert refused(cli.make_parser, words, capsys).endswith(said.format(program=arguments.program()))
