"""Refusals of Hadoop's servers as errors of plsc: which of them pass, and what to do about the others."""

from __future__ import annotations

import re

from plsc.errors import one_line
from plsc.storage.base import StorageError, StorageUnavailableError

# Failures that pass, by the name of the server's exception, or by its words where a DataNode quotes the NameNode.
_PASSING = (
    "SafeModeException", "StandbyException", "RetriableException", "LeaseExpiredException",
    "AlreadyBeingCreatedException", "RecoveryInProgressException", "NoRouteToHostException", "ConnectException",
    "SocketTimeoutException", "ServerNotLeaderException",
)  # fmt: skip
_PASSING_WORDS = (
    "in safe mode",
    "in state standby",
    "no lease on",
    "already being created by",
    "replicated to 0 nodes",
    "failed on local exception",  # of a DataNode whose NameNode has just ended
    "failed on connection exception",
    "end of file exception",
)
_HINTS = {
    # To enter a file, as if it were a folder, is a question of rights for Hadoop; its mode begins with '-'.
    r"access=EXECUTE, inode=\"[^\"]*\":[^:]*:[^:]*:-|not a directory": (
        "a file stands where a folder should be; name another folder"
    ),
    "Permission denied": "ask its owner for the right, or give another name in fs_ugi",
    "quota": "remove files there or ask for a larger quota",
}
QUOTA_HINT = _HINTS["quota"]


def first_line(text: str) -> str:
    """Returns the words of a server without the stack trace that follows them."""
    return one_line((text.strip().splitlines() or [""])[0])


def refusal(where: str, kind: str, text: str) -> StorageError:
    """Returns the error for a refusal of Hadoop.

    Args:
        where: The store and the path.
        kind: The name of the Java exception, without its package.
        text: The server's words on one line.
    """
    if kind in _PASSING or any(words in text.lower() for words in _PASSING_WORDS):
        return StorageUnavailableError(f"{where}: {text}")
    hint = next((f"; {hint}" for words, hint in _HINTS.items() if re.search(words, text)), "")
    return StorageError(f"{where}: {text}{hint}")
