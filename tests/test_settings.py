"""The table of settings, what is derived from it, and what wins: the command line or the script."""

import argparse
import dataclasses
import hashlib
import inspect
import json
import logging
import os
import re
import runpy
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import paddle
import pytest
from ranks import ROOT, run_plsc

from plsc import Entry, settings
from plsc.config import (
    ByClass,
    Config,
    DataCache,
    HdfsUpload,
    MixedPrecision,
    Pretrained,
    Scalars,
    Schedule,
    Teaching,
    Trainable,
    plain_settings,
)
from plsc.data.augmentation import Augmentation
from plsc.errors import ConfigError, PlscError, UsageError
from plsc.heads.margins import MagFace
from plsc.machine import random_state
from plsc.models.base_model import BaseModel

REFERENCE = runpy.run_path(str(ROOT / "tools" / "make_api_reference.py"))
PAGES = {language: ROOT / "docs" / folder / "settings.md" for language, folder in (("en", "."), ("zh", "zh"))}
TEXTS = [one.name for one in settings.SETTINGS.values() if one.has_text]


def read(*arguments):
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    return settings.read_options(parser.parse_args(arguments))


def entry_with(monkeypatch, **chosen):
    """An entry of a script that was started with `--set`."""
    monkeypatch.setenv("PLSC_SETTINGS", json.dumps(chosen))
    return Entry()


def overridden(ins):
    """The lines that the next action will log."""
    return list(ins._overridden)


class Custom(BaseModel):
    """A model of a script."""


TRAINABLE = Trainable("a.*; from epoch 2 all", ((0, ("a.*",)), (2, ("*",))))

DIGEST = hashlib.sha256(np.array([0.1, 0.2], "float32").tobytes()).hexdigest()[:16]

# What a script asks for, and what the command line asks for instead, of every setting.
ASKED = {
    "dataset_dir": (
        ("script",),
        {"directory": ["line", "b"], "weights": [1, 2]},
        (("line", "b"), "merged", (1.0, 2.0), None),
    ),
    "data_format": (("base64", "full"), "jpeg", ("jpeg", None)),
    "data_cache": (("script", "1GB"), ["line", "2KiB"], DataCache("line", 2048)),
    "sampler": (("pxk", 3), "balanced", ("balanced", None)),
    "num_classes": ((5,), "auto", 0),
    "class_names": ((["a"],), ["b", "c"], ("b", "c")),
    "skip_damaged": ((5,), 7, 7),
    "train_image_num": ((5,), 7, 7),
    "image_shape": (((3, 32, 32),), [3, 64, 64], (3, 64, 64)),
    "image_ground": (((0, 0, 0),), [1, 2, 3], (1, 2, 3)),
    "max_image_pixels": ((1000,), 2000, 2000),
    "pixel_rule": ((2,), 1, 1),
    "augmentation": ((False, 5, 0.1), {"rotate": 9}, Augmentation(True, 9.0, 0.0)),
    "train_batch_size": ((5,), 7, 7),
    "test_batch_size": ((5,), 7, 7),
    "num_workers": ((5,), 7, 7),
    "model_name": (("ResNet18",), "ViT", ("ViT", None)),
    "emb_dim": ((5,), 7, 7),
    "loss_type": (("cosface",), "softmax", ("softmax", None)),
    "margin": ((0.1,), [1.0, 0.3, 0.2], (1.0, 0.3, 0.2)),
    "scale": ((5,), 7, 7.0),
    "class_margins": (("ldam",), [0.1, 0.2], ByClass("given", digest=DIGEST)),
    "class_weights": (("balanced", 0.9), {"weights": "balanced", "beta": 0.5}, ByClass("balanced", 0.5)),
    "label_smoothing": ((0.5,), 0.7, 0.7),
    "interclass_filter": ((0.5,), 0.7, 0.7),
    "sample_ratio": ((0.5,), 0.7, 0.7),
    "sub_centers": ((2,), 3, 3),
    "head_chunk": ((5,), 7, 7),
    "head_dtype": (("float32",), "bfloat16", "bfloat16"),
    "train_epochs": ((5,), 7, 7),
    "lr": ((0.5,), 0.7, 0.7),
    "warmup_epochs": ((5,), 7, 7),
    "lr_steps": (([5],), [7, 8], (7, 8)),
    "lr_decay_factor": ((0.5,), 0.7, 0.7),
    "schedule": (("poly", 3.0), {"name": "cosine", "floor": 0.1}, Schedule("cosine", floor=0.1)),
    "trainable": (("head",), {"0": ["a.*", "head"], "2": "all"}, TRAINABLE),
    "rate_factors": ((None,), {"b": 0.5, "a": 2}, (("b", 0.5), ("a", 2.0))),
    "gradient_accumulation": ((5,), 7, 7),
    "recompute": ((False,), True, True),
    "ema": ((0.5,), 0.9, 0.9),
    "gradient_clip": ((5,), 7, 7.0),
    "mixed_precision": ((True, 8.0), {"use_fp16": True, "dtype": "bfloat16"}, MixedPrecision(True, dtype="bfloat16")),
    "max_skipped_steps": ((5,), 7, 7),
    "rank_timeout": ((5.0,), 7, 7.0),
    "seed": ((5,), 7, 7),
    "val_targets": (("script",), "line", "line"),
    "with_test": ((True,), False, False),
    "test_fars": (([0.1],), [0.01], (0.01,)),
    "identification": (("a", "b"), ["c", "d"], ("c", "d")),
    "test_embeddings_dir": (("script",), "line", "line"),
    "log_period": ((5,), 7, 7),
    "calc_acc": ((False,), True, True),
    "scalars": ((None,), ["tensorboard", "line"], Scalars("tensorboard", "line")),
    "model_save_dir": (("script",), None, ""),
    "save_period": ((5,), 7, 7),
    "keep_checkpoints": ((5,), 7, 7),
    "background_save": ((True,), False, False),
    "resume": ((False,), True, True),
    "checkpoint_dir": (("script",), ["line", "plain"], ("line", "plain")),
    "pretrained": (("a.pth",), {"source": "b.pt", "order": "bgr"}, Pretrained(source="b.pt", order="bgr")),
    "teacher": (("out/1",), {"source": "out/2", "kind": "relation"}, Teaching("out/2", kind="relation")),
    "head_init": (("fresh",), "keep-common", "keep-common"),
    "export_dir": (("script",), "line", "line"),
    "hdfs_upload": (("epoch",), ["step", 5], HdfsUpload("step", 5.0)),
}


def test_the_table_has_every_field_of_the_config_and_every_setter():
    fields = {one.name for one in dataclasses.fields(Config)}
    filled = {field for one in settings.SETTINGS.values() for field in one.fields}
    assert filled <= fields
    found = {*Config.FOUND, "overrides", "given", "inputs"}
    assert fields - filled == {"train_reader", "test_reader", "predict_reader", "callbacks", *found}
    setters = {name for name in vars(Entry) if name.startswith("set_")}
    assert setters == {one.setter for one in settings.SETTINGS.values()}


@pytest.mark.parametrize("setting", settings.SETTINGS.values(), ids=lambda one: one.name)
def test_a_setter_takes_the_arguments_of_the_check_and_says_what_the_table_says(setting):
    setter = getattr(Entry, setting.setter)
    assert inspect.getdoc(setter).splitlines()[0] == f"Sets {setting.help}."
    of_setter, of_check = (list(inspect.signature(one).parameters.values())[1:] for one in (setter, setting.check))
    assert [one.default for one in of_setter] == [one.default for one in of_check]
    if len(of_check) > 1:  # those that --set can name
        assert [one.name for one in of_setter] == [one.name for one in of_check]


def test_the_table_of_the_page_is_made_from_the_table():
    assert PAGES["en"].read_text() == REFERENCE["settings_page"](), "run python tools/make_api_reference.py"


@pytest.mark.parametrize("language", PAGES)
def test_pages_name_every_setting_its_setter_and_its_default(language):
    rows = re.findall(r"^\| (`set_.*?) \| (.*?) ?\| (.*?) \| \S", PAGES[language].read_text(), re.M)
    assert rows == [REFERENCE["settings_row"](setting) for setting in settings.SETTINGS.values()]


def test_an_example_of_every_setting_is_below():
    assert list(ASKED) == TEXTS


@pytest.mark.parametrize("name", ASKED)
def test_what_the_command_line_sets_no_setter_of_the_script_changes(name, monkeypatch):
    setting, (script, line, result) = settings.SETTINGS[name], ASKED[name]
    ins = Entry()
    getattr(ins, setting.setter)(*script)
    assert overridden(ins) == []
    ins = entry_with(monkeypatch, **{name: line})
    getattr(ins, setting.setter)(*script)
    found = tuple(getattr(ins._config, field) for field in setting.fields)
    assert found == (result if len(setting.fields) > 1 else (result,))
    (said,) = overridden(ins)
    assert said.startswith(f"--set {name}=") and f" overrides {setting.setter}({script[0]!r}" in said


class Unprintable:
    def __repr__(self):
        raise ZeroDivisionError


endless: list = []
endless.append(endless)
HOSTILE = [
    *(0, -1, 2, 10**9 + 1, 2**31, 2**63, 2**70, 10**30, -(10**30), 10**400, 10**5000),
    *(float("nan"), float("inf"), -float("inf"), -0.0, 1.5, 1e308, 5e-324, 1j, Decimal("NaN"), Fraction(1, 3)),
    *(True, False, None, "", "x", "nan", "1e6", "\0", "a\nb", "\ud800", "x" * 100_000, b"x", lambda *_: 1, int),
    *([], (), {}, [1], [1, [2]], [float("nan")], [10**30, 10**31], (3, 10**9, 10**9), (3, 16.0, 16), {1: 2}, {"x": 1}),
    *(np.int8(-1), np.uint64(2**64 - 1), np.float16("nan"), np.longdouble("1e4000"), np.complex64(1), np.bool_(True)),
    *(
        np.array(3),
        np.array([1, 2]),
        np.zeros([100, 100]),
        object(),
        Unprintable(),
        endless,
        Path("x"),
        paddle.ones([2]),
    ),
]
# What the settings that have no text take.
OBJECTS = {
    "model": (None,),
    "optimizer": (None,),
    "distfc_attr": (None, None),
    "hdfs_info": ("hdfs://a:9000", "name,word", "folder", "folder"),
    "hdfs_client": (None,),
    "strategy": (None,),
}


def accepts(action):
    """Returns whether an action does not raise. Any error must be plsc's own, in one line of a length for humans."""
    try:
        action()
    except PlscError as problem:
        assert "\n" not in str(problem) and len(str(problem)) < 1000
        return False
    return True


@pytest.mark.parametrize("name", settings.SETTINGS)
def test_a_setting_takes_any_value_or_refuses_it_in_one_line(name):
    setting = settings.SETTINGS[name]
    good = ASKED[name][0] if name in ASKED else OBJECTS[name]
    ways = [(setting.setter, value, (*good[:i], value, *good[i + 1 :])) for value in HOSTILE for i in range(len(good))]
    for setter, _, arguments in ways:
        ins = Entry()
        if accepts(lambda ins=ins, setter=setter, arguments=arguments: getattr(ins, setter)(*arguments)):
            json.dumps(plain_settings(ins._config))
            accepts(ins._config.check_combination)
    for value in HOSTILE:
        for given in (value, {"use_fp16": value}, {setting.parameters[-1]: value}, [value], [value] * 2, [value] * 9):
            accepts(lambda given=given: Entry(settings={name: given}))


@pytest.mark.parametrize(
    "setter, value, words",
    [
        ("set_trainable", [], "expected 'head', 'all', a pattern"),
        ("set_trainable", {1: "all"}, "say what is trained from epoch 0 on"),
        ("set_trainable", {0: "head", -1: "all"}, r"epoch\(-1\): expected an integer"),
        ("set_rate_factors", {"fc.*": 0}, r"'fc\.\*'\(0\): expected a finite number above 0"),
        ("set_rate_factors", ["fc.*"], "expected factors by pattern"),
        ("set_class_num", 10**30, "at most 1,000,000,000,000"),
        ("set_class_num", "some", "expected a number, or 'auto'"),
        ("set_class_weights", "nowhere.npy", "the file cannot be read"),
        ("set_class_weights", "balance", "the file cannot be read .*; give 'balanced', a .npy file, or"),
        ("set_class_weights", os.devnull, "the file cannot be read"),
        ("set_class_margins", __file__, "line 1 is .*, which is not a number"),
        ("set_class_weights", [1, -1], "the number of class 1 is -1; each must be at least 0"),
        ("set_class_weights", [0, 0], "all weights are 0"),
        ("set_class_weights", [[1]], "expected 'balanced', a number for each class"),
        ("set_class_margins", np.array([0.1, np.nan]), "the number of class 1 is nan; .* at most 3.14"),
        ("set_label_smoothing", 1, "at least 0 and below 1"),
        ("set_label_smoothing", -0.1, "at least 0 and below 1"),
        ("set_interclass_filter", 1.5, "at least 0 and at most 1"),
        ("set_class_names", ["a", " "], "the name of class 1 is ''"),
        ("set_class_names", ["a", 2], "expected a list of names"),
        ("set_class_names", ["a" * (34 << 20)], "bytes in each checkpoint"),
        ("set_class_names", "nowhere.txt", "the file cannot be read"),
        ("set_class_names", os.devnull, "the file cannot be read"),
        ("set_emb_size", 10**12, "at most 65,536"),
        ("set_image_shape", (3, 10**9, 10**9), "at most 4,096"),
        ("set_seed", 2**70, "at most 9,223,372,036,854,775,807"),
        ("set_num_workers", 10**9, "at most 1,024"),
        ("set_train_batch_size", 10**900, "at most 1,000,000,000"),
        ("set_lr", 10**400, "expected a finite number"),
        ("set_dataset_dir", "a\0b", "null"),
        ("set_dataset_dir", [], "expected a path, or a list of the paths of several data sets"),
        ("set_dataset_dir", ["a", ["b"]], "expected a path, or a list of the paths of several data sets"),
        ("set_dataset_dir", ["a", 3], "expected a"),
        ("set_dataset_dir", ["a", "b", "./a"], "'./a' is listed twice, as 'a' and './a'"),
    ],
)
def test_what_would_overflow_later_is_refused_with_the_bound(setter, value, words):
    with pytest.raises(ConfigError, match=f"{setter}.*{words}"):
        getattr(Entry(), setter)(value)


def test_the_largest_seed_trains():
    random_state.seed_everything(2**63 - 1)
    random_state.seed_everything(2**63 - 1 + 5)  # that of rank 5
    random_state.seed_step(2**63 - 1, 10**9, 5)


@pytest.mark.parametrize(
    "value", ["2020-13-45", "1" * 5000, "[" * 5000, "&a [*a]", "{[1]: 2}", "\0", "!!python/none x"]
)
def test_a_text_that_is_not_yaml_is_refused_in_one_line(value):
    assert not accepts(lambda: settings.make_config(read("--set", f"lr_steps={value}")))


@pytest.mark.parametrize(
    "name, text, value",
    [("num_classes", "1e6", 10**6), ("lr", "1e0", 1.0), ("lr", "1e-3", 1e-3), ("scale", "64", 64.0)],
)
def test_numbers_may_be_written_with_an_exponent(name, text, value):
    found = getattr(settings.make_config(read("--set", f"{name}={text}")), name)
    assert found == value and type(found) is type(value)


TEXTS_THAT_YAML_WOULD_CHANGE = [
    *("2026-11-25", "2026-11-25T10:00:00", "007", "0x10", "12:30", "1e3", "1_000", ".inf", "on", "No", "true", "1.50"),
    *("a: b", "*a", "&a", "!a b", "@a", "%a", "a'b", "100%"),
]


@pytest.mark.parametrize("text", [*TEXTS_THAT_YAML_WOULD_CHANGE, "run #2", "#2", "\udcc4\udce3", "- a", "[3", "{", "'"])
def test_a_text_of_the_command_line_stays_as_it_is(text, monkeypatch):
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    options = parser.parse_args(["--set", f"model_save_dir={text}", "--set", f"checkpoint_dir= {text} "])
    for name, value in settings.to_environment(options).items():
        monkeypatch.setenv(name, value)
    config = Entry()._config
    assert (config.model_save_dir, config.checkpoint_dir) == (text, text)


@pytest.mark.parametrize("text", ["2026-11-25", "007", "0x10", "12:30", "1e3", "1_000", ".inf", "on", "No", "true"])
def test_a_text_in_a_file_needs_no_quotes_to_stay_as_it_is(text, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        f"model_save_dir: {text}  # a comment\nidentification: [{text}, {text}]\n"
        f"scalars: {{kind: tensorboard, directory: {text}}}\n"
    )
    config = settings.make_config(read("--config", str(file)))
    assert config.model_save_dir == text and config.identification == (text, text) and config.scalars.directory == text


@pytest.mark.parametrize(
    "words, name, value",
    [
        ("identification=[007, on]", "identification", ("007", "on")),
        ("model_save_dir='on'", "model_save_dir", "on"),
        ('model_save_dir="a\\tb"', "model_save_dir", "a\tb"),
        ("model_save_dir=null", "model_save_dir", ""),
        ("val_targets=", "val_targets", ""),
        ("seed=010", "seed", 10),
        ("seed=0x10", "seed", 16),
        ("seed=00", "seed", 0),
        ("with_test=off", "with_test", False),
        ("lr_steps=[1e3, 007000]", "lr_steps", (1000, 7000)),
        ("hdfs_upload=[step, 1e1]", "hdfs_upload", HdfsUpload("step", 10.0)),
    ],
)
def test_quotes_brackets_and_numbers_mean_what_they_do_in_yaml(words, name, value):
    assert getattr(settings.make_config(read("--set", words)), name) == value


def test_the_texts_among_the_settings():
    found = [(one.name, parameter) for one in settings.SETTINGS.values() if one.has_text for parameter in one.texts]
    assert found == [
        ("dataset_dir", "directory"), ("dataset_dir", "heads"), ("dataset_dir", "exclude"),
        ("data_format", "data_format"), ("data_format", "shuffle"), ("data_cache", "directory"),
        ("sampler", "sampler"), ("model_name", "name"), ("loss_type", "loss"), ("head_dtype", "dtype"),
        ("schedule", "name"), ("schedule", "metric"), ("trainable", "what"),
        ("mixed_precision", "dtype"), ("val_targets", "text"), ("identification", "gallery"),
        ("identification", "probes"), ("test_embeddings_dir", "text"), ("scalars", "kind"), ("scalars", "directory"),
        ("model_save_dir", "directory"), ("checkpoint_dir", "directory"), ("checkpoint_dir", "weights"),
        ("pretrained", "order"), ("teacher", "kind"), ("head_init", "init"), ("export_dir", "text"),
        ("hdfs_upload", "when"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, sets, heads, weights",
    [
        ("007", "007", "merged", None),
        ("[2026-11-25, 007]", ("2026-11-25", "007"), "merged", None),
        ("[one]", "one", "merged", None),
        ("{directory: [a, on], weights: [1, 1e-1]}", ("a", "on"), "merged", (1.0, 0.1)),
        ("{directory: 5}", "5", "merged", None),
        ("{directory: [5, 6], heads: separate}", ("5", "6"), "separate", None),
    ],
)
def test_data_sets_are_listed_in_brackets(text, sets, heads, weights, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"dataset_dir: {text}\n")
    for words in (["--set", f"dataset_dir={text}"], ["--config", str(file)]):
        if text[0] in "[{" or words[0] == "--set":
            made = settings.make_config(read(*words))
            assert (made.dataset_dir, made.heads, made.set_weights) == (sets, heads, weights)


@pytest.mark.parametrize(
    "sets, more, words",
    [
        (["a", "b"], {"weights": [1]}, r"weights=\[1\]: expected a list of 2 numbers"),
        (["a", "b"], {"weights": 2}, "weights=2: expected a list of 2 numbers"),
        (["a", "b"], {"weights": [1, 0]}, "weights.*0"),
        (["a", "b"], {"weights": [1, -1]}, "weights.*-1"),
        (["a", "b"], {"weights": [1, float("nan")]}, "weights.*nan"),
        (["a", "b"], {"weights": [1, 1001]}, "at most 1,?000"),
        (["a", "b"], {"heads": "both"}, "heads.*'both'"),
        (["a"], {"heads": "separate"}, "heads='separate' is for several data sets, and there is one"),
        (["a"], {"weights": [1]}, "weights is for several data sets, and there is one"),
    ],
)
def test_what_several_data_sets_cannot_have(sets, more, words):
    with pytest.raises(ConfigError, match=f"set_dataset_dir.*{words}"):
        Entry().set_dataset_dir(sets, **more)


@pytest.mark.parametrize("words", ["rank_timeout=1:30", "lr=2026-11-25", "val_targets=[lfw, agedb]"])
def test_what_is_neither_a_number_nor_a_text_is_refused(words):
    assert not accepts(lambda: settings.make_config(read("--set", words)))


def test_aliases_of_a_file_cannot_stand_for_billions_of_values(tmp_path):
    file = tmp_path / "a.yaml"
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '1'}]" for i in range(12)]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        read("--config", str(file))


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "NaN", "\udcff"])
def test_an_environment_that_plsc_run_did_not_write_is_refused(text, monkeypatch):
    monkeypatch.setenv("PLSC_SETTINGS", text)
    with pytest.raises(ConfigError, match="PLSC_SETTINGS in the environment"):
        Entry()


@pytest.mark.parametrize(
    "name, line, script, words",
    [
        ("model_name", "ResNet18", lambda ins: ins.set_model(Custom()), "set_model(Custom(...))"),
        ("loss_type", "softmax", lambda ins: ins.set_loss_type(MagFace()), "set_loss_type(MagFace(...))"),
        ("loss_type", "dist_magface", lambda ins: ins.set_loss_type(MagFace()), "set_loss_type(MagFace(...))"),
        ("data_format", "jpeg", lambda ins: ins.set_data_format("jpeg"), None),
        ("data_format", "auto", lambda ins: ins.set_data_format("auto", "full"),
         "set_data_format('auto', shuffle='full')"),
        ("train_batch_size", 64, lambda ins: setattr(ins, "train_batch_size", 8), "set_train_batch_size(8)"),
        ("test_batch_size", 64, lambda ins: setattr(ins, "test_batch_size", 8), "set_test_batch_size(8)"),
        ("mixed_precision", True, lambda ins: ins.set_mixed_precision(True, dtype="bfloat16"),
         "set_mixed_precision(True, dtype='bfloat16')"),
        ("lr", 0.05, lambda ins: ins.set_lr(0.1), "set_lr(0.1)"),
        ("lr", 0.05, lambda ins: ins.set_lr(0.05), None),
        ("scale", 16, lambda ins: (ins.set_loss_type(MagFace()), ins.set_scale(32)), "set_scale(32)"),
    ],
)  # fmt: skip
def test_a_setting_wins_over_every_setter_that_would_change_it(name, line, script, words, monkeypatch):
    ins = entry_with(monkeypatch, **{name: line})
    before = {field: getattr(ins._config, field) for field in settings.SETTINGS[name].fields}
    script(ins)
    script(ins)
    assert {field: getattr(ins._config, field) for field in before} == before
    expected = (
        []
        if words is None
        else [f"--set {name}={line if name != 'mixed_precision' else 'true'} overrides {words} in the script"]
    )
    assert overridden(ins) == expected


def test_a_setter_leaves_alone_what_the_command_line_did_not_set(monkeypatch):
    ins = entry_with(monkeypatch, lr=0.05)
    ins.set_model(Custom())
    ins.set_loss_type(MagFace())
    assert isinstance(ins._config.model, Custom) and isinstance(ins._config.margin_object, MagFace)
    ins.set_model_name("ResNet18")
    ins.set_loss_type("softmax")
    assert ins._config.model is None and ins._config.margin_object is None
    assert overridden(ins) == []


def test_a_value_that_cannot_work_is_refused_even_where_the_command_line_wins(monkeypatch):
    with pytest.raises(ConfigError, match="set_lr"):
        entry_with(monkeypatch, lr=0.05).set_lr(-1)


@pytest.mark.parametrize(
    "chosen, script, words",
    [
        ({"lr": 0.05}, lambda ins: ins.set_optimizer(paddle.optimizer.Adam), "--set lr=0.05 would change nothing"),
        ({"lr_steps": [5]}, lambda ins: ins.set_optimizer(paddle.optimizer.Adam), r"--set lr_steps=\[5\] would"),
        ({"margin": 0.3}, lambda ins: ins.set_loss_type(MagFace()), "--set margin=0.3: the loss of set_loss_type"),
        ({"loss_type": "softmax"}, lambda ins: ins.set_margin(0.3),
         r"set_margin\(0.3\): the loss of --set loss_type=softmax has no such margin; .*--set margin=null"),
        ({"train_epochs": 2}, lambda ins: ins.set_warmup_epochs(5),
         r"set_warmup_epochs\(5\) is more than --set train_epochs=2"),
        ({"skip_damaged": 2}, lambda ins: setattr(ins, "train_reader", list), "--set skip_damaged=2 is for"),
        ({}, lambda ins: (ins.set_dataset_dir("a", exclude="b"), setattr(ins, "train_reader", list)),
         r"set_dataset_dir\(exclude='b'\) is for the images"),
        ({}, lambda ins: (ins.set_dataset_dir("a", exclude="b"), ins.set_data_format("base64", "files")),
         r"set_data_format\('base64', shuffle='files'\): .* where images are left out"),
        ({}, lambda ins: (ins.set_dataset_dir(["a", "b"]), ins.set_data_format("auto", "files")),
         r"set_data_format\('auto', shuffle='files'\): .* where there are several data sets"),
        ({}, lambda ins: ins.set_dataset_dir("a", exclude="output/damaged.txt"),
         "output/damaged.txt' is in the folder"),
        ({"loss_type": "dist_softmax"}, lambda ins: ins.set_interclass_filter(0.4),
         r"set_interclass_filter\(0.4\): compares cosines, which the head of --set loss_type=dist_softmax does not"),
        ({"class_margins": "ldam"}, lambda ins: ins.set_loss_type("sphereface"),
         "--set class_margins=ldam: the loss of .*sphereface.* takes no margin for each class; .*one of arcface"),
        ({}, lambda ins: (ins.set_loss_type(MagFace()), ins.set_class_margins([0.1])), "takes no margin for each"),
        ({}, lambda ins: (ins.set_margin(0.3), ins.set_class_margins([0.1])),
         r"set_class_margins\(\[...\]\) and set_margin\(0.3\) both say"),
        ({}, lambda ins: (ins.set_margin(0), ins.set_class_margins("ldam")),
         r"set_class_margins\('ldam'\): takes the margin of the rarest class from set_margin\(0.0\), so that no class"),
        ({}, lambda ins: (ins.set_class_weights("balanced"), setattr(ins, "train_reader", list)),
         r"set_class_weights\('balanced'\): counts the images of each class, which a train_reader does not tell"),
        ({}, lambda ins: (ins.set_class_weights([1]), ins.set_teacher("zoo:glyphs", head=False)),
         r"set_class_weights\(\[...\]\): changes the loss of the head, which set_teacher.* leaves out"),
        ({"resume": True}, lambda ins: ins.set_model_save_dir(None), "--set resume=true, but set_model_save_dir"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_and_named_as_it_was_given(chosen, script, words, monkeypatch):
    ins = entry_with(monkeypatch, **chosen)
    script(ins)
    with pytest.raises(ConfigError, match=words):
        ins.train()


def test_the_default_margin_of_the_loss_can_be_asked_for_again(monkeypatch):
    ins = entry_with(monkeypatch, loss_type="softmax", margin=None)
    ins.set_margin(0.3)
    ins._config.check_combination()
    assert overridden(ins) == ["--set margin=null overrides set_margin(0.3) in the script"]


def test_what_the_command_line_overrode_is_logged_once(monkeypatch):
    ins = entry_with(monkeypatch, lr=0.05)
    logger, lines = logging.getLogger("plsc"), []
    monkeypatch.setattr(logger, "info", lines.append)
    for _ in range(2):
        ins.set_lr(0.1)
        ins.set_lr(0.1)
        ins._prepare()
    assert lines == ["--set lr=0.05 overrides set_lr(0.1) in the script"]


def test_the_log_of_the_ranks_says_what_was_overridden_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from plsc import Entry\nins = Entry()\nins.set_seed(7)\nins._prepare()\n")
    (tmp_path / "small.yaml").write_text("seed: 3\n")
    process = run_plsc("run", "--ranks", 2, "--config", tmp_path / "small.yaml", script)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("--config seed=3 overrides set_seed(7) in the script\n") == 1


def test_settings_of_an_entry_win_as_those_of_the_command_line_do(monkeypatch):
    monkeypatch.setenv("PLSC_SETTINGS", json.dumps({"lr": 0.05, "seed": 3}))
    ins = Entry(settings={"lr": 0.1, "image_shape": [3, 32, 32]})
    ins.set_lr(0.2)
    config = ins._prepare()
    assert (config.lr, config.seed, config.image_shape) == (0.1, 3, (3, 32, 32))
    assert overridden(ins) == ["settings lr=0.1 overrides set_lr(0.2) in the script"]
    with pytest.raises(ConfigError, match=r"settings: 'class_num' is not a setting; did you mean 'num_classes'\?"):
        Entry(settings={"class_num": 3})
    with pytest.raises(ConfigError, match=r"settings lr=-1: set_lr\(-1\)"):
        Entry(settings={"lr": -1})


def test_overrides_are_not_among_the_settings_that_a_run_records():
    config = settings.make_config({"lr": 0.05})
    assert plain_settings(config)["lr"] == 0.05 and "overrides" not in plain_settings(config)


def test_options_win_over_the_file_and_over_the_script(tmp_path, monkeypatch):
    file = tmp_path / "small.yaml"
    file.write_text(
        "train_batch_size: 8\nimage_shape: [3, 32, 32]\nmixed_precision: {use_fp16: true, simulate: true}\n"
    )
    arguments = ["--config", str(file), "--set", "train_batch_size=16", "--set", "model_save_dir=", "--set", "lr=1e-3"]
    chosen = read(*arguments)
    assert chosen["train_batch_size"] == 16 and chosen["lr"] == 1e-3
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    for name, value in settings.to_environment(parser.parse_args(arguments)).items():
        monkeypatch.setenv(name, value)
    ins = Entry()
    ins.set_train_batch_size(128)
    ins.set_image_shape((3, 112, 112))
    ins.set_test_batch_size(5)
    config = ins._prepare()
    assert ins.train_batch_size == 16 and ins.test_batch_size == 5
    assert config.image_shape == (3, 32, 32) and config.mixed_precision.simulate and config.model_save_dir == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "batch"], "expected NAME=VALUE"),
        (["--set", "train_batchsize=3"], "did you mean 'train_batch_size'"),
        (["--set", "class_num=300"], "'class_num' is not a setting; did you mean 'num_classes'"),
        (["--set", "set_lr=1"], "did you mean 'lr'"),
        (["--set", "batch_size=3"], "did you mean 'train_batch_size'"),
        (["--set", "set_batch_size=3"], "did you mean 'train_batch_size'"),
        (["--set", "learning_rate=3"], "did you mean 'lr'"),
        (["--set", "set_step_boundaries=[1]"], "did you mean 'lr_steps'"),
        (["--set", "emb_size=3"], "did you mean 'emb_dim'"),
        (["--set", "model=3"], "'model' is set in the script only, by set_model"),
        (["--set", "hdfs_info=[a, 'me,secret']"], "set_hdfs_info"),
        (["--set", "colour=3"], "the settings are dataset_dir, "),
        (["--set", "image_shape=[3"], "not YAML"),
        (["--set", "lr=!!set {a}"], "no setting takes this value; leave out the tag"),
        (["--set", 'lr=!!bool "x"'], "no setting takes this value; leave out the tag"),
        (["--config", "nowhere.yaml"], "cannot be read"),
    ],
)
def test_what_is_no_setting_is_said(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read(*arguments)
    assert isinstance(caught.value, UsageError) == ("--set" in arguments)  # which ends the program with status 2


def test_a_password_in_a_setting_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        settings.make_config({"hdfs_info": ["hdfs://nn", "me,secret"]})
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="in the script only") as caught:
        read("--set", "hdfs_info=[hdfs://nn, 'me,secret'")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 0.1\nseed: 3\nlr: 0.2\n", "'lr' is there twice, again in line 3"),
        ("dataset_dir: {directory: a, exclude: b, directory: c}", "'directory' is there twice, again in line 1"),
    ],
)
def test_a_setting_that_a_file_gives_twice_is_refused(text, words, tmp_path):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"settings.yaml: {words}"):
        read("--config", str(tmp_path / "settings.yaml"))


def test_a_password_in_a_bad_file_is_not_shown(tmp_path):
    (tmp_path / "bad.yaml").write_text("hdfs_info: [hdfs://nn, 'me,secret'\nseed: 1\n")
    with pytest.raises(ConfigError, match=r"not YAML: expected .* \(line 2, column 1\)") as caught:
        read("--config", str(tmp_path / "bad.yaml"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ("- 1\n", "name: value"),
        ("classes: 3\n", "num_classes"),
        ("a: [", "YAML"),
        ("x" * (1 << 21), "more than 1,048,576 characters"),
        ("\0", "YAML"),
    ],
)
def test_a_bad_file_is_said(tmp_path, content, words):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read("--config", str(tmp_path / "bad.yaml"))


def test_a_refused_value_ends_a_script_with_one_line(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("from plsc import Entry\nEntry()\n")
    process = run_plsc("run", "--set", "num_classes=-3", script)
    assert process.returncode == 1
    assert "--set num_classes=-3: set_class_num(-3): expected an integer" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("value", [{"use": True}, [True, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], {"init_loss_scaling": 2}])
def test_arguments_a_setter_does_not_have_are_said(monkeypatch, value):
    monkeypatch.setenv("PLSC_SETTINGS", json.dumps({"mixed_precision": value}))
    with pytest.raises(ConfigError, match="mixed_precision=.*set_mixed_precision: .*argument.*use_fp16, init_loss"):
        Entry()
