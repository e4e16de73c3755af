"""The networks that come with plsc: their files, their figures on a sample, and the commands that take them."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from ranks import ROOT

from plsc import Entry, Predictor, cli, zoo
from plsc.errors import ConfigError
from plsc.metrics.vectors import unit_rows

FOLDER = ROOT / "plsc" / "zoo"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The sample images, as `plsc zoo glyphs --samples` writes them."""
    folder = tmp_path_factory.mktemp("zoo") / "samples"
    assert cli.main(["zoo", "glyphs", "--samples", str(folder)]) == 0
    return folder


def test_the_files_are_those_of_the_cards_and_small():
    for name in zoo.names():
        card, place = zoo.card_of(name), FOLDER / name
        files = {path.name: path.read_bytes() for path in place.iterdir() if path.name != zoo.CARD}
        assert card["sha256"] == {one: hashlib.sha256(data).hexdigest() for one, data in files.items()}
        assert card["size"] == {one: f"{len(data):,} bytes" for one, data in files.items()}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.suffix != ".pyc") < 1.5e6


def test_it_tells_characters_apart_that_it_was_not_trained_on(samples):
    images = sorted((samples / "unseen").rglob("*.jpg"))
    names = np.array([path.parent.name for path in images])
    units = unit_rows(Predictor("zoo:glyphs").embed(images))
    cosines, same = units @ units.T, names[:, None] == names
    others = ~np.eye(len(images), dtype=bool)
    threshold = float(re.search(r"cosine (0\.\d+)", zoo.card_of("glyphs")["threshold"])[1])
    assert (cosines > threshold)[same & others].mean() > 0.8
    assert (cosines > threshold)[~same].mean() < 0.01
    queries = sorted((samples / "queries").glob("*.jpg"))
    nearest = (unit_rows(Predictor("zoo:glyphs").embed(queries)) @ units.T).argmax(1)
    assert [names[row] for row in nearest] == [path.stem for path in queries]


def test_the_commands_take_it_as_a_checkpoint_and_as_an_export(samples, tmp_path, capsys):
    images = sorted((samples / "trained").rglob("*.jpg"))
    assert cli.main(["classify", "--model", "zoo:glyphs", str(samples / "trained"), "--top", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    named = [one["classes"][0]["name"] for one in found]
    assert np.mean([name[2:] == path.parent.name for name, path in zip(named, images)]) > 0.9
    net = str(tmp_path / "net")
    words = ["export", "--checkpoint", "zoo:glyphs", "--output", net, "--with-classes"]
    assert cli.main(words) == 0
    for name in ("zoo:glyphs", net):
        answers = Predictor(name).classify(images, top=1)
        assert [one[0].name for one in answers] == named, name
    split = str(tmp_path / "split")
    assert cli.main(["convert-checkpoint", "zoo:glyphs", split, "--ranks=3"]) == 0
    assert [one[0].name for one in Predictor(split).classify(images, top=1)] == named
    ins = Entry()
    ins.set_checkpoint_dir("zoo:glyphs")
    ins.set_model_name("GlyphNet")
    ins.set_emb_size(128)
    assert [one[0].name for one in ins.classify(samples / "trained")] == named
    assert len(ins.classify(images[0], top=3)[0]) == 3
    for name, folder in (("--checkpoint", "c"), ("--model", "c")):  # the second finds that there is nothing to do
        words = ["predict", name, "zoo:glyphs", "--input", str(images[0]), "--output", str(tmp_path / folder)]
        assert cli.main(words) == 0
        assert "1 embedding of 128 numbers" in capsys.readouterr().out


def test_cards_are_listed_and_shown(tmp_path, capsys):
    assert cli.main(["zoo"]) == 0
    assert capsys.readouterr().out.startswith("zoo:glyphs  ")
    for words in (["zoo", "glyphs"], ["zoo", "zoo:glyphs"]):
        assert cli.main(words) == 0
        shown = capsys.readouterr().out
        assert (
            "DejaVu" in shown
            and re.search(r"TAR \d\d\.\d % at FAR 1e-3", shown)
            and max(map(len, shown.split("\n"))) < 100
        )
    assert cli.main(["zoo", "glyphs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == zoo.card_of("glyphs")
    for words, status, said in (
        (["zoo", "faces"], 1, "zoo:faces: the zoo has no such network; it has zoo:glyphs"),
        (["zoo", "../zoo"], 1, "the zoo has no such network"),
        (["zoo", "--samples", "x"], 2, "name the network too, such as plsc zoo glyphs"),
        (["zoo", "glyphs", "--samples", str(tmp_path)], 1, "exists; name a new folder"),
        (["zoo", "glyphs", "--samples", "zoo:x"], 1, "--samples: zoo:x is a name in the zoo, which is only read"),
        (
            ["export", "--checkpoint", "zoo:glyphs", "--output", "zoo:glyphs"],
            1,
            "--output: zoo:glyphs is a name in the",
        ),
        (["import-weights", "x.pth", "zoo:glyphs"], 1, "import-weights: zoo:glyphs is a name in the zoo"),
        (["convert-checkpoint", "x", "zoo:x", "--ranks=2"], 1, "convert-checkpoint: zoo:x is a name in the zoo"),
        (["predict", "--model", "zoo:face", "--input", "a", "--output", "b"], 1, "it has zoo:glyphs"),
        (["export", "--checkpoint", "zoo:face", "--output", "b"], 1, "it has zoo:glyphs"),
    ):
        assert cli.main(words) == status
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="it has zoo:glyphs"):
        Predictor("zoo:face")
    with pytest.raises(ConfigError, match="set_model_save_dir: zoo:glyphs is a name in the zoo"):
        Entry().set_model_save_dir("zoo:glyphs")
    ins = Entry()
    with pytest.raises(ConfigError, match="'s3://bucket/run'.*name a folder of this machine"):
        ins.set_model_save_dir("s3://bucket/run")
    ins.set_model_save_dir(tmp_path)
    assert ins._config.model_save_dir == str(tmp_path) and type(ins._config.model_save_dir) is str


def test_the_package_holds_it(tmp_path):
    words = ["-q", "build", "--build-base", str(tmp_path / "base"), "--build-lib", str(tmp_path / "lib")]
    subprocess.run([sys.executable, "setup.py", *words], cwd=ROOT, check=True, capture_output=True)
    built, own = (
        {path.name: path.read_bytes() for path in (place / "glyphs").iterdir()}
        for place in (tmp_path / "lib" / "plsc" / "zoo", FOLDER)
    )
    assert built == own and zoo.CARD in built
