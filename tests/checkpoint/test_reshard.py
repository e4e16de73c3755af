import os

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import checkpoint, cli
from plsc.heads import build_head, shard_bounds

# Between versions of Paddle only what a head takes and gives can differ, and not the files: two numbers tell.
WORLDS = (1, 3) if paddle.__version__.startswith("2.") else (1, 2, 3, 5)


@pytest.fixture(scope="module")
def saved(once):
    from ranks import run_ranks

    def make(folder):
        for world in WORLDS:
            run_ranks("reshard.py", world, folder, "save")

    return once("saved", make)


def content_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.core
@pytest.mark.parametrize("world", WORLDS)
def test_a_checkpoint_of_any_number_of_ranks_loads_on_any_other(ranks, saved, world):
    before = content_of(saved)
    ranks("reshard.py", world, saved, "load", *WORLDS)
    after = {
        path: content for path, content in content_of(saved).items() if path.suffix != ".json" or "meta" in path.name
    }
    assert after == {path: before[path] for path in after}, "the sources are only read"


def whole_of(folder):
    found = checkpoint.open_checkpoint(folder)
    parts = [load_file(folder / checkpoint.head_file(rank)) for rank in range(len(found.head_rows))]
    names = {name for part in parts for name in part}
    by_rows = found.meta["by_rows"]
    return {
        name: np.concatenate([p[name] for p in parts if name in p]) if name in by_rows else parts[0][name]
        for name in names
    }


@pytest.mark.parametrize("source", WORLDS)
def test_conversion_gives_the_same_matrix_in_other_files(saved, tmp_path, source, capsys):
    for case in sorted(os.listdir(saved / str(source))):
        folder = saved / str(source) / case / "0"
        if checkpoint.open_checkpoint(folder).meta["sharded"] is False:
            assert cli.main(["convert-checkpoint", str(folder), str(tmp_path / "x"), "--ranks", "2"]) == 1
            assert "any number of ranks" in capsys.readouterr().err and not (tmp_path / "x").exists()
            continue
        before, expected = content_of(folder), whole_of(folder)
        for target in range(1, 6):
            place = tmp_path / case / str(target)
            assert cli.main(["convert-checkpoint", str(folder), str(place), "--ranks", str(target)]) == 0
            found, whole = checkpoint.open_checkpoint(place), whole_of(place)
            assert len(found.head_rows) == target and whole.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(whole[name], value)
            for name in (checkpoint.BACKBONE, checkpoint.OPTIMIZER):
                for key, value in load_file(folder / name).items():
                    np.testing.assert_array_equal(load_file(place / name)[key], value)
        assert content_of(folder) == before
        # Converted back, it equals to the byte what a run on those ranks has written.
        back = tmp_path / case / "back"
        cli.main(["convert-checkpoint", str(tmp_path / case / "4"), str(back), "--ranks", str(source)])
        for rank in range(source):
            assert (back / checkpoint.head_file(rank)).read_bytes() == (
                folder / checkpoint.head_file(rank)
            ).read_bytes()


def test_conversion_reports_mistakes(saved, tmp_path, capsys):
    folder = saved / "3" / "0" / "0"
    (tmp_path / "there").mkdir()
    for arguments, words in (
        ([tmp_path / "none", tmp_path / "new"], "no such folder; give the folder of one epoch"),
        (["s3:/bucket/runs/0", tmp_path / "new"], "is not an address; did you mean 's3://bucket/runs/0'?"),
        ([tmp_path / "there", tmp_path / "new"], "is not a checkpoint (meta.json is missing)"),
        ([folder, tmp_path / "there"], "already exists; name a new folder"),
        ([folder, "/proc/new/er"], "cannot be written"),
    ):
        assert cli.main(["convert-checkpoint", *map(str, arguments), "--ranks", "2"]) == 1
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.core
def test_a_rank_reads_little_more_than_its_rows(tmp_path, monkeypatch):
    """Of 4 shards of 1,000 rows, the third of 5 ranks needs parts of two."""
    from test_folder import write

    from plsc.checkpoint import folder, tensor_file

    for module in (folder, tensor_file):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4096)
    head = build_head("dist_softmax", 4000, 32, seed=3)
    write(tmp_path / "0", paddle.nn.Linear(1, 1), head)
    cli.main(["convert-checkpoint", str(tmp_path / "0"), str(tmp_path / "4"), "--ranks", "4"])
    source = checkpoint.open_checkpoint(tmp_path / "4")
    part = build_head("dist_softmax", 800, 32)
    part.num_classes, (part.lower, part.upper) = 4000, shard_bounds(4000, 5, 2)
    read = checkpoint.load_head(source, part)
    np.testing.assert_array_equal(part.weight.numpy(), head.weight.numpy()[1600:2400])
    assert 800 * 33 * 4 <= read <= 800 * 33 * 4 + 4 * 4096 + 2 * 2 * 2 * 4096


@pytest.mark.core
@pytest.mark.parametrize("classes", [3, 5, 9])
@pytest.mark.parametrize("loss", ["dist_softmax", "dist_arcface", "dist_adaface"])
def test_the_classes_that_both_heads_have_are_kept(tmp_path, classes, loss):
    from test_folder import write

    head = build_head("dist_softmax", 5, 2, seed=3)
    head.bias.set_value(np.arange(5, dtype="float32") + 1)
    source = write(tmp_path / "0", paddle.nn.Linear(1, 1), head)
    other = build_head(loss, classes, 2, seed=8)
    fresh = {name: tensor.numpy() for name, tensor in other.state_dict().items()}
    done = checkpoint.load_common_head(source, other)
    kept = min(5, classes)
    np.testing.assert_array_equal(other.weight.numpy()[:kept], head.weight.numpy()[:kept])
    np.testing.assert_array_equal(other.weight.numpy()[kept:], fresh["weight"][kept:])
    if loss == "dist_softmax":
        np.testing.assert_array_equal(other.bias.numpy(), [*range(1, kept + 1), *[0] * (classes - kept)])
    else:
        assert "head bias of the checkpoint ignored" in done
    text = "; ".join(done)
    assert (f"classes 5 to {classes - 1} are fresh" in text) == (classes > 5)
    assert (f"classes from {kept} on of the checkpoint ignored" in text) == (classes < 5)
    assert ("head margin_state is fresh" in text) == (loss == "dist_adaface")
