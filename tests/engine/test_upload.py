"""What an uploader does without a server; tests/engine/test_hdfs_training.py has the rest."""

import json
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from ranks import wait_until

from plsc import parallel
from plsc.engine import upload
from plsc.engine.upload import Uploader
from plsc.machine.signals import StopRequest
from plsc.storage import Retrying, StorageError
from plsc.storage.local import LocalStorage


def test_a_rank_that_has_uploaded_everything_ends_with_one_that_a_signal_ends(monkeypatch, caplog):
    monkeypatch.setattr(parallel, "all_gather_object", lambda value, what: [value, Path("run/0")])
    uploader = Uploader(None, "/run", "end", threading.Event())
    uploader.end_waiting_if(lambda: False, StopRequest())
    with pytest.raises(SystemExit) as ended:
        uploader.on_train_end(SimpleNamespace(checkpoints=[]))
    assert ended.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM while it was uploaded" in caplog.text and "run/0" in caplog.text


def test_a_folder_that_a_slow_store_gave_to_another_training_is_noticed_before_the_first_step(tmp_path):
    uploader = Uploader(Retrying(LocalStorage(tmp_path), 0.0), "/run", "end", threading.Event())
    with uploader.claiming():
        claim = tmp_path / "run/.plsc.claim"
        claim.write_text(json.dumps({"token": "x", "holder": "process 7 on far-away"}))
        with pytest.raises(StorageError, match="process 7 on far-away has taken the place of this process there"):
            uploader.on_train_begin(SimpleNamespace(checkpoints=[]))
    assert claim.exists(), "it is that of the other training"


def test_a_claim_ends_with_the_last_upload_that_was_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "_SECONDS_TO_RELEASE", 0.1)
    stop = threading.Event()
    uploader = Uploader(Retrying(LocalStorage(tmp_path), 0.0), "/run", "end", stop)
    running = SimpleNamespace(done=threading.Event())
    with uploader.claiming():
        uploader._uploads.append(running)
    assert stop.is_set() and (tmp_path / "run/.plsc.claim").exists()
    running.done.set()
    wait_until(lambda: not (tmp_path / "run/.plsc.claim").exists())
