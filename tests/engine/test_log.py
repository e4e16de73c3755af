"""The file of metrics, whatever an earlier run left in it."""

import json

import pytest

from plsc.engine.log import MetricsFile

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
