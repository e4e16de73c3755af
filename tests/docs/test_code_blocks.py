"""Runs every Python block of the documentation as it stands, in a folder laid out as the pages say.

A block marked `continues` uses the names defined by the blocks before it on its page. A block marked `not-run <why>`
needs something that the tests do not have, so it is only compiled. PLSC_SETTINGS keeps the trainings tiny: it wins over
what a block sets.
"""

import doctest
import importlib
import json
import shutil

import numpy as np
import pages
import pytest
from pages import PAGES
from ranks import ROOT

from plsc import Entry
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options

SIZES = {"num_classes": 12, "image_shape": [3, 32, 32], "model_name": "GlyphNet", "train_epochs": 1,
         "train_batch_size": 32}  # fmt: skip
BLOCKS = {page: [block for block in pages.fenced(page) if block.kind == "python"] for page in PAGES}
WITH_EXAMPLES = [path for path in sorted((ROOT / "plsc").rglob("*.py")) if ">>> " in path.read_text()]
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.mark.startswith("not-run")]


def my_samples():
    """Stands for the reader of samples that custom.md leaves to the user."""
    for label in range(12):
        yield np.zeros((3, 32, 32), "float32"), label


@pytest.fixture
def folder(once, few_glyphs, tmp_path, monkeypatch):
    """Changes to a folder that holds what the pages assume: data, checkpoints of a run, an export and two images."""
    monkeypatch.setenv("PLSC_SETTINGS", json.dumps(SIZES))

    def make(place):
        for name in ("train_data", "glyphs"):
            shutil.copytree(few_glyphs, place / name)
        shutil.copytree(few_glyphs / "images", place / "photos")
        shuffle_base64(Options(str(few_glyphs), "file_list.txt", 2, str(place / "dataset"), workers=1))
        for name in ("train_data", "glyphs", "dataset"):
            for target in ("lfw", "agedb_30"):
                shutil.copy(few_glyphs / "glyphs.bin", place / name / f"{target}.bin")
        ins = Entry()
        ins.set_dataset_dir(str(place / "train_data"))
        ins.set_with_test(False)
        ins.set_model_save_dir(str(place / "output"))
        ins.train()
        for epoch in ("3", "19"):
            shutil.copytree(place / "output" / "0", place / "output" / epoch)
        ins.set_model_save_dir(str(place / "net"))
        ins.convert_for_prediction()
        for image in ("a", "b"):
            shutil.copy(place / "train_data" / "images" / "0" / "0.jpg", place / f"{image}.jpg")

    place = tmp_path / "reader"
    made = once("documentation", make)
    shutil.copytree(made, place)
    monkeypatch.chdir(place)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, folder, monkeypatch):
    known = {}
    for block in BLOCKS[page]:
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")  # tracebacks show the line of the page
        if block in NOT_RUN:
            continue
        assert block.mark in ("", "continues"), f"{page}:{block.line}: {block.mark}"
        # In another folder than the run above, so that none is resumed. A named model would replace that of set_model.
        sizes = {name: value for name, value in SIZES.items() if name != "model_name" or "set_model(" not in block.text}
        monkeypatch.setenv("PLSC_SETTINGS", json.dumps({**sizes, "model_save_dir": "runs"}))
        names = {"__name__": "__main__", "my_samples": my_samples, **(known if block.mark else {})}
        exec(code, names)
        known.update(names)


def test_only_a_few_blocks_are_not_run_and_each_says_why():
    assert len(NOT_RUN) <= 5
    assert all(block.mark.split(maxsplit=1)[1:] for block in NOT_RUN)


@pytest.mark.parametrize("source", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_docstrings_run(source):
    module = importlib.import_module(".".join(source.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
