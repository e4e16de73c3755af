"""Every Python block of the documentation runs as it stands, in a folder laid out as the pages say, at a tiny size.

A block marked `continues` goes on with the names of those before it on its page; one marked `not-run <why>` needs what
is not here, and must only be Python. Sizes come from PLSC_SETTINGS, which wins over what a block sets.
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

SIZES = {"num_classes": 12, "image_shape": [3, 32, 32], "model_name": "MobileFaceNet", "train_epochs": 1,
         "train_batch_size": 32}  # fmt: skip
BLOCKS = {page: [block for block in pages.fenced(page) if block.kind == "python"] for page in PAGES}
WITH_EXAMPLES = [path for path in sorted((ROOT / "plsc").rglob("*.py")) if ">>> " in path.read_text()]
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.mark.startswith("not-run")]


def my_samples():
    """What custom.md calls the reader's own."""
    for label in range(12):
        yield np.zeros((3, 32, 32), "float32"), label


@pytest.fixture
def folder(once, few_glyphs, tmp_path, monkeypatch):
    """Where the reader of a page stands: data, a run's checkpoints, an export, two images."""
    monkeypatch.setenv("PLSC_SETTINGS", json.dumps(SIZES))

    def make(place):
        for name in ("train_data", "glyphs"):
            shutil.copytree(few_glyphs, place / name)
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
    monkeypatch.setenv("PLSC_SETTINGS", json.dumps({**SIZES, "model_save_dir": "runs"}))  # none is resumed
    shutil.copytree(made, place)
    monkeypatch.chdir(place)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, folder):
    known = {}
    for block in BLOCKS[page]:
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")  # errors show the page's lines
        if block in NOT_RUN:
            continue
        assert block.mark in ("", "continues"), f"{page}:{block.line}: {block.mark}"
        names = {"__name__": "__main__", "my_samples": my_samples, **(known if block.mark else {})}
        exec(code, names)
        known.update(names)


def test_few_blocks_are_not_run_and_say_why():
    assert len(NOT_RUN) <= 4
    assert all(block.mark.split(maxsplit=1)[1:] for block in NOT_RUN)


@pytest.mark.parametrize("source", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_docstrings_run(source):
    module = importlib.import_module(".".join(source.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
