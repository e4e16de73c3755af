"""Tests on sets of every kind, compared with a plain computation."""

import base64
import json
import shutil

import numpy as np
import paddle
import pytest
from PIL import Image
from ranks import run_plsc

from plsc import cli, metrics
from plsc.config import Config
from plsc.data.image_folders import image_files
from plsc.data.test_sets import find_sets, read_gallery
from plsc.data.transforms import decode_file, normalize
from plsc.data.verification import load_verification, save_verification
from plsc.errors import ConfigError, DataError
from plsc.evaluation.build import build_evaluator
from plsc.evaluation.evaluator import Evaluator
from plsc.inference.networks import TrainedNetwork

SHAPE = (3, 32, 32)


class Counting(paddle.nn.Layer):
    """A network of one matrix product that counts the images it embeds."""

    def __init__(self):
        super().__init__()
        paddle.seed(1)
        self.product, self.images = paddle.nn.Linear(3 * 32 * 32, 16, bias_attr=False), 0

    def forward(self, images):
        self.images += len(images)
        return self.product(images.flatten(1))

    def embed(self, pixels):
        """Returns the embeddings of uint8 images, averaged over the mirror images."""
        both = (normalize(pixels), normalize(pixels[:, :, ::-1]))
        return np.mean([self.product(paddle.to_tensor(images).flatten(1)).numpy() for images in both], axis=0)


def config_of(folder, targets, **changes):
    return Config(
        dataset_dir=str(folder), val_targets=targets, image_shape=SHAPE, emb_dim=16, test_batch_size=7, **changes
    )


def result_of(config, net, **options):
    sets = find_sets(config.dataset_dir, config.val_targets, SHAPE)
    if config.identification:
        sets.append(read_gallery(*config.identification))
    return Evaluator(sets, None, config, options.pop("pairs_dir", None), **options)(TrainedNetwork(net, config))


def same(found, expected):
    """Checks that results agree up to the rounding of embeddings."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            same(found[key], value)
        else:
            assert found[key] == pytest.approx(value, abs=2e-3, nan_ok=True), key


@pytest.mark.core
def test_an_image_that_occurs_twice_is_embedded_once(glyphs):
    net = Counting()
    found = result_of(config_of(glyphs, "glyphs"), net)["glyphs"]
    pairs = load_verification(str(glyphs / "glyphs.bin"), SHAPE)
    distinct = len(np.unique(pairs.images.reshape(len(pairs.images), -1), axis=0))
    assert net.images == 2 * distinct < 2 * len(pairs.images)  # The factor 2 counts the mirror images.
    same(found, metrics.verification_metrics(net.embed(pairs.images), pairs.issame))


@pytest.mark.core
def test_a_folder_of_identities_is_tested_on_all_pairs(glyphs):
    net = Counting()
    found = result_of(config_of(glyphs, "images", test_fars=(0.2, 1e-2)), net)["images"]
    files = image_files(glyphs / "images")
    labels = np.unique([path.parent.name for path in files], return_inverse=True)[1]
    embeddings = net.embed(np.stack([decode_file(path, SHAPE) for path in files]))
    counts = metrics.count_different(embeddings, labels)
    same(found, metrics.all_pairs_metrics(embeddings, labels, counts, (0.2, 1e-2)))
    assert set(found["at_far"]) == {"2e-1", "1e-2"} and found["different_pairs"] == 96 * 95 // 2 - 12 * 8 * 7 // 2


@pytest.mark.core
def test_pairs_of_templates_are_tested(glyphs, tmp_path):
    for number in range(4):
        shutil.copytree(glyphs / "images" / str(number), tmp_path / str(number))
    images = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
    lines = [
        f"{images[0]} 0 1",
        f"{images[1]} 1 0",
        "2 3 0",
        f"{images[8]} 1 1",
        f"{images[9]} 2 0",
        f"{images[30]} 3 1",
    ]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    net = Counting()
    found = result_of(config_of(tmp_path, "pairs"), net, pairs_dir=tmp_path)["pairs"]

    def template(name):
        path = tmp_path / name
        pixels = np.stack([decode_file(one, SHAPE) for one in (image_files(path) if path.is_dir() else [path])])
        rows = net.embed(pixels)
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
        return mean / np.linalg.norm(mean)

    rows = np.stack([template(name) for line in lines for name in line.split()[:2]])
    expected = metrics.verification_metrics(rows, np.array([line[-1] == "1" for line in lines]))
    assert found["xnorm"] > 1.5  # The mean norm is that of images, not of templates.
    same({**found, "xnorm": 1.0}, expected)
    left = np.load(tmp_path / "pairs_pairs.npz")
    assert np.allclose(left["similarity"], (rows[::2] * rows[1::2]).sum(1), atol=1e-5)
    assert left["hard_images"].shape == (6, 2, 32, 32, 3)


@pytest.mark.core
def test_probes_are_found_in_a_gallery(glyphs, tmp_path):
    """Seven of twelve identities are known, by four images each; the other images are the probes."""
    for number in range(12):
        for k, path in enumerate(image_files(glyphs / "images" / str(number))):
            place = tmp_path / ("known" if number < 7 and k < 4 else "probes") / str(number) / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    net = Counting()
    places = (tmp_path / "known", tmp_path / "probes")
    found = result_of(config_of(tmp_path, "", identification=places), net)["identification"]

    def rows_of(folder):
        files = image_files(folder)
        return net.embed(np.stack([decode_file(path, SHAPE) for path in files])), [
            int(path.parent.name) for path in files
        ]

    known, names = rows_of(tmp_path / "known")
    gallery = metrics.average_templates(known, np.array(names))
    probes, wanted = rows_of(tmp_path / "probes")
    same(found, metrics.identification_metrics(gallery, np.arange(7), probes, np.array(wanted)))
    assert found["probes"] == 68 and found["mated"] == 28 and found["gallery"] == 7
    assert 1 / 7 < found["rank@1"] <= found["rank@5"] <= found["rank@10"] == 1


@pytest.mark.core
def test_kept_embeddings_are_used_while_images_and_network_stay_the_same(glyphs, tmp_path):
    shutil.copytree(glyphs / "images", tmp_path / "data" / "images")
    shutil.copy(glyphs / "glyphs.bin", tmp_path / "data")
    config, net, kept = config_of(tmp_path / "data", "images,glyphs"), Counting(), tmp_path / "kept"
    first = result_of(config, net, kept_dir=kept)
    embedded = net.images
    assert first == result_of(config, net, kept_dir=kept) and net.images == embedded
    assert first == result_of(config, net) and net.images == 2 * embedded
    path = image_files(tmp_path / "data" / "images")[5]
    path.write_bytes(image_files(tmp_path / "data" / "images")[60].read_bytes())
    assert result_of(config, net, kept_dir=kept)["images"] != first["images"] and net.images > 2 * embedded
    embedded = net.images
    net.product.weight.set_value(net.product.weight + 0.1)
    assert result_of(config, net, kept_dir=kept) != first and net.images > embedded
    assert len(list(kept.iterdir())) == 5  # Both sets, the changed set, and both with the other network.


def made_set(folder, kind):
    """Makes a test set `set` that cannot work, and returns the settings that name it."""

    def image(name, content=None):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(path)
        if content is not None:
            path.write_bytes(content)

    one_each = ["set/a/1.jpg", "set/b/1.jpg", "set/c/1.jpg"]
    two_of_a = ["set/a/1.jpg", "set/a/2.jpg", "set/b/1.jpg"]
    for name in {"one image each": one_each, "one identity": two_of_a[:2]}.get(kind, two_of_a):
        image(name)
    if kind == "empty file":
        image("set/b/1.jpg", b"")
    if kind == "no image":
        image("set/b/1.jpg", b"<html>not found</html>")
    if kind == "cut header":
        image("set/b/1.jpg", (folder / "set/a/1.jpg").read_bytes()[:3])
    if kind == "pairs":
        (folder / "set.txt").write_text("set/a/1.jpg set/a/2.jpg 1\nset/a/1.jpg set/b/9.jpg 0\n")
    if kind == "pairs of one kind":
        (folder / "set.txt").write_text("set/a/1.jpg set/a/2.jpg 1\nset/a/2.jpg set/a/1.jpg 1\n")
    if kind == "binary of one kind":
        save_verification(str(folder / "set.bin"), [(folder / "set/a/1.jpg").read_bytes()] * 4, [False] * 2)
    if kind == "pairs of an empty file":
        image("set/b/1.jpg", b"")
        (folder / "set.txt").write_text("set/a/1.jpg set/a/2.jpg 1\nset/a/1.jpg set/b/1.jpg 0\n")
    if kind == "base64":
        line = base64.b64encode((folder / "set/a/1.jpg").read_bytes()).decode()
        image("set/1/1.jpg")
        (folder / "part").write_text(f"{line}\t1\n{line[:-3]}\t1\n{line}\t2\n")
        (folder / "file_list.txt").write_text("part\n")
        return {"val_targets": "", "identification": (str(folder / "set"), str(folder / "file_list.txt"))}
    if kind == "other probes":
        image("probes/z/1.jpg")
        return {"val_targets": "", "identification": (str(folder / "set"), str(folder / "probes"))}
    if kind == "large images":
        return {"val_targets": "set", "max_image_pixels": 20 * 20 - 1}
    return {"val_targets": "set"}


@pytest.mark.core
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("one image each", "set: .*3 images of 3 classes do not give pairs of both kinds"),
        ("one identity", "set: .*2 images of 1 class do not give pairs"),
        ("empty file", "set/b/1.jpg: the file is empty"),
        ("no image", "set/b/1.jpg: cannot decode the image .*not an image .*a web page"),
        ("cut header", "set/b/1.jpg: cannot decode the image .*its header is damaged or cut off"),
        ("pairs", "set.txt:2: .*9.jpg is neither an image nor a folder"),
        ("pairs of one kind", "^set: of 2 pairs all are of the same identity"),
        ("binary of one kind", "^set: of 2 pairs all are of different identities"),
        ("pairs of an empty file", "set.txt:2: set/b/1.jpg: the file is empty"),
        ("base64", "part:2: .*base64"),
        ("other probes", "probes: no probe has an identity of the gallery"),
        ("large images", "20 x 20 pixels are more than 399"),
    ],
)
def test_a_set_that_cannot_work_is_refused_before_training(kind, words, tmp_path):
    config = Config(dataset_dir=str(tmp_path), image_shape=SHAPE, emb_dim=16, **made_set(tmp_path, kind))
    with pytest.raises(DataError, match=words) as caught:
        build_evaluator(config).check()
    assert "\n" not in str(caught.value)


@pytest.mark.core
def test_a_set_and_the_gallery_need_different_names(few_glyphs, tmp_path):
    shutil.copytree(few_glyphs / "images", tmp_path / "identification")
    config = config_of(tmp_path, "identification", identification=(str(tmp_path / "identification"),) * 2)
    with pytest.raises(DataError, match="two test sets are called 'identification'"):
        build_evaluator(config)


@pytest.mark.core
def test_an_embedding_that_is_not_finite_is_named(glyphs):
    net = Counting()
    net.product.weight.set_value(paddle.full_like(net.product.weight, np.nan))
    with pytest.raises(DataError, match=r"0/\S+.jpg: its embedding is not finite"):
        result_of(config_of(glyphs, "images"), net)


@pytest.mark.core
def test_pairs_for_the_report_that_cannot_be_written_are_reported(glyphs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="glyphs_pairs.npz: cannot be written"):
        result_of(config_of(glyphs, "glyphs"), Counting(), pairs_dir=tmp_path / "file")


@pytest.mark.core
def test_ranks_share_every_kind_of_test(ranks, glyphs, tmp_path):
    for number in (1, 3):
        ranks("evaluate_sets.py", number, glyphs, tmp_path / str(number))
    alone = json.loads((tmp_path / "1" / "rank_0.json").read_text())
    assert set(alone) == {"glyphs", "images", "identification"}
    for rank in range(3):
        same(json.loads((tmp_path / "3" / f"rank_{rank}.json").read_text()), alone)


def test_the_command_tests_on_sets_and_on_a_gallery(once, few_glyphs, tmp_path, capsys):
    from plsc import Entry

    def train(place):
        ins = Entry()
        ins.set_dataset_dir(str(few_glyphs))
        ins.set_class_num(12)
        ins.set_image_shape(SHAPE)
        ins.set_emb_size(16)
        ins.set_model_name("GlyphNet")
        ins.set_train_batch_size(32)
        ins.set_train_epochs(1)
        ins.set_val_targets("images")
        ins.set_identification(str(few_glyphs / "images"), str(few_glyphs / "label.txt"))
        ins.set_model_save_dir(str(place))
        ins.train()

    folder = once("tested-on-sets", train)
    meta = json.loads((folder / "0" / "meta.json").read_text())
    assert set(meta["test"]) == {"images", "identification"}
    images = str(few_glyphs / "images")
    arguments = ["test", "--checkpoint", str(folder / "0"), "--gallery", images, "--probes", images, "--json"]
    kept = ["--embeddings", str(tmp_path / "kept")]
    outputs = []
    for more in (kept, kept, ["--dataset", str(few_glyphs), "--targets", "images", "--far", "1e-1,3e-1"]):
        assert cli.main([*arguments, *more]) == 0
        outputs.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert outputs[0] == outputs[1] and set(outputs[0]) == {"identification"}
    assert set(outputs[2]["images"]["at_far"]) == {"1e-1", "3e-1"}
    two = [
        "test",
        "--checkpoint",
        str(folder / "0"),
        "--dataset",
        str(few_glyphs),
        "--targets",
        "images",
        "--ranks",
        "2",
        "--json",
    ]
    process = run_plsc(*two)
    assert process.returncode == 0, process.stderr
    same(
        json.loads(process.stdout),
        {"images": {**outputs[2]["images"], "at_far": json.loads(process.stdout)["images"]["at_far"]}},
    )
    export = str(tmp_path / "net")
    assert cli.main(["export", "--checkpoint", str(folder / "0"), "--output", export]) == 0
    assert (
        cli.main(
            ["test", "--model", export, "--dataset", str(few_glyphs), "--targets", "images", "--far", "0.1", "--json"]
        )
        == 0
    )
    exported = json.loads(capsys.readouterr().out.splitlines()[-1])["images"]
    same({**exported, "at_far": {}}, {**outputs[2]["images"], "at_far": {}})
    for wrong, words in (
        (["--gallery", images], "--gallery and --probes need each other"),
        ([], "--dataset is missing"),
        (["--dataset", str(few_glyphs), "--targets", ""], "there is nothing to test on"),
        (["--dataset", str(few_glyphs), "--far", "often"], "--far often: expected rates"),
        (["--dataset", str(few_glyphs), "--far", "0.7"], "set_test_fars"),
    ):
        assert cli.main(["test", "--checkpoint", str(folder / "0"), *wrong]) == 1
        assert words in capsys.readouterr().err
