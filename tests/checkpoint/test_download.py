"""How a training connects to the store of its checkpoints."""

import pytest

from plsc import parallel
from plsc.checkpoint import download
from plsc.config import Config, Hdfs, HdfsUpload
from plsc.storage import Retrying, StorageError, StorageUnavailableError
from plsc.storage.local import LocalStorage


@pytest.mark.parametrize("others, failures, tries, says", [
    (True, 3, 4, None),
    (True, 100, None, "the server is down"),
    (False, 3, 1, "the server is down"),
    (False, 0, 1, None),
])  # fmt: skip
def test_a_rank_tries_for_long_only_where_the_store_has_answered_another_one(
    others, failures, tries, says, tmp_path, monkeypatch
):
    asked = []

    def open_hdfs(*arguments):
        asked.append(arguments)
        if len(asked) <= failures:
            raise StorageUnavailableError("the server is down")
        return Retrying(LocalStorage(tmp_path, "x://y"), 0)

    monkeypatch.setattr(download, "open_hdfs", open_hdfs)
    monkeypatch.setattr("plsc.storage.retry._FIRST_WAIT", 0.05)
    # Another rank, which the store has answered, takes part in this agreement alone.
    monkeypatch.setattr(parallel, "any_rank", lambda flag, what: flag or others)
    config = Config(hdfs=Hdfs("x://y", None, "folder", None), hdfs_upload=HdfsUpload("end", 1.0))
    if says is None:
        assert download.open_store(config).patience == 1.0
    else:
        with pytest.raises(StorageError, match=says):
            download.open_store(config)
    assert len(asked) == tries if tries else len(asked) > 2
