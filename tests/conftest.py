"""Fixtures every test may use."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from ranks import run_ranks  # noqa: E402


@pytest.fixture
def ranks():
    """`ranks(script, number, *arguments)` runs a script of tests/helpers on real processes; fails with their output."""
    return run_ranks


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory):
    """A small glyph data set: 12 classes x 8 images of 32x32 and 6 characters held out."""
    from plsc.data.glyphs import render_glyphs

    folder = tmp_path_factory.mktemp("data") / "glyphs"
    render_glyphs(str(folder), classes=12, images=8, size=32, held_out=6, pairs=40, seed=1)
    return folder
