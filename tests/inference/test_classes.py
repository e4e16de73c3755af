"""Which class an image shows: the head in a checkpoint, in an export, and the commands."""

import json

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import Predictor, cli
from plsc.config import Config
from plsc.errors import ConfigError, DataError
from plsc.evaluation.trained import convert
from plsc.inference.classes import CENTRES, CheckpointCentres, ClassCentres, ExportedCentres, classify, write_centres
from plsc.metrics.vectors import unit_rows

RNG = np.random.default_rng(0)


class InParts(ClassCentres):
    """Class centres in memory, in parts of several sizes."""

    def __init__(self, rows, bias=None, names=()):
        self.rows, self.bias, self.count, self.names = rows, bias, len(rows), names

    def parts(self):
        for first, end in ((0, 1), (1, 3), (3, self.count)):
            yield self.rows[first:end], None if self.bias is None else self.bias[first:end]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("top", [1, 4, 50])
def test_the_best_classes_are_those_of_the_whole_product(with_bias, top, tmp_path, monkeypatch):
    monkeypatch.setattr("plsc.inference.classes._IMAGES", 3)
    monkeypatch.setattr("plsc.inference.classes._ROWS", 7)
    rows, embeddings = (RNG.normal(size=(n, 5)).astype("float32") * RNG.uniform(0.1, 9, (n, 1)) for n in (30, 8))
    rows, embeddings = rows.astype("float32"), embeddings.astype("float32")
    bias = RNG.normal(size=30).astype("float32") * 20 if with_bias else None
    cosines = unit_rows(embeddings) @ unit_rows(rows).T
    wanted = np.argsort(-(cosines if bias is None else embeddings @ rows.T + bias), axis=1)[:, :top]
    centres = InParts(rows, bias, [f"name {k}" for k in range(30)])
    written, record = write_centres(centres, 5, tmp_path)
    assert [path.name for path in written] == [CENTRES, "class_bias.npy"][: 1 + with_bias]
    for source in (centres, ExportedCentres(tmp_path, record, centres.names)):
        answers = classify(embeddings, source, top)
        assert [[one.number for one in of_image] for of_image in answers] == wanted.tolist()
        assert all(one.name == f"name {one.number}" for of_image in answers for one in of_image)
        found = [[one.cosine for one in of_image] for of_image in answers]
        np.testing.assert_allclose(found, np.take_along_axis(cosines, wanted, 1), rtol=1e-5, atol=1e-6)


def test_of_equal_classes_the_first_comes_first_and_what_does_not_fit_is_refused(tmp_path):
    same = InParts(np.ones((6, 2), "float32"))
    assert [one.number for one in classify(np.ones((1, 2)), same, 3)[0]] == [0, 1, 2]
    assert classify(np.ones((1, 2)), same, 1)[0][0].name == ""
    assert classify(np.empty((0, 2)), same) == []
    with pytest.raises(DataError, match="have 3 numbers, and the class centres 2"):
        classify(np.ones((1, 3)), same)
    with pytest.raises(DataError, match="not finite"):
        classify(np.full((1, 2), np.nan), same)
    _, record = write_centres(same, 2, tmp_path)
    (tmp_path / CENTRES).write_bytes((tmp_path / CENTRES).read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="class_centres.npy: cannot be used.*export the network again"):
        ExportedCentres(tmp_path, record, ())


def test_commands_name_the_classes_of_training_images(trained, glyphs, tmp_path, capsys, caplog):
    checkpoint, net = str(trained / "output" / "0"), str(tmp_path / "net")
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"字 {number}\n" for number in range(12)))
    naming = ["--set", f"class_names={names}"]
    images = sorted((glyphs / "images").rglob("*.jpg"))[::7]
    paths = [str(path) for path in images]
    assert cli.main(["classify", "--checkpoint", checkpoint, *naming, *paths, "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["image"] for one in found] == paths and all(len(one["classes"]) == 2 for one in found)
    for one in found:
        assert [answer["name"] for answer in one["classes"]] == [f"字 {answer['number']}" for answer in one["classes"]]
    weight = load_file(trained / "output" / "0" / "dist@head@rank@00000.safetensors")["weight"]
    cosines = unit_rows(Predictor(trained / "net").embed(paths)) @ unit_rows(weight).T
    wanted = np.argsort(-cosines, axis=1)[:, :2].tolist()
    assert [[answer["number"] for answer in one["classes"]] for one in found] == wanted
    assert cli.main(["export", "--checkpoint", checkpoint, *naming, "--with-classes", "--output", net]) == 0
    assert cli.main(["classify", "--model", net, *paths[:1]]) == 0
    best = found[0]["classes"][0]
    assert f"\n  {best['cosine']:.4f}  {best['number']}  {best['name']}\n" in capsys.readouterr().out
    answers = Predictor(net).classify(paths, top=2)
    assert [[one.number for one in of_image] for of_image in answers] == [
        [one["number"] for one in of_image["classes"]] for of_image in found
    ]
    names.write_text("a\nb\nc\n")
    for words in (
        ["classify", "--checkpoint", checkpoint, paths[0]],
        ["classify", "--model", net, paths[0]],
        ["export", "--checkpoint", checkpoint, "--output", str(tmp_path / "other")],
    ):
        assert cli.main([*words, *naming]) == 1
        assert "gives 3 names for 12 classes; give one for each" in capsys.readouterr().err
    assert cli.main(["classify", "--model", net, "--set", "max_image_pixels=9", paths[0]]) == 1
    assert "pixels are more than 9" in capsys.readouterr().err
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with_bad = [str(tmp_path / "bad.jpg"), paths[0]]
    for network in (["--checkpoint", checkpoint], ["--model", net]):
        assert cli.main(["classify", *network, *with_bad, "--json"]) == 1
        assert cli.main(["classify", *network, *with_bad, "--json", "--skip-damaged"]) == 0
        said = capsys.readouterr()
        bad, good = json.loads(said.out.splitlines()[-1])
        assert bad["classes"] == [] and good["classes"][0]["number"] == best["number"]
        assert "bad.jpg: cannot decode" in said.err
        assert "1 of 2 images is damaged: its embedding is zero" in said.err + caplog.text
    with pytest.raises(ConfigError, match="holds no class centres.*--with-classes"):
        Predictor(trained / "net").classify(paths)
    with_names = CheckpointCentres(trained / "output" / "0")
    assert len(with_names.names) == with_names.count == 12  # those of the data, which has a classes.txt


def test_a_network_trained_since_does_not_get_the_class_names_of_the_first_checkpoint(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("plsc.evaluation.trained.export", lambda *_, **options: given.update(options))
    config = Config(model_save_dir=str(tmp_path), checkpoint_dir=str(tmp_path / "before"))
    convert(config, paddle.nn.Linear(2, 2), "paddle", "float32", None)
    assert given["class_names"] == () and given["centres"] is None
