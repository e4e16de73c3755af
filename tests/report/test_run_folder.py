"""What a report reads, and its notes on what is missing."""

import json

import numpy as np
import pytest
from run_folders import make_run, pairs

from plsc.errors import DataError
from plsc.report.headline import duration, headline, headline_rows
from plsc.report.run_folder import read_run, read_runs


def test_a_complete_run_is_read_without_a_note(tmp_path):
    run = read_run(make_run(tmp_path / "run", scale=8.0))
    assert run.notes == [] and run.set_names == ["lfw"] and run.seconds == 40
    assert run.train["step"].tolist() == list(range(1, 41)) and run.train["loss_scaling"][-1] == 8
    assert [pair.number for pair in run.pairs["lfw"].hard] == list(range(8))
    assert run.pairs["lfw"].hard[0].is_same and run.pairs["lfw"].hard[0].names == ("left 0", "right 0")
    assert run.pairs["lfw"].embeddings.shape == (40, 16) and run.pairs["lfw"].identities[0] == "who 0"
    numbers = headline(run)
    assert numbers["steps"] == 40 and numbers["epochs"] == 3 and numbers["skipped_steps"] == 0
    assert numbers["test"]["lfw"] == {
        "accuracy": pytest.approx(0.94875),
        "std": 0.01,
        "tar@1e-3": 0.5,
        "xnorm": 20.0,
        "at_far/1e-4": 0.25,
    }


def test_what_is_missing_or_damaged_becomes_a_note(tmp_path):
    old = read_run(make_run(tmp_path / "old", tests=0, run_json=False, bad_loss_at=(3, 4)))
    assert [note.split(":")[0] for note in old.notes] == [
        "There is no run.json",
        "2 of 40 records of training have no finite loss (step 3, 4)",
        "No test is recorded",
    ]
    folder = make_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"event": "train", "step": Infinity}\nno JSON\n{"event": "train", "st')
    (folder / "run.json").write_text("{")
    (folder / "other_pairs.npz").write_bytes(b"no archive")
    broken = {**pairs(np.random.default_rng(0)), "hard_pairs": np.array([1000]), "map_identities": np.array(["a"])}
    broken["similarity"][2] = np.nan
    np.savez(folder / "lfw_pairs.npz", **broken)
    run = read_run(folder)
    assert len(run.train["step"]) == 40 and run.record == {}
    assert (
        len(run.pairs["lfw"].similarity) == 299 and not run.pairs["lfw"].hard and not len(run.pairs["lfw"].embeddings)
    )
    notes = "\n".join(run.notes)
    for text in (
        "last line of metrics.jsonl is half written",
        "3 lines of metrics.jsonl cannot be read and are left out",
        "run.json cannot be read",
        "1 pairs have no finite similarity",
        "arrays of hard pairs do not fit together",
        "arrays of the map do not fit together",
        "other_pairs.npz cannot be read",
    ):
        assert text in notes
    assert len(run.notes) == 7


def test_hostile_records_and_arrays_become_notes(tmp_path):
    folder = make_run(tmp_path / "run")
    rest = np.savez_compressed  # a small file that fills the memory
    rest(folder / "zeros_pairs.npz", similarity=np.zeros(10), issame=np.zeros(10, bool))
    (folder / "array_pairs.npz").write_bytes(b"\x93NUMPY\x01\0")
    np.save(folder / "plain", np.zeros(3))
    (folder / "plain.npy").rename(folder / "plain_pairs.npz")
    np.savez(folder / "objects_pairs.npz", similarity=np.array([{}]), issame=np.zeros(1, bool))
    np.savez(folder / "few_pairs.npz", similarity=np.zeros(1))
    (folder / "run.json").write_text("[" * 100_000)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("[" * 100_000 + "\n" + "1" * 5000 + "\n" + "x" * (3 << 20) + "\n")
        file.write(f'{{"event": "train", "step": 41, "loss": {"9" * 400}}}\n')
    run = read_run(folder)
    assert run.record == {} and run.train["loss"][-1] == np.inf and set(run.pairs) == {"lfw"}
    notes = "\n".join(run.notes)
    assert "zeros_pairs.npz cannot be read (it is compressed)" in notes
    for name in ("array", "plain", "objects", "few"):
        assert f"{name}_pairs.npz cannot be read" in notes
    headline(run)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "step": 42, "time": 1e300}\n')
    assert "\u2013" in dict(headline_rows(headline(read_run(folder))))["Start to last record"]


def test_the_last_of_several_runs_in_one_folder_counts(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines + json.dumps({"event": "train", "step": 1, "loss": 5}) + "\n")
    run = read_run(folder)
    assert run.train["loss"].tolist() == [5] and run.tests == []
    assert "The folder also holds records of an earlier run, which the report leaves out." in run.notes


def test_runs_with_the_same_name_get_different_names(tmp_path):
    folders = [make_run(tmp_path / place / "output", steps=2, tests=0) for place in "ab"]
    assert [run.name for run in read_runs(folders)] == ["a/output", "b/output"]
    assert [run.name for run in read_runs([folders[0]] * 2)] == ["a/output", "a/output (2)"]


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not the folder of a run, as it holds no metrics.jsonl"):
        read_run(tmp_path)


def test_durations_are_written_for_humans():
    assert [duration(one) for one in (5.2, 125, 3900, 200000)] == ["5 s", "2 min 05 s", "1 h 05 min", "2 d 7 h"]
