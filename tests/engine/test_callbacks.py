import json
import math

import pytest

from plsc import Callback, Entry
from plsc.engine.callbacks import Clock, load_states, states_of
from plsc.engine.progress import Progress
from plsc.errors import CheckpointError, ConfigError


def notes_of(output, rank=0):
    notes = json.loads((output / f"calls_{rank}.json").read_text())
    return notes, [call[0] for call in notes["calls"]]


EPOCH = ["epoch begin", "step end", "step end", "step end", "test", "epoch end", "save"]


def test_hooks_are_called_in_order_on_every_rank_and_state_survives_a_stop(ranks, glyphs, tmp_path):
    """12 x 8 images in batches of 16 on 2 ranks make 3 steps an epoch. Rank 1 alone asks to stop after step 4."""
    ranks("train_callbacks.py", 2, glyphs, tmp_path, 1, 4)
    for rank in (0, 1):
        notes, hooks = notes_of(tmp_path, rank)
        # The request to stop travels with the labels of the next step.
        stopped = ["epoch begin", "step end", "step end", "save", "train end", "close"]
        assert hooks == ["train begin", *EPOCH, *stopped]
        assert notes["result"]["stopped"] == "enough is enough"
        assert notes["result"]["steps"] == 5 and notes["result"]["epochs"] == 1
        assert notes["calls"][0][3] == {"last": None, "parameters": 7}
        step, epoch_end, saves = notes["calls"][2], notes["calls"][6], [c for c in notes["calls"] if c[0] == "save"]
        assert step[1:3] == [0, 1] and step[3]["samples"] == 32 and step[3]["problem"] is None
        assert epoch_end[1:] == [1, 3, {"has_loss": True}]
        assert [save[3]["name"] for save in saves] == ["0", "step_5"] and saves[1][3]["kept"] == ["0", "step_5"]
    seen = [r for r in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if r["event"] == "seen"]
    assert [record["step"] for record in seen] == [1, 2, 3, 4, 5]

    ranks("train_callbacks.py", 2, glyphs, tmp_path, 1, 0)
    notes, hooks = notes_of(tmp_path, 1)
    assert hooks == ["train begin", "epoch begin", "step end", *EPOCH[4:], "train end", "close"]
    assert notes["steps_seen"] == 6 and notes["result"]["stopped"] is None and notes["result"]["epochs"] == 2


def test_the_loss_of_a_first_epoch_that_ended_early_is_the_mean_of_its_steps():
    progress = Progress()
    assert math.isnan(progress.result_loss())
    progress.end_step(3.0, is_used=True, may_shrink=False)
    progress.end_step(math.inf, is_used=False, may_shrink=False)
    progress.end_step(2.0, is_used=True, may_shrink=False)
    assert progress.result_loss() == 2.5
    progress.end_epoch()
    progress.end_step(1.0, is_used=True, may_shrink=False)
    assert progress.result_loss() == 2.5


def test_what_is_not_a_callback_and_a_state_that_cannot_be_saved_are_refused():
    with pytest.raises(ConfigError, match="subclass of plsc.Callback"):
        Entry().add_callback(print)

    class Bad(Callback):
        def state(self):
            return {"it": {1, 2}}

    with pytest.raises(ConfigError, match=r"Bad.state\(\): cannot be saved"):
        states_of([Bad()])


def test_two_callbacks_of_one_class_keep_separate_states():
    class Counting(Callback):
        def __init__(self, number):
            self.number = number

        def state(self):
            return [self.number]

        def load_state(self, state):
            (self.number,) = state

    states = states_of([Callback(), Counting(1), Counting(2)])
    assert states == {"Counting": [1], "Counting_2": [2]}
    fresh = [Counting(0), Counting(0), Counting(7)]
    load_states(fresh, states)
    assert [one.number for one in fresh] == [1, 2, 7]
    with pytest.raises(CheckpointError, match="Counting.load_state"):
        load_states(fresh, {"Counting": 5})


def test_the_clock_does_not_count_pauses_even_nested_ones(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock()
    now[0] += 1
    with clock.paused():
        now[0] += 20
        with clock.paused():
            now[0] += 300
    now[0] += 2
    assert clock.seconds == 3
