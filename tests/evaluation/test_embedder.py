"""Embedding collections into files: on several ranks, after a kill, and with damaged images."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from PIL import Image, ImageOps
from ranks import run_plsc, start

from plsc import Entry, Predictor, cli
from plsc.config import Config
from plsc.data.collection import ArrayImages, open_collection
from plsc.errors import ConfigError, DataError
from plsc.evaluation import embedder
from plsc.evaluation.embedder import Embedder
from plsc.inference.networks import TrainedNetwork
from plsc.search.embeddings import open_embeddings

SCRIPT = "predict_glyphs.py"


@pytest.fixture
def data(once, glyphs):
    """A folder of images that all tests share, and a list of two of them."""

    def make(folder):
        shutil.copytree(glyphs, folder, dirs_exist_ok=True)
        (folder / "two.txt").write_text("images/0/0.jpg\nimages/7/1.jpg\n")

    return once("predict-data", make)


@pytest.fixture
def made(once, ranks, trained, data):
    """A function that embeds a folder, a label file, base64 parts and two images on a number of ranks."""

    def by(number):
        sources = [data / name for name in ("images", "label.txt", "file_list.txt", "two.txt")]
        return once(
            f"predict-{number}", lambda folder: ranks(SCRIPT, number, trained / "output" / "0", folder, *sources)
        )

    return by


@pytest.fixture
def ins(trained):
    """An entry with a trained network."""
    ins = Entry()
    ins.set_image_shape([3, 32, 32])
    ins.set_model_name("MobileFaceNet")
    ins.set_emb_size(32)
    ins.set_class_num(12)
    ins.set_model_save_dir(None)
    ins.set_checkpoint_dir(str(trained / "output" / "0"))
    return ins


@pytest.fixture
def damaged(glyphs, tmp_path):
    """A folder of images, one of which is damaged and one empty."""
    folder = shutil.copytree(glyphs / "images", tmp_path / "damaged")
    (folder / "8" / "6.jpg").write_bytes(b"no image")
    (folder / "8" / "7.jpg").write_bytes(b"")
    return folder


def test_a_folder_a_list_and_parts_give_the_embeddings_of_their_images(made, data, trained):
    folder, listed, parts, two = (open_embeddings(made(1) / str(number)) for number in range(4))
    paths = sorted((data / "images").rglob("*.jpg"))
    assert folder.names == [path.relative_to(data / "images").as_posix() for path in paths]
    assert folder.identities == [path.parent.name for path in paths]
    cosines = _unit(folder.vectors) @ _unit(folder.vectors).T
    assert (cosines > 0.9999).sum() == 96, "no two embeddings are alike, or nothing would be tested"
    np.testing.assert_allclose(folder.vectors, Predictor(trained / "net").embed(paths), rtol=1e-5, atol=1e-5)
    lines = [line.split() for line in (data / "label.txt").read_text().splitlines()]
    titles = (data / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert list(zip(listed.names, listed.identities)) == [(name, titles[int(number)]) for name, number in lines]
    places = {f"images/{name}": row for row, name in enumerate(folder.names)}
    np.testing.assert_allclose(
        listed.vectors, folder.vectors[[places[name] for name in listed.names]], rtol=1e-5, atol=1e-5
    )
    assert parts.names[0] == "dataset.part1:1" and len(parts.names) == len(paths)
    cosines = _unit(parts.vectors) @ _unit(folder.vectors).T
    np.testing.assert_allclose(cosines.max(axis=1), 1, rtol=1e-5, atol=1e-5)
    assert sorted(parts.identities) == sorted(titles[int(number)] for number in folder.identities)
    rows = [places["images/0/0.jpg"], places["images/7/1.jpg"]]
    np.testing.assert_allclose(two.vectors, folder.vectors[rows], rtol=1e-5, atol=1e-5)


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("number", [2, 3])
def test_several_ranks_give_the_embeddings_of_one(number, made):
    for place in "0123":
        one, many = open_embeddings(made(1) / place), open_embeddings(made(number) / place)
        np.testing.assert_allclose(many.vectors, one.vectors, rtol=1e-5, atol=1e-5)
        assert (many.names, many.identities) == (one.names, one.identities)
        assert many.meta == one.meta


@pytest.mark.parametrize("number", [1, 2])
def test_a_killed_predict_resumes_and_gives_the_same_bits(number, made, data, trained, tmp_path):
    arguments = (number, trained / "output" / "0", tmp_path)
    killed = start(SCRIPT, *arguments, data / "images", "--kill", 10)
    assert killed.returncode != 0 and (tmp_path / "0" / ".embeddings.progress.json").exists()
    again = start(SCRIPT, *arguments, data / "images")
    assert again.returncode == 0, again.stderr[-2000:]
    there = 9 * 5 * number  # The last round of two ranks is smaller.
    assert f"{tmp_path / '0'}: {there} of 96 embeddings exist already" in again.stderr
    assert (
        f"decoded {96 - there if number == 1 else 5}\n" in again.stdout
    )  # Rank 0 decoded them; the output is that of rank 0.
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["embeddings.npy", "images.tsv", "manifest.json"]
    for name in ("embeddings.npy", "images.tsv", "manifest.json"):
        assert (tmp_path / "0" / name).read_bytes() == (made(number) / "0" / name).read_bytes(), name


def test_a_damaged_image_on_one_rank_is_reported_or_becomes_zeros(damaged, made, trained, tmp_path):
    arguments = (SCRIPT, 2, trained / "output" / "0", tmp_path, damaged)
    process = start(*arguments)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert f"plsc: error: {damaged}/8/6.jpg: cannot decode the image" in process.stderr
    process = start(*arguments, "--skip-damaged")
    assert process.returncode == 0, process.stderr[-2000:]
    assert re.search(r"0: \d+ of 96 embeddings exist already", process.stderr)
    assert (
        process.stderr.count("8/6.jpg: cannot decode the image") == process.stderr.count("8/7.jpg: cannot decode") == 1
    )
    assert "2 of " in process.stderr and "images are damaged: their embeddings are zero" in process.stderr
    found, whole = open_embeddings(tmp_path / "0"), open_embeddings(made(2) / "0")
    rows = [found.names.index("8/6.jpg"), found.names.index("8/7.jpg")]
    assert not found.vectors[rows].any() and found.names == whole.names
    others = np.setdiff1d(np.arange(96), rows)
    np.testing.assert_allclose(found.vectors[others], whole.vectors[others], rtol=1e-5, atol=1e-5)


def test_ranks_that_find_different_images_are_refused(glyphs, trained, tmp_path):
    for rank in range(2):
        (tmp_path / f"list{rank}").write_text(f"{glyphs}/images/0/{rank}.jpg\n")
    process = start(SCRIPT, 2, trained / "output" / "0", tmp_path, tmp_path / "list{rank}")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "list0: the ranks find different images" in process.stderr


def test_skipped_images_are_named_up_to_a_limit(ins, damaged, capsys, monkeypatch):
    monkeypatch.setattr(embedder, "NAMED", 3)
    ins.set_test_batch_size(2)
    for number in range(5):
        (damaged / "3" / f"{number}.jpg").unlink()
    (damaged / "list").write_text("".join(f"3/{number}.jpg x\n" for number in range(8)))
    found = ins.predict(damaged / "list", skip_damaged=True)
    assert not found[:5].any() and found[5:].any(axis=1).all()
    said = capsys.readouterr().err
    assert re.findall(r"list:(\d): 3/\d.jpg: cannot be read", said) == ["1", "2", "3"]
    assert "5 of 8 images are damaged: their embeddings are zero" in said
    with pytest.raises(DataError, match="list:1: 3/0.jpg: cannot be read"):
        ins.predict(damaged / "list")


def test_flip_averages_and_another_network_or_flip_is_refused(ins, glyphs, tmp_path):
    source, mirrored, output = glyphs / "images" / "0", tmp_path / "mirrored", tmp_path / "embeddings"
    mirrored.mkdir()
    paths = sorted(source.iterdir())
    for path in paths:
        ImageOps.mirror(Image.open(path)).save(mirrored / f"{path.stem}.png")
    plain, both = ins.predict(source), ins.predict(source, output, flip=True)
    assert np.abs(plain - both).max() > 0.01
    np.testing.assert_allclose(both, (plain + ins.predict(mirrored)) / 2, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"holds other embeddings \(different: flip\); name another folder"):
        ins.predict(source, output)
    with pytest.raises(ConfigError, match=r"\(different: count, source, images\); name another folder"):
        ins.predict(glyphs / "images" / "1" / "..", output, flip=True)
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.train_reader = [(np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype("float32"), np.arange(8))]
    ins.train()
    with pytest.raises(ConfigError, match=r"holds other embeddings \(different: model\); name another folder"):
        ins.predict(source, output, flip=True)


def test_an_export_embeds_like_its_network(trained, data, tmp_path, capsys):
    source = ["--input", str(data / "label.txt"), "--flip", "--json"]
    network = {"checkpoint": str(trained / "output" / "0"), "model": str(trained / "net")}
    for name, place in network.items():
        assert cli.main(["predict", f"--{name}", place, *source, "--output", str(tmp_path / name)]) == 0
    made = {name: open_embeddings(tmp_path / name) for name in network}
    np.testing.assert_allclose(made["model"].vectors, made["checkpoint"].vectors, rtol=1e-4, atol=1e-4)
    assert made["model"].meta["model"] == made["checkpoint"].meta["model"] is not None
    assert made["model"].meta["export"] is not None and made["checkpoint"].meta["export"] is None
    assert cli.main(["predict", "--model", network["model"], *source, "--output", str(tmp_path / "checkpoint")]) == 1
    assert "holds other embeddings (different: export)" in capsys.readouterr().err
    assert cli.main(["predict", "--model", str(tmp_path), *source, "--output", str(tmp_path / "new")]) == 1
    assert "inference_meta.json: no exported network there" in capsys.readouterr().err


def test_without_a_terminal_the_progress_is_logged(ins, data, caplog, monkeypatch):
    monkeypatch.setattr(embedder, "_LOG_SECONDS", 0)
    ins.set_test_batch_size(40)
    with caplog.at_level("INFO", logger="plsc"):
        ins.predict(data / "images")
    assert re.search(r"40 of 96 images embedded, [\d.]+ images/s", caplog.text)


def test_a_network_with_another_size_or_infinite_embeddings_is_refused(glyphs, tmp_path):
    network = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 32 * 32, 5))
    config = Config(image_shape=(3, 32, 32), emb_dim=4)
    images = open_collection(glyphs / "images" / "0")
    with pytest.raises(ConfigError, match=r"set_emb_size\(4\): the network gives embeddings \[8, 5\] for 8 images"):
        Embedder(TrainedNetwork(network, config), config, flip=False).keep(images, tmp_path)
    network[1].weight.set_value(paddle.full([3 * 32 * 32, 5], float("nan")))
    with pytest.raises(DataError, match="0.jpg: its embedding is not finite"):
        config.emb_dim = 5
        Embedder(TrainedNetwork(network, config), config, flip=False).embed(images)


def test_an_export_that_gives_no_finite_embedding_is_not_called_a_diverged_training():
    network = SimpleNamespace(
        image_shape=(3, 4, 4),
        emb_dim=2,
        export="digest",
        expect=lambda count: None,
        embed=lambda images: np.full([len(images), 2], np.nan),
    )
    images = ArrayImages("set", np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="set: image 0: its embedding is not finite; .*export it in float32"):
        Embedder(network, Config(), flip=False).embed(images)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"output": "x"}, "output works only with source"),
        ({"source": "x", "parquet": True}, "parquet works only with output"),
        ({"output": "x", "parquet": True}, "output works only with source"),
        ({"skip_damaged": True}, "skip_damaged works only with source"),
        ({"source": "x", "flip": 1}, r"predict: flip\(1\): expected True or False"),
        ({"source": ""}, "source='': expected a path"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Entry().predict(**arguments)


def test_the_command_shares_the_work(data, made, trained, tmp_path):
    words = ["--checkpoint", trained / "output" / "0", "--input", data / "images", "--output", tmp_path, "--ranks", "2"]
    process = run_plsc("predict", *words, "--set", "test_batch_size=5", "--json")
    assert process.returncode == 0, process.stderr[-2000:]
    assert json.loads(process.stdout) == {"output": str(tmp_path), "count": 96, "emb_dim": 32}
    for name in ("embeddings.npy", "images.tsv", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (made(2) / "0" / name).read_bytes(), name


def test_the_command_reports_what_it_wrote(glyphs, trained, tmp_path, capsys):
    output = tmp_path / "e"
    words = ["predict", "--checkpoint", str(trained / "output" / "0"), "--input", str(glyphs), "--output", str(output)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{output}: 96 embeddings of 32 numbers\n"
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output), "count": 96, "emb_dim": 32}
    (output / "embeddings.npy").unlink()
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "not a complete embeddings folder (embeddings.npy: No such file" in said and "Traceback" not in said
