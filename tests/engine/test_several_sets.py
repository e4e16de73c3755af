"""Training on several data sets together."""

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file
from train_glyphs import TinyNet

from plsc import Entry, parallel
from plsc.checkpoint import download, head_file, open_checkpoint
from plsc.checkpoint.convert import convert
from plsc.config import Config, DataCache
from plsc.data.records import Record
from plsc.data.tar_shards import TarWriter
from plsc.datasets.conversion import Conversion
from plsc.datasets.conversion import convert as convert_data
from plsc.engine.build import open_source
from plsc.engine.state import TrainingState
from plsc.engine.upload import _owner_of
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.inference.classes import CheckpointCentres
from plsc.machine import mounts
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options

FIRST = 7  # classes of the first set; the second has the other 5


@pytest.fixture(scope="module")
def halves(glyphs, tmp_path_factory):
    """The glyphs as two data sets; only the second has the test set."""
    folders = [tmp_path_factory.mktemp("halves") / name for name in ("first", "second")]
    lines = [line.rpartition(" ") for line in (glyphs / "label.txt").read_text().splitlines()]
    for folder, lower, upper in zip(folders, (0, FIRST), (FIRST, 12)):
        folder.mkdir()
        (folder / "images").symlink_to(glyphs / "images")
        own = [f"{path} {int(label) - lower}\n" for path, _, label in lines if lower <= int(label) < upper]
        (folder / "label.txt").write_text("".join(own))
    shutil.copy(glyphs / "glyphs.bin", folders[1])
    return [str(folder) for folder in folders]


def small(save_dir, norm=True, optimizer=None, **settings):
    """An entry that trains a small network for two epochs, in this process."""
    settings = {"num_classes": "auto", "train_epochs": 2, "log_period": 1, "val_targets": "glyphs", **settings}
    settings = {"image_shape": [3, 32, 32], "emb_dim": 16, "train_batch_size": 16, "with_test": False, **settings}
    ins = Entry(settings=settings)
    paddle.seed(0)
    ins.set_model(TinyNet(norm))
    if optimizer is not None:
        ins.set_optimizer(optimizer)
    ins.set_model_save_dir(None if save_dir is None else str(save_dir))
    return ins


def records_of(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in ("images_per_second", "time")} for record in records]


def assert_same(folder, other):
    """Asserts that two runs have the same losses and the same last checkpoint, to the bit."""
    assert records_of(folder) == records_of(other)
    files = sorted((folder / "1").glob("*.safetensors"))
    assert [path.name for path in files] == sorted(path.name for path in (other / "1").glob("*.safetensors"))
    for path in files:
        for name, tensor in load_file(path).items():
            np.testing.assert_array_equal(load_file(other / "1" / path.name)[name], tensor, err_msg=name)


def test_a_list_leaves_images_out_of_several_sets(halves, tmp_path):
    (tmp_path / "list").write_text(
        "".join(f"{Path(folder).name}/{line.rpartition(' ')[0]}\tblurred\n" for folder in halves
                for line in Path(folder, "label.txt").read_text().splitlines()[:3])
    )  # fmt: skip
    for heads in ("merged", "separate"):
        config = Config(dataset_dir=tuple(halves), num_classes=12, exclude=str(tmp_path / "list"), heads=heads)
        config.check_combination()
        source = open_source(config)
        counts = np.bincount(source.labels())
        assert source.num_images == 12 * 8 - 6 and counts[0] == counts[FIRST] == 5 and counts.sum() == 90


@pytest.fixture(scope="module")
def kinds(glyphs, tmp_path_factory):
    """The glyphs in several formats, whose test set only one of them has."""
    root = tmp_path_factory.mktemp("kinds")
    shutil.copytree(glyphs, root / "jpeg")
    for to in ("tar", "recordio"):
        convert_data(
            Conversion(str(glyphs), str(root / to), to, shards=2 if to == "tar" else None, workers=1), lambda *a: 0
        )
    shuffle_base64(Options(str(glyphs), "file_list.txt", 6, str(root / "split"), workers=1))
    (root / "jpeg" / "glyphs.bin").rename(root / "tar" / "glyphs.bin")
    return root


def in_stores(kinds, tmp_path, size=10**9):
    """Settings of four data sets, of which three are in a store; and the same on this machine."""
    remote = {"data_cache": DataCache(str(tmp_path / "cache"), size)}
    remote["dataset_dir"] = (*(f"file://{kinds}/{name}" for name in ("jpeg", "split", "tar")), str(kinds / "recordio"))
    return remote, {"dataset_dir": tuple(str(kinds / name) for name in ("jpeg", "split", "tar", "recordio"))}


SHARES = {"all": 10**9, "all but the tars": 400_000, "lists and base64 alone": 200_000}


@pytest.mark.parametrize("size", SHARES)
@pytest.mark.parametrize(
    "settings", [{}, {"weights": (0.5, 1.0, 2.0, 1.0)}, {"heads": "separate"}, {"sampler": "balanced"}, {"exclude": 9}]
)
def test_sets_in_a_store_give_what_they_give_on_the_disk(kinds, tmp_path, size, settings, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    caplog.set_level(logging.INFO, "plsc")
    settings = {**settings, "val_targets": "glyphs", "num_workers": 2}
    if "weights" in settings:
        settings["set_weights"] = settings.pop("weights")
    if "exclude" in settings:
        names = [line.rpartition(" ")[0] for line in (kinds / "jpeg" / "label.txt").read_text().splitlines()[:9]]
        (tmp_path / "list").write_text("".join(f"jpeg/{name}\n" for name in names) + "split/base64_rank_3:4\n")
        settings["exclude"] = f"file://{tmp_path}/list"
        settings["data_cache"] = DataCache(str(tmp_path / "cache"), SHARES[size])
    stored, local = in_stores(kinds, tmp_path, SHARES[size])
    configs = [Config(**{**settings, **where}, num_classes=0) for where in (stored, local)]
    configs[0].check_combination()
    sources = [open_source(config) for config in configs]
    fields = ("num_classes", "class_names", "separate_heads", "data_shuffle")
    assert all(getattr(configs[0], name) == getattr(configs[1], name) for name in fields)
    assert sources[0].digests() == sources[1].digests()
    assert (sources[0].labels() == sources[1].labels()).all()
    for epoch, begin in ((0, 0), (1, 50)):
        orders = [source.epoch_order(5, epoch, 1, 2)[begin:] for source in sources]
        assert (orders[0] == orders[1]).all()
        sources[0].will_read(orders[0])
        for i in orders[0].tolist():
            assert sources[0].read(i) == sources[1].read(i) and sources[0].name(i) == sources[1].name(i)
            assert sources[0].where(i).removeprefix("file://") == sources[1].where(i)
    sources[0].close()
    assert len({line for line in caplog.messages if "read in place" in line}) == list(SHARES).index(size)
    held = sum(path.stat().st_size for path in (tmp_path / "cache").glob("plsc_*/files/**/*") if path.is_file())
    assert held <= SHARES[size] and not list((tmp_path / "cache").glob("plsc_claims/*"))


@pytest.mark.parametrize("size", [10**9, 10_000])
def test_sets_may_lie_in_the_same_folder_of_a_store_and_overlap(kinds, tmp_path, size):
    names = ("tar/train-00000-of-00002.tar", "tar/train-00001-of-00002.tar", "tar")
    cache = DataCache(str(tmp_path / "cache"), size)
    local = open_source(Config(dataset_dir=tuple(f"{kinds}/{name}" for name in names), num_classes=0))
    stored = open_source(
        Config(dataset_dir=tuple(f"file://{kinds}/{name}" for name in names), num_classes=0, data_cache=cache)
    )
    order = stored.epoch_order(5, 0, 0, 1)
    stored.will_read(order)
    assert (order == local.epoch_order(5, 0, 0, 1)).all() and len(order) == 2 * 96
    assert [stored.read(i) for i in order.tolist()] == [local.read(i) for i in order.tolist()]
    stored.close()
    assert not mounts._mounts and not list((tmp_path / "cache").glob("plsc_claims/*"))


def test_what_must_be_kept_of_several_sets_does_not_fit(kinds, tmp_path):
    stored, _ = in_stores(kinds, tmp_path, 100_000)
    words = "100 kB is too small for what cannot be read in place: .* of file://.*/split; .*larger size, or convert"
    with pytest.raises(ConfigError, match=words):
        open_source(Config(**stored, num_classes=0))
    assert not list((tmp_path / "cache").glob("plsc_claims/*"))


def test_a_mistake_in_a_set_on_this_machine_costs_no_download(kinds, tmp_path):
    stored, _ = in_stores(kinds, tmp_path)
    stored["dataset_dir"] = (*stored["dataset_dir"][:3], str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        open_source(Config(**stored, num_classes=0))
    assert not (tmp_path / "cache").exists()


def test_sets_in_a_store_train_and_test_as_those_on_the_disk(kinds, tmp_path):
    stored, local = in_stores(kinds, tmp_path)
    for name, where in (("one", local), ("two", stored)):
        cache = {"data_cache": {"directory": str(tmp_path / "cache"), "size": 200_000}} if name == "two" else {}
        result = small(tmp_path / name, dataset_dir=list(where["dataset_dir"]), with_test=True, **cache).train()
        assert "glyphs" in result["test"]
    assert_same(tmp_path / "one", tmp_path / "two")
    with pytest.raises(DataError, match=r"^file://.*/jpeg/lfw.bin: no such test set, nor lfw.txt"):
        small(None, dataset_dir=list(stored["dataset_dir"]), with_test=True, val_targets="lfw", **cache).train()


def test_merged_sets_train_as_one_set_of_all_their_images(glyphs, halves, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "images").symlink_to(glyphs / "images")
    parts = [[line.rsplit(" ", 1) for line in Path(folder, "label.txt").read_text().splitlines()] for folder in halves]
    lines = [f"{path} {int(label) + shift}\n" for part, shift in zip(parts, (0, FIRST)) for path, label in part]
    (whole / "label.txt").write_text("".join(lines))
    shutil.copy(glyphs / "glyphs.bin", whole)
    small(tmp_path / "one", dataset_dir=str(whole), with_test=True).train()
    result = small(tmp_path / "two", dataset_dir=halves, with_test=True).train()
    assert "glyphs" in result["test"] and result["steps"] == 12
    assert_same(tmp_path / "one", tmp_path / "two")


def resumed(tmp_path, **settings):
    """Trains two epochs at once, and again from the checkpoint of the fourth step; returns both folders."""
    small(tmp_path / "whole", save_period=4, **settings).train()
    (tmp_path / "rest").mkdir()
    shutil.copytree(tmp_path / "whole" / "step_4", tmp_path / "rest" / "step_4")
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", tmp_path / "rest")
    small(tmp_path / "rest", save_period=4, resume=True, **settings).train()
    return tmp_path / "whole", tmp_path / "rest"


def test_weights_draw_the_images_of_a_set_more_often_and_resume_to_the_bit(halves, base64_glyphs, tmp_path):
    sets = {"directory": [*halves, str(base64_glyphs)], "weights": [0.5, 1.5, 0.25]}
    whole, rest = resumed(tmp_path, dataset_dir=sets, calc_acc=True)
    assert records_of(whole)[-1]["step"] == 2 * -(-(28 + 60 + 24) // 16)
    assert_same(whole, rest)
    assert json.loads((whole / "1" / "meta.json").read_text())["num_classes"] == 24


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_classes": 11}, r"set_class_num\(11\).* 12 classes together \(7 in first, 5 in second\); call set_class"),
        ({"dataset_dir": ["missing"]}, "missing: holds no training data .no such file or folder."),
        ({"data_format": "base64"}, "first/base64_manifest.json: missing"),
        ({"with_test": True, "val_targets": "lfw"}, "first/lfw.bin.*/first holds images .*/second holds glyphs"),
    ],
)
def test_what_does_not_fit_several_sets_is_one_line(halves, tmp_path, change, words):
    more = change.pop("dataset_dir", [])
    with pytest.raises((ConfigError, DataError), match=words):
        small(None, **{"dataset_dir": [*halves, *more], **change}).train()


def test_a_reader_replaces_sets_but_not_their_weights(halves, tmp_path):
    ins = small(None, num_classes=3, dataset_dir=halves, train_epochs=1)
    pixels = np.zeros([4, 3, 32, 32], "uint8")
    ins.train_reader = [[(image, number % 3) for number, image in enumerate(pixels)]]
    ins.train()
    ins = small(None, num_classes=3, dataset_dir={"directory": halves, "weights": [1, 2]})
    ins.train_reader = [[(image, number % 3) for number, image in enumerate(pixels)]]
    with pytest.raises(ConfigError, match="weights=.*train_reader"):
        ins.train()


SEPARATE = {
    "plain": {"calc_acc": True},
    "sampled": {"sample_ratio": 0.5, "gradient_accumulation": 2, "train_batch_size": 8},
    "mixed": {"mixed_precision": {"use_fp16": True, "init_loss_scaling": 64.0, "simulate": True}, "gradient_clip": 0.5},
    "adaface": {"loss_type": "adaface"},
    "adam": {},
}


@pytest.mark.parametrize("name", SEPARATE)
def test_separate_heads_resume_to_the_bit(halves, tmp_path, name):
    sets = {"directory": halves, "heads": "separate", "weights": [1, 0.5]}
    optimizer = (lambda parameters: paddle.optimizer.Adam(0.01, parameters=parameters)) if name == "adam" else None
    whole, rest = resumed(tmp_path, optimizer=optimizer, dataset_dir=sets, **SEPARATE[name])
    assert_same(whole, rest)
    last = records_of(whole)[-1]
    assert set(last["losses"]) == {"first", "second"} and last["loss"] < max(last["losses"].values())
    meta = json.loads((whole / "1" / "meta.json").read_text())
    assert (meta["heads"], meta["num_classes"], meta["head_rows"]) == ([7, 5], 12, [7, 5])
    assert len(list((whole / "1").glob("dist@head@rank@*"))) == 2


def head_of(folder, number, ranks):
    """Returns the tensors of a head that `ranks` ranks have saved."""
    files = [load_file(folder / head_file(number * ranks + rank)) for rank in range(ranks)]
    return {name: np.concatenate([file[name] for file in files]) for name in files[0]}


def test_separate_heads_train_the_same_on_any_number_of_ranks(ranks, halves, tmp_path):
    """Two ranks train the first epoch, and three the second; one rank trains both."""
    sets, common = [halves, "separate", [1, 0.5]], {"scale": 8.0, "gradient_clip": 0.5}
    words = ["scale=8.0", "gradient_clip=0.5", f"dataset_dir={json.dumps(sets)}", "log_period=1"]
    for number, batch, epochs in ((2, 12, 1), (3, 8, 2)):
        ranks(
            "train_glyphs.py", number, halves[0], tmp_path / "many", "--no-norm", f"train_batch_size={batch}",
            f"train_epochs={epochs}", "with_test=false", "resume=true", *words,
        )  # fmt: skip
    named = dict(zip(("directory", "heads", "weights"), sets))
    common.update(num_classes=12, train_batch_size=24, augmentation={"mirror": False})
    small(tmp_path / "one", norm=False, dataset_dir=named, **common).train()
    losses = [[record["loss"] for record in records_of(tmp_path / folder)] for folder in ("one", "many")]
    assert len(losses[0]) == 8
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for number, size in enumerate((7, 5)):
        one, many = head_of(tmp_path / "one" / "1", number, 1), head_of(tmp_path / "many" / "1", number, 3)
        assert one.keys() == many.keys() and len(one["weight"]) == size
        for name in one:
            np.testing.assert_allclose(many[name], one[name], rtol=1e-3, atol=1e-5, err_msg=f"{name} of head {number}")


@pytest.fixture(scope="module")
def separate(halves, tmp_path_factory):
    """A checkpoint of two separate heads."""
    folder = tmp_path_factory.mktemp("separate")
    sets = {"directory": halves, "heads": "separate"}
    small(folder, train_epochs=1, dataset_dir=sets, save_period=3, loss_type="dist_softmax").train()
    return folder / "0"


def test_separate_heads_are_divided_among_other_ranks_and_back(separate, tmp_path):
    convert(separate, tmp_path / "three", 3)
    convert(tmp_path / "three", tmp_path / "one", 1)
    meta = json.loads((tmp_path / "three" / "meta.json").read_text())
    assert (meta["heads"], meta["head_rows"]) == ([7, 5], [3, 2, 2, 2, 2, 1])
    for number in range(2):
        wanted, found = head_of(separate, number, 1), head_of(tmp_path / "three", number, 3)
        assert wanted.keys() == found.keys() == {"weight", "bias", "weight/velocity", "bias/velocity"}
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
        assert (tmp_path / "one" / head_file(number)).read_bytes() == (separate / head_file(number)).read_bytes()


def test_a_machine_downloads_the_files_of_its_ranks_from_each_head(separate, tmp_path, monkeypatch):
    convert(separate, tmp_path / "four", 4)  # rows 2, 2, 2, 1 and 2, 1, 1, 1
    found, config = open_checkpoint(tmp_path / "four"), Config(num_classes=12, loss_type="dist_softmax")
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    for rank, numbers in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
        needed = {name for name in download._needed(config, found, [rank]) if "dist@head" in name}
        # Of 2 ranks, the first holds the classes 0 to 3 and 0 to 2, the second the others.
        assert needed == {head_file(number) for number in numbers}
    monkeypatch.setattr(parallel, "world_size", lambda: 12)
    needed = download._needed(config, found, [11])
    assert {head_file(0), head_file(4)} < set(needed) and head_file(1) not in needed  # no rows: names and shapes
    holders = [[head_file(number) for number in range(8)]] * 4
    assert [_owner_of(head_file(number), holders) for number in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_separate_heads_begin_with_those_of_a_checkpoint(separate, halves, tmp_path):
    sets = {"directory": halves, "heads": "separate"}
    again = {"checkpoint_dir": str(separate), "train_epochs": 1, "lr": 1e-30, "loss_type": "dist_softmax"}
    for init in ("checkpoint", "keep-common"):
        small(tmp_path / init, dataset_dir=sets, head_init=init, **again).train()
        for number in range(2):
            found, wanted = (load_file(one / head_file(number)) for one in (tmp_path / init / "0", separate))
            np.testing.assert_array_equal(found["weight"], wanted["weight"])
    with pytest.raises(CheckpointError, match="the checkpoint has 2 heads, and this training has 1; train on as many"):
        small(None, dataset_dir=halves, **again).train()
    small(None, dataset_dir=halves, head_init="fresh", **again).train()
    backwards = {"directory": halves[::-1], "heads": "separate"}
    with pytest.raises(CheckpointError, match="the checkpoint has num_classes 7, set_class_num says 5"):
        small(None, dataset_dir=backwards, **again).train()


def test_classify_answers_with_the_classes_of_all_heads(separate, glyphs):
    centres = CheckpointCentres(separate)
    rows = np.concatenate([part.copy() for part, _ in centres.parts()])
    wanted = np.concatenate([load_file(separate / head_file(number))["weight"] for number in range(2)])
    np.testing.assert_array_equal(rows, wanted)
    assert centres.count == 12


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_classes": 13}, r"set_class_num\(13\): the data sets have 12 classes together"),
        (
            {"param_attr": "centres"},
            "set_distfc_attr: the name 'centres' would be that of a parameter of each of the 2",
        ),
        ({"reader": True, "num_classes": 12}, "heads='separate'.*train_reader replaces the data sets"),
    ],
)
def test_what_separate_heads_cannot_have_is_one_line(halves, change, words):
    change = dict(change)
    name, has_reader = change.pop("param_attr", None), change.pop("reader", False)
    ins = small(None, **{"dataset_dir": {"directory": halves, "heads": "separate"}, **change})
    if name:
        ins.set_distfc_attr(param_attr=paddle.ParamAttr(name=name))
    if has_reader:
        ins.train_reader = [[(np.zeros([3, 32, 32], "uint8"), 0)]]
    with pytest.raises(ConfigError, match=words):
        ins.train()


def test_the_norm_that_is_clipped_is_that_of_all_heads(halves, tmp_path):
    sets = {"directory": halves, "heads": "separate"}
    made = []

    def sgd(parameters):
        made.append([(parameter, parameter.numpy()) for parameter in parameters])
        return paddle.optimizer.SGD(1.0, parameters=parameters)

    ins = small(None, dataset_dir=sets, gradient_clip=0.25, train_epochs=1, train_batch_size=96)
    ins.set_optimizer(sgd)
    ins.train()
    moved = [float(((parameter.numpy() - before) ** 2).sum()) for parameter, before in made[0]]
    assert min(moved) >= 0 and np.sqrt(sum(moved)) == pytest.approx(0.25, rel=1e-4)
    assert sum(one > 0 for one in moved[-2:]) == 2  # both heads


@pytest.mark.parametrize("sets", [1, 2])
def test_names_of_the_data_are_used_if_each_class_has_one(sets, glyphs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    image = (glyphs / "images").glob("**/*.*")
    for number in range(2):
        writer = TarWriter(tmp_path / f"{number}.tar", ["a", f"b{number}"])
        writer.add(Record("x.png", next(image).read_bytes(), 1))
        writer.close()
    paths = [str(tmp_path / f"{number}.tar") for number in range(sets)]
    config = Config(dataset_dir=tuple(paths) if sets > 1 else paths[0], num_classes=9)
    open_source(config)
    assert config.class_names is None
    assert f"set_class_num(9): {', '.join(paths)} names only {sets + 1} classes" in caplog.text
    config.num_classes = sets + 1
    open_source(config)
    assert config.class_names == ("a", "b0", "b1")[: sets + 1]
    if sets == 1:
        writer = TarWriter(tmp_path / "0.tar", ["a", "b", "c"])
        writer.add(Record("x.png", b"", 1))
        writer.close()
        with pytest.raises(ConfigError, match=r"^set_class_num\(2\): .*0.tar names 3 classes; call set_class_num\(3\)"):
            open_source(Config(dataset_dir=paths[0], num_classes=2))


def test_a_resumed_run_warns_where_the_data_or_its_order_has_changed(halves, base64_glyphs, tmp_path, capsys):
    def warning(name, epochs, **settings):
        """Trains up to some epoch; returns what a resumed run warns of."""
        capsys.readouterr()
        small(tmp_path / name, train_epochs=epochs, resume=True, **settings).train()
        return re.findall("to the last bit: (.*)", "".join(capsys.readouterr()))

    split = str(base64_glyphs)
    warning("one", 1, dataset_dir=split)
    assert not warning("one", 2, dataset_dir=split, data_format=["base64", "window"])
    said = warning("one", 3, dataset_dir=split, data_format=["base64", "full"])
    assert said == ["the shuffle was window and is full now"]
    warning("two", 1, dataset_dir={"directory": halves, "weights": [0.5, 1.5]})
    said = warning("two", 2, dataset_dir={"directory": halves[::-1], "weights": [1, 1.5]}, num_classes=12)
    assert "the weight of each data set was [0.5, 1.5] and is [1.0, 1.5] now; the digest of the images" in said[0]
    meta = json.loads((tmp_path / "one" / "2" / "meta.json").read_text())
    state = SimpleNamespace(config=Config(dataset_dir=(split, split), class_names=("a", "b")))
    source = SimpleNamespace(meta={"class_names": ["b", "a"]}, folder=tmp_path / "one" / "2")
    with pytest.raises(CheckpointError, match="restore the data; to train on other"):  # there is no place for a list
        TrainingState._check_classes(state, source)
    meta["shuffle"] = None  # as earlier versions recorded it
    state = SimpleNamespace(meta=lambda: {**meta, "shuffle": "window"})
    old = {name: value for name, value in meta.items() if name not in ("data", "set_weights")}
    assert TrainingState.differences(state, SimpleNamespace(meta=old)) == []
