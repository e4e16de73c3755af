import copy
import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc import checkpoint, parallel
from plsc.checkpoint import folder as layout
from plsc.checkpoint import tensor_file
from plsc.checkpoint.convert import convert
from plsc.engine.resume import find_candidates
from plsc.errors import CheckpointError, ConfigError
from plsc.heads import build_head
from plsc.models import build_model
from plsc.models.resnet import DEPTHS

pytestmark = pytest.mark.core


def head_files(head):
    return {checkpoint.head_file(0): {name: tensor.numpy() for name, tensor in head.state_dict().items()}}


def write(folder, backbone, head, background=True, **meta):
    """Writes a checkpoint of one rank with a `Writer`."""
    files = head_files(head)
    files[checkpoint.BACKBONE] = {name: tensor.numpy() for name, tensor in backbone.state_dict().items()}
    files[checkpoint.OPTIMIZER] = {"weight/velocity": np.ones([3, 2], "float32")}
    meta = {
        "num_classes": head.num_classes,
        "emb_dim": head.emb_dim,
        "loss_type": "dist_softmax",
        "sharded": head.sharded,
        "head_rows": [head.num_classes],
        "by_rows": ["weight", "bias"],
        "step": 0,
        **meta,
    }
    writer = checkpoint.Writer(folder.parent, background=background)
    writer.start(folder.name, files, meta, {})
    writer.finish()
    writer.close()
    return checkpoint.open_checkpoint(folder)


@pytest.fixture
def saved(tmp_path):
    backbone, head = paddle.nn.Linear(3, 2), build_head("dist_softmax", 5, 2)
    return write(tmp_path / "output" / "0", backbone, head), backbone, head


@pytest.mark.parametrize("background", [True, False])
def test_a_saved_state_can_be_loaded(tmp_path, background):
    backbone, head = paddle.nn.Linear(3, 2), build_head("dist_softmax", 5, 2)
    source = write(tmp_path / "0", backbone, head, background)
    other, other_head = paddle.nn.Linear(3, 2), build_head("dist_softmax", 5, 2, seed=9)
    checkpoint.load_backbone(source, other)
    checkpoint.load_head(source, other_head)
    np.testing.assert_array_equal(other.weight.numpy(), backbone.weight.numpy())
    np.testing.assert_array_equal(other_head.weight.numpy(), head.weight.numpy())
    np.testing.assert_array_equal(other_head.bias.numpy(), head.bias.numpy())
    assert set(source.meta["sha256"]) == set(os.listdir(source.folder)) - {"meta.json"}


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_else(saved):
    source, backbone, head = saved
    write(source.folder, backbone, head, step=7)
    assert json.loads((source.folder / "meta.json").read_text())["step"] == 7
    assert os.listdir(source.folder.parent) == ["0"]


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    folder = tmp_path / "0"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        write(folder, paddle.nn.Linear(1, 1), build_head("dist_softmax", 2, 1))
    assert (folder / "mine.txt").read_text() == "keep"
    assert os.listdir(tmp_path) == ["0"]


def test_other_sizes_are_refused_with_both_values(saved):
    source, _, _ = saved
    with pytest.raises(CheckpointError, match="5.*set_class_num says 6"):
        checkpoint.load_head(source, build_head("dist_softmax", 6, 2))
    with pytest.raises(CheckpointError, match="shape"):
        checkpoint.load_backbone(source, paddle.nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="only in"):
        checkpoint.load_backbone(source, paddle.nn.Sequential(paddle.nn.Linear(3, 2)))


def test_a_checkpoint_of_the_former_resnet101_says_that_it_is_resnet100(tmp_path):
    class Tiny(paddle.nn.Layer):
        """A network with the number of blocks of a built-in one, and narrow layers."""

        def __init__(self, layers):
            super().__init__()
            self.blocks = paddle.nn.Sequential(*(Block() for _ in range(sum(DEPTHS[layers]))))

    class Block(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.residual = paddle.nn.Sequential(paddle.nn.Identity(), paddle.nn.Linear(1, 1, bias_attr=False))

    assert "blocks.48.residual.1.weight" in build_model("ResNet100", 2, (1, 16, 16)).state_dict()
    head = build_head("dist_softmax", 5, 2)
    for number, (meta, words) in enumerate([("ResNet101", "set_model_name.'ResNet100'."), ("ResNet50", "set_model")]):
        source = write(tmp_path / str(number), Tiny(100), head, model=meta)
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load_backbone(source, Tiny(101))
        checkpoint.load_backbone(source, Tiny(100))


def test_a_head_without_the_bias_asked_for_is_refused(tmp_path):
    source = write(tmp_path / "0", paddle.nn.Linear(1, 1), build_head("dist_arcface", 4, 2), by_rows=["weight"])
    with pytest.raises(CheckpointError, match="set_loss_type"):
        checkpoint.load_head(source, build_head("dist_softmax", 4, 2))


@pytest.mark.parametrize("name", [checkpoint.BACKBONE, checkpoint.OPTIMIZER, checkpoint.head_file(0), "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty", "flipped", "of another checkpoint", "a folder"])
def test_damage_is_named(saved, name, damage, tmp_path):
    source, backbone, head = saved
    broken = shutil.copytree(source.folder, tmp_path / "broken")
    content = (broken / name).read_bytes()
    (broken / name).unlink()
    if damage == "a folder":
        (broken / name).mkdir()
    elif damage == "of another checkpoint":
        other = build_head("dist_softmax", 5, 2, seed=5)
        other.bias.set_value(np.ones(5, "float32"))
        elsewhere = write(tmp_path / "other" / "0", paddle.nn.Linear(3, 2), other)
        if name in (
            checkpoint.OPTIMIZER,
            "meta.json",
        ):  # the former is the same in both, and the latter names all others
            name = checkpoint.head_file(0)
        shutil.copytree(source.folder, broken, dirs_exist_ok=True)
        shutil.copy(elsewhere.folder / name, broken / name)
    elif damage != "missing":
        changed = content[: -len(content) // 2] if damage == "short" else b""
        if damage == "flipped":
            changed = bytearray(content)
            changed[len(content) // 2] ^= 0x80
        (broken / name).write_bytes(changed)
    with pytest.raises(checkpoint.DamagedError, match=name.split(".")[0]) as error:
        found = checkpoint.open_checkpoint(broken)
        checkpoint.load_backbone(found, backbone)
        checkpoint.load_head(found, head)
        checkpoint.load_optimizer(found, {"weight": {"velocity": paddle.zeros([3, 2])}})
    assert "\n" not in str(error.value)


def test_a_foreign_shard_is_named(saved):
    source, _, _ = saved
    shutil.copy(source.folder / checkpoint.head_file(0), source.folder / checkpoint.head_file(1))
    with pytest.raises(checkpoint.DamagedError, match=r"00001.*not of this checkpoint"):
        checkpoint.open_checkpoint(source.folder)


@pytest.mark.parametrize("name", ["../evil.safetensors", "evil.pdparams", "/etc/passwd"])
def test_a_meta_that_names_other_files_is_refused(saved, name):
    source, _, _ = saved
    meta = json.loads((source.folder / "meta.json").read_text())
    for table in ("sha256", "size", "blocks"):
        meta[table][name] = meta[table][checkpoint.BACKBONE]
    (source.folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(checkpoint.DamagedError, match="names the file"):
        checkpoint.open_checkpoint(source.folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"progress": {"epoch": "a"}},
        {"progress": {"batch": None}},
        {"progress": {"loss_sum": None}},
        {"progress": {"loss": "low"}},
        {"progress": {"test": [1]}},
        {"progress": 3},
        {"steps_per_epoch": "a"},
    ],
    ids=str,
)
def test_a_progress_that_is_none_is_refused(saved, entry):
    folder = saved[0].folder
    meta = json.loads((folder / "meta.json").read_text())
    known = {"epoch": 1, "loss_sum": 0.5, "loss": None, "test": {"lfw": {"accuracy": 0.5}}}
    (folder / "meta.json").write_text(json.dumps({**meta, "progress": known, "steps_per_epoch": None}))
    checkpoint.open_checkpoint(folder)
    (folder / "meta.json").write_text(json.dumps({**meta, **entry}))
    with pytest.raises(checkpoint.DamagedError, match="meta.json: damaged .*; use another checkpoint"):
        checkpoint.open_checkpoint(folder)


def test_a_folder_without_meta_json_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="meta.json"):
        checkpoint.open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "path, words",
    [
        ("net.pdparams", "net.pdparams: is in Paddle's own format.*set_pretrained, .* plsc import-weights, or"),
        ("", "holds net.pdparams, which is in Paddle's own format"),
        ("text.txt", "text.txt: is a file, not the folder of a checkpoint"),
        ("empty", "is not a checkpoint .meta.json is missing."),
        ("nowhere", "no such folder"),
        ("s3:/bucket/0", "is an address, and a folder .*plsc fs get, or .*fs_checkpoint_dir"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(path, words, tmp_path):
    paddle.save(paddle.nn.Linear(2, 2).state_dict(), str(tmp_path / "net.pdparams"))
    (tmp_path / "text.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=words) as caught:
        checkpoint.open_checkpoint(Path(path) if ":" in path else tmp_path / path)
    assert "damaged" not in str(caught.value)


def test_what_a_killed_run_left_is_repaired(saved, tmp_path):
    source, _, _ = saved
    output = source.folder.parent
    os.rename(source.folder, output / ".0.replaced")  # killed between the two renames
    shutil.copytree(output / ".0.replaced", output / ".step_3.writing")
    shutil.copytree(output / ".0.replaced", output / ".2.removed")
    for name in (".mine", ".notes.writing", "0.writing"):
        (output / name).mkdir()
    (output / ".7.writing").mkdir()
    (output / ".7.writing" / "thesis.tex").write_text("not plsc's")
    done = checkpoint.recover(output)
    assert sorted(os.listdir(output)) == [".7.writing", ".mine", ".notes.writing", "0", "0.writing"]
    assert len(done) == 3 and "restored" in done[0]
    checkpoint.open_checkpoint(output / "0")
    assert checkpoint.recover(output) == [] and checkpoint.recover(tmp_path / "absent") == []


def test_a_download_that_was_given_up_is_removed_after_a_day(saved):
    source, _, _ = saved
    output = source.folder.parent
    for name in (".3.fetching", ".4.fetching.0123456789ab", ".5.fetching"):
        shutil.copytree(source.folder, output / name)
        (output / name / ".backbone.safetensors.0123456789ab.part").touch()
        (output / name / f".rank_0.{'0' * 32}").touch()
        for path in (*(output / name).iterdir(), output / name):
            os.utime(path, (1, 1))
    (output / ".5.fetching" / "meta.json").touch()
    assert len(checkpoint.recover(output)) == 2
    assert sorted(os.listdir(output)) == [".5.fetching", source.folder.name]


@pytest.mark.parametrize("left", [f".rank_1.{'f' * 32}", ".nfs0000000000000017", ".meta.json.0123456789ab.part"])
def test_files_that_are_left_in_a_checkpoint_are_never_in_the_way(saved, monkeypatch, left):
    """NFS keeps the file that it calls `.nfs...` for as long as a process has it open."""
    source, _, _ = saved
    output, unlink = source.folder.parent, os.unlink
    shutil.copytree(source.folder, output / "copy")

    def unlink_unless_open(path, **options):
        if os.path.basename(path).startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_unless_open)
        for _ in range(3):
            (source.folder / left).touch()
            layout.remove(source.folder)
            assert not source.folder.exists()
            shutil.copytree(output / "copy", layout.temporary_of(source.folder))
            layout.publish(source.folder)
            (source.folder / left).touch()
            shutil.copytree(output / "copy", layout.temporary_of(source.folder))
            layout.publish(source.folder)
            checkpoint.recover(output)
            checkpoint.open_checkpoint(source.folder)
    checkpoint.recover(output)
    assert sorted(os.listdir(output)) == sorted([source.folder.name, "copy"])


def test_tokens_of_killed_ranks_are_removed_after_a_day(tmp_path, monkeypatch):
    for name, result in (("world_size", 2), ("rank", 0)):
        monkeypatch.setattr(parallel, name, lambda result=result: result)
    monkeypatch.setattr(parallel, "all_gather_object", lambda one, what: [one, one])
    monkeypatch.setattr(parallel, "meet", lambda what: None)
    monkeypatch.setattr(parallel, "together", lambda action, what: action())
    old, new, other = tmp_path / f".rank_1.{'0' * 32}", tmp_path / f".rank_2.{'0' * 32}", tmp_path / ".rank_1.mine"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (1, 1))
    assert checkpoint.leader_of(tmp_path, "set_model_save_dir") == 0
    assert sorted(tmp_path.iterdir()) == sorted([new, other])


def test_the_newest_and_the_best_are_kept(tmp_path):
    backbone, head = paddle.nn.Linear(3, 2), build_head("dist_softmax", 5, 2)
    foreign = write(tmp_path / "step_1", backbone, head).folder
    writer = checkpoint.Writer(tmp_path, keep=2)
    meta = {"num_classes": 5, "emb_dim": 2, "head_rows": [5], "by_rows": [], "step": 0, "sharded": True}
    files = {**head_files(head), checkpoint.BACKBONE: {}, checkpoint.OPTIMIZER: {}}
    for epoch, accuracy in enumerate([0.5, 0.9, 0.7, 0.8, 0.6, 0.65]):
        writer.start(str(epoch), files, {**meta, "step": epoch, "test": {"a": {"accuracy": accuracy}}}, {})
        writer.start(f"step_{epoch}0", files, {**meta, "step": epoch}, {})
    writer.finish()
    assert sorted(os.listdir(tmp_path)) == ["1", "5", "step_1", "step_50"]
    assert foreign.is_dir(), "checkpoints of other runs stay"


def test_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_LOCK_SECONDS", 0.2)
    words = "from pathlib import Path; import sys, time\nfrom plsc.checkpoint import locked\n"
    words += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", words, str(tmp_path / "o")], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(ConfigError, match="is writing there"), checkpoint.locked(tmp_path / "o"):
            pass
    finally:
        other.kill()  # the lock goes with the process
        other.wait()
        other.stdout.close()
    with checkpoint.locked(tmp_path / "o"):
        pass
    assert os.listdir(tmp_path / "o") == []


def test_a_path_that_is_no_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot write there"), checkpoint.locked(place):
            pass


def test_no_pickle_is_read():
    """No part of loading a checkpoint can run code from a file."""
    for path in layout.__file__, tensor_file.__file__, checkpoint.load_head.__code__.co_filename:
        with open(path, encoding="utf-8") as source:
            text = source.read()
        assert "pickle" not in text and "paddle.load" not in text and "np.load" not in text


HOSTILE = [
    None, True, -1, 0, 3, 2**53 + 1, 10**400, 1.5, 1e999, float("nan"), "", "5", "../x", "\ud800", [], [[]], {},
    {"a": 1}, [1e999], [-1, 6], [5, 5], ["5"], list(range(40)), [0] * 1000, {"weight": {}},
]  # fmt: skip


def places_in(content, path=()):
    """Yields the path of every value in a JSON content."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places_in(value, (*path, key))


def changed(content, path, value):
    """Returns a copy of a JSON content with another value at a path; with `...` the value is removed."""
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if value is ...:
        del inner[path[-1]]
    return content


def use(folder, backbone, head):
    """Does with a checkpoint what training and the commands do."""
    found = checkpoint.open_checkpoint(folder)
    _ = found.written, found.head_rows, layout.score_of(found.meta)
    find_candidates(folder.parent)
    checkpoint.load_backbone(found, backbone)
    checkpoint.load_head(found, head)
    checkpoint.load_common_head(found, head)
    checkpoint.load_optimizer(found, {"weight": {"velocity": paddle.zeros([3, 2])}})
    checkpoint.load_head_optimizer(found, head, {})
    convert(folder, folder.parent / "converted", 2)
    shutil.rmtree(folder.parent / "converted")


def test_a_crafted_meta_json_gives_no_other_error_than_ours(saved):
    source, backbone, head = saved
    meta = json.loads((source.folder / "meta.json").read_text())
    meta.update(test={"lfw": {"accuracy": 0.5}}, launches=["abc"], began=1.0)
    refused = 0
    every = [(path, value) for path in places_in(meta) for value in (*HOSTILE, ...)]
    texts = [json.dumps(changed(meta, *one)) for one in every[::4]]  # every place has a share of the values
    texts += ["", "[]", "3", "null", "[" * 100_000, '{"format":' * 100_000, "\x00"]
    for text in texts:
        (source.folder / "meta.json").write_text(text)
        try:
            use(source.folder, backbone, head)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert 0.7 * len(texts) < refused < len(texts)


@pytest.mark.parametrize("name", [checkpoint.BACKBONE, checkpoint.OPTIMIZER, checkpoint.head_file(0)])
def test_a_crafted_header_gives_no_other_error_than_ours(saved, name):
    source, backbone, head = saved
    path = source.folder / name
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    meta = json.loads((source.folder / "meta.json").read_text())
    types = [*tensor_file.DTYPES, "X"]
    shapes = [[], [5], [2, 5], [5, 2, 1], [0, 2**40], [0, 2**60], [1] * 70, [2**40, 2**40], [5.0, 2], ["5"], [True]]
    offsets = [[0, 0], [8, 4], [-4, 4], [0, 2**60], [0.0, 8.0], ["0", "8"], [0], [0, 8, 16]]
    every = [(place, value) for place in places_in(header) for value in (*HOSTILE, ...)]
    headers = [changed(header, *one) for one in every[::3]]
    for tensor in header:
        for key, values in (("dtype", types), ("shape", shapes), ("data_offsets", offsets)):
            headers += [changed(header, (tensor, key), value) for value in values]
    headers.append({**header, "another": next(iter(header.values()))})
    files = [json.dumps(one).encode() for one in headers] + [b"[" * 100_000, b'{"a":' * 100_000]
    files = [struct.pack("<Q", len(one)) + one + data for one in files]
    files += [struct.pack("<Q", number) + content[8:] for number in (0, 1, 2**31, 2**60, 2**64 - 1)]
    refused = 0
    for one in files:
        path.write_bytes(one)
        sums = {
            "size": len(one),
            "blocks": [hashlib.sha256(one).hexdigest()],
            "sha256": hashlib.sha256(one).hexdigest(),
        }
        new = {**meta, **{key: {**meta[key], name: value} for key, value in sums.items()}}
        (source.folder / "meta.json").write_text(json.dumps(new))
        try:
            use(source.folder, backbone, head)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 0.7 * len(files) < refused < len(files)


def test_a_pipe_instead_of_a_file_is_refused(saved):
    source, _, _ = saved
    for name in (checkpoint.BACKBONE, "meta.json"):
        (source.folder / name).unlink()
        os.mkfifo(source.folder / name)
        with pytest.raises(checkpoint.DamagedError, match=f"{name}.*ordinary file"):
            checkpoint.open_checkpoint(source.folder)


def test_an_old_download_to_the_same_place_is_removed_and_no_other(saved):
    source, _, _ = saved
    output = source.folder.parent
    for name in (".good.fetching.0123456789ab", ".good.fetching.ffffffffffff", ".other.fetching.0123456789ab"):
        shutil.copytree(source.folder, output / name)
        for path in (*(output / name).iterdir(), output / name):
            os.utime(path, (1, 1))
    (output / ".good.fetching.ffffffffffff" / "meta.json").touch()
    (output / ".good.fetching.aaaa").mkdir()
    (output / ".good.fetching.aaaa" / "mine.txt").touch()
    os.utime(output / ".good.fetching.aaaa" / "mine.txt", (1, 1))
    os.utime(output / ".good.fetching.aaaa", (1, 1))
    layout.remove_old_downloads(output / "good")
    kept = [".good.fetching.aaaa", ".good.fetching.ffffffffffff", ".other.fetching.0123456789ab", source.folder.name]
    assert sorted(os.listdir(output)) == kept
