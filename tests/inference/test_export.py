import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from checkpoint_folders import make_checkpoint
from norm_statistics import randomize_norms
from PIL import Image
from ranks import ROOT, run_joined, run_plsc
from small_models import small_model

from plsc import Entry, Predictor, cli
from plsc.commands.model_file import make_model
from plsc.config import Config
from plsc.data.transforms import normalize
from plsc.errors import ConfigError, DataError
from plsc.inference import export as export_module
from plsc.inference import foreign, runtime
from plsc.inference.classes import write_centres
from plsc.inference.comparison import disagreement
from plsc.inference.export import export
from plsc.inference.networks import TrainedNetwork
from plsc.machine.locks import lock_folder
from plsc.models import build_model
from plsc.models.base_model import BaseModel, build

SHAPE = (3, 32, 32)
PROGRAM = ("inference.json", "inference.pdiparams")


@pytest.fixture(scope="module", autouse=True)
def forked_children():
    """The children that convert networks are forks, which have imported Paddle; test_foreign.py starts new programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run_joined}))
        yield


class Own(BaseModel):
    """A define-by-run model that uses other layers in training than in tests."""

    def build_network(self, input, label, is_train):
        from plsc import layers

        x = layers.batch_norm(layers.conv2d(input, 4, 3, stride=2), act="prelu", is_test=not is_train)
        x = layers.dropout(x, 0.5, is_test=not is_train)
        return layers.batch_norm(layers.fc(x, 8), is_test=not is_train)


class Plain(paddle.nn.Layer):
    """A Paddle layer that does not use plsc."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = paddle.nn.Conv2D(3, 4, 3, stride=2), paddle.nn.BatchNorm2D(4)
        self.fc = paddle.nn.Linear(4, 8)

    def forward(self, x):
        return self.fc(paddle.nn.functional.relu(self.norm(self.conv(x))).mean([2, 3]))


def trained(model):
    """Gives a network statistics, scales and shifts that differ from those of a new one."""
    build(model, SHAPE)
    return randomize_norms(model, SHAPE)


def expected(model, images):
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


# Deeper networks consist of more of the same blocks; tests/benchmarks/export.py covers them.
@pytest.mark.parametrize("name", ["ResNet18", "MobileFaceNet", "ViT", "GlyphNet", "own", "plain"])
def test_an_export_gives_the_embeddings_of_the_network(tmp_path, monkeypatch, name):
    def copied(folder):  # The conversion begins with the same files, which take long to make.
        return [Path(shutil.copy(tmp_path / "paddle" / part, folder)) for part in PROGRAM]

    paddle.seed(0)
    custom = {"own": Own, "plain": Plain}
    model = trained(custom[name]() if name in custom else small_model(name, 16, SHAPE))
    rng = np.random.default_rng(0)
    for format in ("paddle", "onnx"):
        export(model, tmp_path / format, SHAPE, format)
        monkeypatch.setattr(export_module, "save_program", lambda network, folder, image_shape: copied(folder))
        predictor = Predictor(tmp_path / format)
        assert predictor.image_shape == SHAPE and predictor.emb_dim == (8 if name in custom else 16)
        for batch in (1, 3, 16):
            images = rng.normal(size=(batch, *SHAPE)).astype("float32")
            found, wanted = predictor.embed_batch(images), expected(model, images)
            scale = np.abs(wanted).max()
            np.testing.assert_allclose(found, wanted, atol=1e-4 * scale, err_msg=f"{format}, batch {batch}")
    assert not [path for path in (tmp_path / "paddle").iterdir() if path.name.startswith(".")]


@pytest.mark.core
def test_convert_for_prediction_touches_nothing_else(tmp_path):
    ins = Entry()
    ins.set_model(trained(Own()))
    ins.set_emb_size(8)
    ins.set_image_shape(SHAPE)
    ins.set_class_num(5)
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(str(tmp_path))
    rng = np.random.default_rng(0)
    ins.train_reader = [(rng.normal(size=(4, *SHAPE)).astype("float32"), rng.integers(0, 5, 4))]
    with pytest.raises(ConfigError, match=r"convert_for_prediction\(\): there is no trained model"):
        ins.convert_for_prediction()
    ins.train()
    (tmp_path / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):  # The second export replaces the first.
        assert ins.convert_for_prediction() == tmp_path
    assert all(path.read_bytes() == content for path, content in before.items())
    made = {path.name for path in tmp_path.iterdir()} - {"0", "mine.txt", "metrics.jsonl", "run.json"}
    assert {name for name in made if not name.startswith(".")} >= {"inference.pdiparams", "inference_meta.json"}
    images = rng.normal(size=(3, *SHAPE)).astype("float32")
    ins.predict_reader = [images]
    np.testing.assert_allclose(Predictor(tmp_path).embed_batch(images), ins.predict(), rtol=1e-4, atol=1e-4)


def test_predictor_takes_images_of_every_kind(tmp_path):
    model = trained(Plain())
    export(model, tmp_path / "net", SHAPE)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    predictor = Predictor(tmp_path / "net", batch_size=2)
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded, Image.open(tmp_path / "a.png"), pixels]
    embeddings = predictor.embed(kinds)
    wanted = expected(model, normalize(pixels[None]))
    np.testing.assert_allclose(embeddings, np.repeat(wanted, 5, axis=0), rtol=1e-3, atol=1e-4)
    assert predictor.embed([]).shape == (0, 8)
    cosines = predictor.compare(embeddings[:1], np.stack([embeddings[0], -embeddings[0], np.zeros(8, "float32")]))
    np.testing.assert_allclose(cosines, [[1, -1, 0]], atol=1e-6)
    flipped = Predictor(tmp_path / "net", flip=True).embed([pixels])
    both = wanted + expected(model, normalize(np.ascontiguousarray(pixels[None, :, ::-1])))
    np.testing.assert_allclose(flipped, both / 2, rtol=1e-3, atol=1e-4)


@pytest.fixture
def eager_switches():
    """Lets Python change threads after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_threads_that_share_a_predictor_get_their_own_embeddings(earlier, format, eager_switches):
    predictor = Predictor(earlier / format, batch_size=2, num_workers=1)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, *SHAPE[1:], 3), dtype=np.uint8)
    wanted = [predictor.embed(list(images)) for images in pixels]

    def embed(number):
        found = [predictor.embed(list(pixels[number])) for _ in range(40)]
        return sum(not np.allclose(one, wanted[number], atol=1e-5) for one in found)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(embed, range(4))) == [0] * 4


def test_threads_may_embed_with_networks_that_share_layers(eager_switches):
    model = trained(Plain())
    model.train()
    images = np.random.default_rng(0).normal(size=(4, 2, *SHAPE)).astype("float32")
    config = Config(image_shape=SHAPE, emb_dim=8)
    networks = [TrainedNetwork(model, config) for _ in range(4)]
    wanted = [networks[0].embed(one) for one in images]

    def embed(number):
        return sum(not np.allclose(networks[number].embed(images[number]), wanted[number]) for _ in range(40))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(embed, range(4))) == [0] * 4
    assert model.training


def test_what_is_no_export_is_named(tmp_path):
    with pytest.raises(ConfigError, match="Predictor: path=3: expected the folder of an export"):
        Predictor(3)
    make_checkpoint(tmp_path / "output" / "0", model="Net")
    with pytest.raises(ConfigError, match="0: is a checkpoint of the custom model 'Net'.*run plsc export --checkpoint"):
        Predictor(tmp_path / "output" / "0")


def test_a_crafted_manifest_is_refused(earlier, tmp_path):
    folder = shutil.copytree(earlier / "paddle", tmp_path / "net")
    manifest = folder / "inference_meta.json"
    meta = json.loads(manifest.read_text())
    parameters, digest = "inference.pdiparams", meta["files"]["inference.pdiparams"]
    wrong = {
        "image_shape": (None, 3, "abc", [3, 32], [3, 32, "32"], [3, 32, 0], [3, 32, 1e999], [3, 32, True]),
        "emb_dim": (0, -1, 2.5, "8", None, 10**30, float("inf")),
        "format": (None, "tflite", [], "onnx", {}),
        "precision": (None, 3, "int4", []),
        "files": (None, [], {}, "ab", {parameters: digest}, {"/dev/zero": digest}, {**meta["files"], "x": digest},
                  dict.fromkeys(meta["files"], 3)),
    }  # fmt: skip
    texts = [json.dumps({**meta, key: value}) for key, values in wrong.items() for value in values]
    texts += [json.dumps({k: v for k, v in meta.items() if k != key}) for key in wrong]
    texts += ["", "[]", "3", "[" * 100_000, '{"a":' * 100_000, "\x00"]
    for text in texts:
        manifest.write_text(text)
        with pytest.raises(
            ConfigError, match=r"inference_meta.json: damaged \(.+\); export the network again"
        ) as caught:
            Predictor(folder)
        assert not re.search(r"[a-z](Error|object|Type)\b", str(caught.value))
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(ConfigError, match=r"inference_meta.json: damaged \(not an ordinary file"):
        Predictor(folder)


def test_missing_exports_and_bad_images_are_reported(tmp_path):
    with pytest.raises(
        ConfigError, match="inference_meta.json: no exported network there; name the .* or of a checkpoint"
    ):
        Predictor(tmp_path)
    with pytest.raises(ConfigError, match="nowhere: there is no such folder; name the folder of an export, .* or of a"):
        Predictor(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="py: is a file and not a folder; name the folder of an export"):
        Predictor(__file__)
    model = trained(Plain())
    export(model, tmp_path, SHAPE)
    with pytest.raises(DataError, match="nowhere.jpg: cannot be read"):
        Predictor(tmp_path).embed(["nowhere.jpg"])
    with pytest.raises(DataError, match="image 1: cannot decode"):
        Predictor(tmp_path).embed([np.zeros((5, 5, 3), np.uint8), b"no image"])
    os.remove(tmp_path / "inference.pdiparams")
    with pytest.raises(ConfigError, match="inference.pdiparams: cannot be read"):
        Predictor(tmp_path)
    with pytest.raises(ConfigError, match="format 'tflite'"):
        export(model, tmp_path, SHAPE, "tflite")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        export(model, tmp_path / "file", SHAPE)


def test_smaller_exports_report_how_far_their_embeddings_move(tmp_path, few_glyphs):
    paddle.seed(0)
    model = trained(build_model("GlyphNet", 16, SHAPE))
    sizes, lowest = {}, {}
    for precision, calibration in (("float32", None), ("float16", None), ("int8", few_glyphs / "label.txt")):
        folder = export(model, tmp_path / precision, SHAPE, "onnx", precision, calibration)
        meta = json.loads((folder / "inference_meta.json").read_text())
        cosine = meta["cosine_with_network"]
        assert meta["precision"] == Predictor(folder).precision == precision
        assert re.fullmatch(r"onnxruntime [\d.]+ on .+", cosine["measured_with"])
        assert (cosine["count"], cosine["images"]) == (
            (16, "random") if calibration is None else (24, str(calibration))
        )
        sizes[precision], lowest[precision] = (folder / "inference.onnx").stat().st_size, cosine["lowest"]
    assert sizes["float16"] < 0.55 * sizes["float32"] and sizes["int8"] < 0.4 * sizes["float32"]
    assert lowest["float32"] >= 0.999999 > lowest["int8"] and lowest["float16"] > 0.999 and lowest["int8"] > 0.95
    # Weights have 7 bits, so that no sum overflows on a CPU without VNNI.
    onnx = pytest.importorskip("onnx")
    network = onnx.load(str(tmp_path / "int8" / "inference.onnx"))
    arrays = map(onnx.numpy_helper.to_array, network.graph.initializer)
    assert 60 < max(np.abs(one.astype(int)).max() for one in arrays if one.dtype == np.int8 and one.size) <= 64
    # A user gets the cosine that the manifest reports.
    images = sorted((few_glyphs / "images").rglob("*.jpg"))
    found, wanted = (Predictor(tmp_path / name).embed(images) for name in ("int8", "float32"))
    each = np.diag(Predictor(tmp_path / "int8").compare(found, wanted))
    assert each.min() == pytest.approx(lowest["int8"], abs=1e-5)


def test_a_failed_export_is_reported_and_keeps_the_earlier_one(tmp_path, glyphs):
    paddle.seed(0)
    model = trained(Own())
    export(model, tmp_path, SHAPE)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(error, match, *arguments, model=model):
        with pytest.raises(error, match=match):
            export(model, tmp_path, SHAPE, *arguments)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    refused(ConfigError, "Paddle's tools make no such network that runs on a CPU", "paddle", "float16")
    refused(ConfigError, "precision 'int4': expected one of", "onnx", "int4")
    refused(ConfigError, "needs calibration images", "onnx", "int8")
    refused(DataError, "nowhere.txt: cannot be read", "onnx", "int8", glyphs / "nowhere.txt")
    infinite = Own()
    build(infinite, SHAPE)
    for parameter in infinite.parameters():
        parameter.set_value(paddle.full(parameter.shape, float("nan")))
    refused(ConfigError, "the network itself gives embeddings that are not finite", model=infinite)


def test_files_of_a_killed_export_are_removed_but_not_of_one_in_progress(tmp_path):
    (tmp_path / ".export-killed").mkdir()
    with lock_folder(tmp_path / ".export-alive", "wait"):
        export(trained(Own()), tmp_path, SHAPE)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == [".export-alive"]


class Pooled(paddle.nn.Layer):
    """A network whose adaptive pooling paddle2onnx does not convert to the same numbers, unless it is lucky."""

    def __init__(self, side):
        super().__init__()
        self.conv, self.pool = paddle.nn.Conv2D(3, 4, 3, stride=2, padding=1), paddle.nn.AdaptiveAvgPool2D(side)
        self.fc = paddle.nn.Linear(4 * side * side, 8)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))


class Scaled(Plain):
    """A network that changes the size of its feature map by a factor."""

    def forward(self, x):
        return super().forward(paddle.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))


class Unknown(Plain):
    """A network with an operator that paddle2onnx does not know."""

    def forward(self, x):
        return paddle.lgamma(super().forward(x))


class Sourceless(Plain):
    """A network of which Paddle cannot read the source code, as of one that was typed into an interpreter."""

    exec("def forward(self, x):\n    return self.fc(self.conv(x).mean([2, 3]))")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A folder with exports in both formats."""
    place = tmp_path_factory.mktemp("earlier")
    for format in ("paddle", "onnx"):
        export(trained(Plain()), place / format, SHAPE, format)
    return place


def test_classify_and_search_with_onnx_load_no_paddle(earlier, few_glyphs, tmp_path):
    pytest.importorskip("faiss")
    net, images = shutil.copytree(earlier / "onnx", tmp_path / "net"), few_glyphs / "images" / "0"
    manifest = net / "inference_meta.json"
    meta = json.loads(manifest.read_text())
    centres = SimpleNamespace(count=2, parts=lambda: [(np.eye(2, meta["emb_dim"], dtype="float32"), None)])
    meta["classes"], meta["class_names"] = write_centres(centres, meta["emb_dim"], net)[1], ["甲", "乙"]
    manifest.write_text(json.dumps(meta))
    commands = f"""
import sys
from plsc import cli
from plsc.search.embeddings import EmbeddingsWriter
from plsc.search.index import build_index
from pathlib import Path
from plsc import Predictor
here, images = Path({str(tmp_path)!r}), sorted(Path({str(images)!r}).iterdir())
predictor = Predictor(here / "net")
record = dict(count=len(images), emb_dim=predictor.emb_dim, model=predictor.network, image_shape=[3, 32, 32])
writer = EmbeddingsWriter(here / "e", record)
writer.append(predictor.embed(images))
writer.finish([(path.name, "") for path in images])
writer.close()
build_index(here / "e", here / "x")
for words in (["classify"], ["search", str(here / "x")]):
    assert cli.main([*words, "--model", str(here / "net"), str(images[0]), "--top", "1"]) == 0
assert "paddle" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", commands], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[1].endswith(("  甲", "  乙")) and "1.0000" in lines[3]


@pytest.mark.parametrize(
    ("make", "format", "words"),
    [
        (lambda: Pooled(7), "onnx", r"the lowest cosine is -?0\.\d+, and float32 needs at least 0.9999; nothing was"),
        (lambda: Pooled(24), "onnx", "paddle2onnx was killed by SIGFPE; export with format 'paddle'"),
        (Scaled, "onnx", r"paddle2onnx ended with status 255 \(Failed to convert PaddlePaddle model: .*MUST be"),
        (Unknown, "onnx", r"was killed by SIGABRT \(Due to the unsupported operators, the conversion is aborted"),
        (Sourceless, "paddle", r"paddle.jit.save cannot save the network \(could not get source code\)"),
    ],
)
def test_an_export_that_fails_or_disagrees_is_an_error_and_replaces_nothing(earlier, make, format, words):
    paddle.seed(0)
    model, place = make(), earlier / format
    before = {path: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ConfigError, match=words) as caught:
        export(model, place, SHAPE, format)
    assert "\n" not in str(caught.value) and ".cc:" not in str(caught.value) and ".export-" not in str(caught.value)
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_a_smaller_precision_does_not_hide_a_wrong_conversion(tmp_path, few_glyphs, caplog):
    paddle.seed(0)
    model, shape = Pooled(4), (3, 30, 30)
    model.fc.bias.set_value(paddle.full([8], 10.0))  # The cosines are then high enough for float16 and int8.
    words = "conversion to ONNX, before it is turned into {}, .* on {} images .* and float32 needs at least 0.9999; {}"
    with pytest.raises(
        ConfigError, match=words.format("int8", 17, "nothing was replaced; export with format 'paddle'")
    ):
        export(model, tmp_path, shape, "onnx", "int8", few_glyphs / "label.txt")
    assert not any(tmp_path.iterdir())
    export(model, tmp_path, shape, "onnx", "float16", force=True)
    assert re.search(words.format("float16", 16, "written because it was forced"), caplog.text)
    assert Predictor(tmp_path).precision == "float16"


def test_an_export_that_disagrees_can_be_forced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(export_module, "cosines", lambda found, wanted: {"mean": 0.98, "lowest": 0.5})
    with pytest.raises(ConfigError, match="export with format 'onnx', or force it"):
        export(trained(Plain()), tmp_path, SHAPE)
    assert not any(tmp_path.iterdir())
    export(trained(Plain()), tmp_path, SHAPE, force=True)
    assert "mean 0.98000, lowest 0.50000; the lowest cosine is 0.50000, and float32 needs" in caplog.text
    assert json.loads((tmp_path / "inference_meta.json").read_text())["cosine_with_network"]["lowest"] == 0.5
    for precision, found, words in (
        ("float32", {"mean": 1, "lowest": 0.99989}, "the lowest cosine is 0.99989, and float32 needs at least 0.9999"),
        ("float16", {"mean": 1, "lowest": 0.9989}, "the lowest cosine is 0.99890, and float16 needs at least 0.999"),
        ("int8", {"mean": 0.9899, "lowest": 0.98}, "the mean cosine is 0.98990, and int8 needs at least 0.99"),
        ("int8", {"mean": 0.99, "lowest": 0.3}, None),
    ):
        assert disagreement(precision, found) == words


def test_every_size_of_a_batch_is_tried(tmp_path, monkeypatch):
    sizes = []
    load = runtime.load_paddle

    def noting(*files):
        run = load(*files)
        return lambda images: (sizes.append(len(images)), run(images))[1]

    monkeypatch.setattr(runtime, "load_paddle", noting)
    export(trained(Plain()), tmp_path, SHAPE)
    assert sizes == [1, 15]


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_a_full_disk_is_named(small_disk, format):
    (small_disk / "of others").write_bytes(bytes(900_000))
    model = paddle.nn.Sequential(Plain(), paddle.nn.Linear(8, 20_000))
    with pytest.raises(ConfigError, match=r"is the disk of .*net full \(0 MB left\)\?|No space left on device"):
        export(model, small_disk / "net", SHAPE, format)
    assert not any((small_disk / "net").iterdir())


def test_a_cut_file_or_a_folder_in_the_way_keeps_the_earlier_export(tmp_path, monkeypatch):
    model = trained(Own())
    export(model, tmp_path, SHAPE)
    save = paddle.jit.save

    def cut_short(layer, path, **options):  # Paddle 3 does this on a full disk, without an error.
        save(layer, path, **options)
        with open(f"{path}.pdiparams", "r+b") as stream:
            stream.truncate(100)

    monkeypatch.setattr(paddle.jit, "save", cut_short)
    with pytest.raises(ConfigError, match="Paddle's inference library cannot run the exported network"):
        export(model, tmp_path, SHAPE)
    monkeypatch.undo()
    before = Predictor(tmp_path).embed_batch(np.ones((2, *SHAPE), "float32"))
    other = tmp_path / "other"
    (other / "inference.pdiparams").mkdir(parents=True)
    with pytest.raises(ConfigError, match="inference.pdiparams: is a folder"):
        export(model, other, SHAPE)
    assert [path.name for path in other.iterdir()] == ["inference.pdiparams"]
    np.testing.assert_array_equal(Predictor(tmp_path).embed_batch(np.ones((2, *SHAPE), "float32")), before)


def test_a_damaged_export_is_refused(tmp_path, monkeypatch):
    folder = export(trained(Own()), tmp_path, SHAPE)
    monkeypatch.setattr(paddle, "__version__", "2.6.2")  # Paddle 2 would crash on a file of Paddle 3.
    with pytest.raises(ConfigError, match="inference.json: Paddle 3 wrote it, and this is 2.6.2"):
        Predictor(folder)
    monkeypatch.undo()
    parameters = folder / "inference.pdiparams"
    whole = parameters.read_bytes()
    parameters.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match="inference.pdiparams: is not the file that was exported"):
        Predictor(folder)


def test_embed_batch_refuses_what_it_cannot_embed(tmp_path):
    predictor = Predictor(export(trained(Own()), tmp_path, SHAPE))
    assert predictor.embed_batch(np.zeros((0, *SHAPE), "float32")).shape == (0, 8)
    images = np.random.default_rng(0).normal(size=(3, *SHAPE))
    np.testing.assert_allclose(predictor.embed_batch(images), predictor.embed_batch(images.astype("float32")))
    for wrong in (
        np.zeros((2, 32, 32, 3), "float32"),
        np.zeros(SHAPE, "float32"),
        np.zeros((2, *SHAPE), "uint8"),
        None,
    ):
        with pytest.raises(DataError, match=r"expected normalised images \[B, 3, 32, 32\] float32"):
            predictor.embed_batch(wrong)
    images[1] = 3e38
    with pytest.raises(DataError, match="the embedding of image 1 of 3 is not finite; look for huge values"):
        predictor.embed_batch(images)
    with pytest.raises(DataError, match="expected a list of images, got str"):
        predictor.embed("a.jpg")
    with pytest.raises(DataError, match=r"compare: expected embeddings \[N, 8\]"):
        predictor.compare(np.ones((1, 8)), np.ones((1, 7)))


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_images_that_are_not_finite_are_refused_in_every_format(earlier, format):
    predictor = Predictor(earlier / format)
    images = np.zeros((3, *SHAPE), "float32")
    assert predictor.embed_batch(images).shape == (3, 8)
    for value in (np.nan, np.inf, -np.inf):
        images[1, 0, 5, 5] = value
        with pytest.raises(DataError, match="image 1 of 3 holds values that are not finite"):
            predictor.embed_batch(images)


def test_grey_images_of_any_size_decoded_in_threads_keep_their_order(tmp_path):
    paddle.seed(0)
    model = build_model("GlyphNet", 8, (1, 32, 32))
    build(model, (1, 32, 32))
    folder = export(model, tmp_path, (1, 32, 32))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*rng.integers(8, 60, 2), 3), dtype=np.uint8) for _ in range(13)]
    images += [Image.fromarray(images[0])] * 6 + [images[1][:, :, 0]]
    threads, none = (Predictor(folder, batch_size=3, num_workers=n).embed(images) for n in (4, 0))
    assert threads.shape == (20, 8)
    np.testing.assert_array_equal(threads, none)
    with pytest.raises(DataError, match="image 19: cannot decode"):
        Predictor(folder, batch_size=3).embed([*images[:19], b"no image"])


def test_the_commands_train_test_and_export(few_glyphs, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("from plsc import Entry\nEntry().train()\n")
    small = ["model_name=MobileFaceNet", "num_classes=12", "image_shape=[3, 32, 32]", "emb_dim=16", "train_epochs=1"]
    small += [f"dataset_dir={few_glyphs}", f"model_save_dir={tmp_path / 'output'}", "val_targets=glyphs"]

    process = run_plsc("run", *[part for text in small for part in ("--set", text)], script)
    assert process.returncode == 0, process.stderr[-3000:]
    checkpoint = tmp_path / "output" / "0"
    process = run_plsc("test", "--checkpoint", checkpoint, "--dataset", few_glyphs, "--targets", "glyphs", "--json")
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads(process.stdout) == json.loads((checkpoint / "meta.json").read_text())["test"]
    small = ("--format", "onnx", "--precision", "int8", "--calibration", few_glyphs / "images")
    process = run_plsc("export", "--checkpoint", checkpoint, "--output", tmp_path / "net", *small)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "int8 export, cosine of its embeddings with the network's on 24 images" in process.stderr
    predictor = Predictor(tmp_path / "net")
    assert predictor.precision == "int8" and predictor.embed([np.zeros((32, 32, 3), np.uint8)]).shape == (1, 16)
    process = run_plsc("export", "--checkpoint", tmp_path, "--output", tmp_path / "other")
    assert process.returncode == 1 and "Traceback" not in process.stderr


SCRIPT = """
import paddle
from plsc import Entry

class Net(paddle.nn.Layer):
    def __init__(me, emb_dim=512, *, image_shape=(3, 16, 16)):
        super().__init__()
        me.fc = paddle.nn.Linear(3 * image_shape[1] * image_shape[2], emb_dim)

    def forward(me, pixels):  # Python does not ask for the name self
        return me.fc(pixels.flatten(1))

def wide():
    return Net(7)

def wants(size):
    return Net(size)

ins = Entry(settings={"num_classes": 3, "image_shape": [3, 16, 16], "emb_dim": 4, "with_test": False})
ins.set_model(Net(4))
ins.set_model_save_dir(FOLDER)
ins.set_train_epochs(1)
ins.train_reader = [[(paddle.ones([3, 16, 16]).numpy() * i, i) for i in range(3)]]
ins.train()
raise SystemExit("the script ran on after its training")
"""


def test_the_commands_take_the_model_of_a_checkpoint_from_its_script(tmp_path, capsys):
    script, output, net = tmp_path / "my_script.py", tmp_path / "out", tmp_path / "net"
    text = SCRIPT.replace("FOLDER", repr(str(output)))
    with contextlib.suppress(SystemExit):
        exec(compile(text, "script", "exec"), {"__name__": "script"})
    script.write_text(text)
    words = ["export", "--checkpoint", str(output / "0"), "--output", str(net)]
    for option, said in (
        ([], "'Net' is a custom one; name the script and the class that define it, as in --model-from train.py:Net"),
        (["--model-from", str(script)], "expected FILE:NAME"),
        (["--model-from", f"{script}:Nett"], "defines no Nett; it defines Net"),
        (["--model-from", f"{script}:wants"], "wants() raised TypeError: "),
        (["--model-from", f"{script}:ins"], "set_model(Entry): expected an instance"),
        (["--model-from", f"{script}:wide"], "set_emb_size(4), but Net returns embeddings of size 7"),
        (["--model-from", f"{tmp_path}:Net"], "is not a file"),
    ):
        assert cli.main([*words, *option]) == 1
        assert said in capsys.readouterr().err
    assert cli.main(["classify", "--checkpoint", words[2], "--model-from", f"{script}:ins", "a.jpg"]) == 1
    assert "set_model(Entry): expected an instance" in capsys.readouterr().err
    before = (output / "0" / "meta.json").read_bytes()
    assert cli.main([*words, "--model-from", f"{script}:Net"]) == 0
    assert (output / "0" / "meta.json").read_bytes() == before and not (output / "earlier_1").exists()
    assert Predictor(net).emb_dim == 4
    assert cli.main(["classify", "--model", str(net), "--model-from", f"{script}:Net", "a.jpg"]) == 1
    assert "--model is an export; leave it out" in capsys.readouterr().err


def test_a_model_file_finds_fluid_and_replaces_no_module(tmp_path, monkeypatch):
    for owner, name in ((sys, "path"), (sys, "meta_path")):
        monkeypatch.setattr(owner, name, [*getattr(owner, name)])
    monkeypatch.setitem(sys.modules, "paddle.fluid", None)
    monkeypatch.delitem(sys.modules, "paddle.fluid")
    monkeypatch.setattr(paddle, "fluid", None, raising=False)
    monkeypatch.delattr(paddle, "fluid")
    script, module = tmp_path / "types.py", sys.modules["types"]
    script.write_text("import paddle.fluid\nclass Net(paddle.nn.Layer):\n    fluid = paddle.fluid.__name__\n")
    assert make_model(f"{script}:Net", {}).fluid == "plsc.fluid"
    assert sys.modules["types"] is module
