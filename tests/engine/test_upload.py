"""What an uploader does without a store; tests/engine/test_hdfs_training.py has the rest."""

import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from plsc import parallel
from plsc.engine.upload import Uploader
from plsc.machine.signals import StopRequest


def test_a_rank_that_has_uploaded_everything_ends_with_one_that_a_signal_ends(monkeypatch, caplog):
    monkeypatch.setattr(parallel, "all_gather_object", lambda value, what: [value, Path("run/0")])
    uploader = Uploader(None, "/run", "end", threading.Event())
    uploader.end_waiting_if(lambda: False, StopRequest())
    with pytest.raises(SystemExit) as ended:
        uploader.on_train_end(SimpleNamespace(checkpoints=[]))
    assert ended.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM while it was uploaded" in caplog.text and "run/0" in caplog.text
