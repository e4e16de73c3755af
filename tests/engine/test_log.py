"""The file of metrics, whatever an earlier run left in it."""

import json
from types import SimpleNamespace

import pytest

from plsc.engine import log
from plsc.engine.callbacks import Step
from plsc.engine.log import MetricsFile, ProgressLog

WHOLE = '{"event": "train", "step": 1}\n'


@pytest.mark.parametrize(
    "left, resumed_size, kept",
    [
        ("", None, ""),
        (WHOLE, None, WHOLE),
        (WHOLE + '{"event": "tra', None, WHOLE + '{"event": "tra\n'),
        (WHOLE + WHOLE[:-1], None, WHOLE + WHOLE),
        (WHOLE + '{"event": "tra', len(WHOLE), WHOLE),
        (WHOLE[:-9], len(WHOLE), WHOLE[:-9] + "\n"),
    ],
    ids=["empty", "whole", "torn", "no end", "cut off by resume", "shorter than the checkpoint says"],
)
def test_a_half_written_line_takes_no_other_record_with_it(tmp_path, left, resumed_size, kept):
    (tmp_path / "metrics.jsonl").write_text(left)
    metrics = MetricsFile(tmp_path, resumed_size)
    metrics.write("train", {"step": 7})
    metrics.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.startswith(kept) and json.loads(text[len(kept) :]) == {"event": "train", "step": 7}


@pytest.mark.parametrize(
    "period, steps, recorded",
    [
        (10, 4, [4, 8, 10, 12]),
        (10, 8, [8, 10, 20, 24]),
        (4, 8, [4, 8, 12, 16, 20, 24]),
        (10, 25, [10, 20, 30, 40, 50, 60, 70, 75]),
    ],
)
@pytest.mark.parametrize("with_test", [True, False])
def test_every_epoch_records_its_loss(monkeypatch, period, steps, recorded, with_test):
    monkeypatch.setattr(log, "shows_bars", lambda: False)
    records = []
    run = SimpleNamespace(
        clock=SimpleNamespace(seconds=0.0),
        progress=SimpleNamespace(step=0, epoch=0, batch=0, skipped=0),
        config=SimpleNamespace(log_period=period, train_epochs=3),
        last=Step(loss=2.0, lr=0.1, scale=None, samples=8, correct=None, problem=None),
        steps_per_epoch=steps,
        record=lambda event, **values: records.append((event, values["step"], values["epoch"])),
    )
    progress_log = ProgressLog()
    progress_log.on_train_begin(run)
    for epoch in range(3):
        run.progress.epoch = epoch
        for batch in range(1, steps + 1):
            run.progress.step, run.progress.batch = epoch * steps + batch, batch
            progress_log.on_step_end(run)
        if with_test:
            progress_log.on_test(run, {})
        run.progress.epoch, run.progress.batch = epoch + 1, 0
        progress_log.on_epoch_end(run)
    trained = [(step, epoch) for event, step, epoch in records if event == "train"]
    assert trained == [(step, (step - 1) // steps) for step in recorded]


@pytest.mark.parametrize("seconds, shown", [(4.9, []), (5.0, [1, 10]), (2.5, [2, 10])])
def test_the_first_line_comes_after_some_seconds_and_records_nothing_more(monkeypatch, caplog, seconds, shown):
    monkeypatch.setattr(log, "shows_bars", lambda: False)
    caplog.set_level("INFO", "plsc")
    records = []
    run = SimpleNamespace(
        clock=SimpleNamespace(seconds=0.0),
        progress=SimpleNamespace(step=0, epoch=0, batch=0, skipped=0),
        config=SimpleNamespace(log_period=10, train_epochs=1),
        last=Step(loss=2.0, lr=0.1, scale=None, samples=8, correct=None, problem=None),
        steps_per_epoch=10,
        record=lambda event, **values: records.append(values["step"]),
    )
    progress_log = ProgressLog()
    progress_log.on_train_begin(run)
    for step in range(1, 11 if shown else 2):
        run.clock.seconds += seconds
        run.progress.step = run.progress.batch = step
        progress_log.on_step_end(run)
    assert [line.split("step ")[1].split("/")[0] for line in caplog.messages] == [str(step) for step in shown]
    assert records == ([10] if shown else [])
