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
    "could only be written to",  # Hadoop 3 says it so
    "failed on local exception",  # of a DataNode whose NameNode has just ended
    "failed on connection exception",
    "end of file exception",
)
QUOTA_HINT = "remove files there or ask for a larger quota"
_HINTS = {
    # To enter a file, as if it were a folder, is a question of rights for Hadoop; its mode begins with '-'.
    r"access=EXECUTE, inode=\"[^\"]*\":[^:]*:[^:]*:-|not a directory": (
        "a file stands where a folder should be; name another folder"
    ),
    "Permission denied": "ask its owner for the right, or give another name in fs_ugi",
    "(?i)quota .*is exceeded": QUOTA_HINT,
    "(?i)in safe mode": (
        "wait until enough DataNodes have reported their blocks, or end it with hdfs dfsadmin -safemode leave"
    ),
    "replicated to 0 nodes|could only be written to": "check that the DataNodes run and have room",
}


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
    hint = next((hint for words, hint in _HINTS.items() if re.search(words, text)), "")
    passes = kind in _PASSING or any(words in text.lower() for words in _PASSING_WORDS)
    said = f"{text.rstrip('.')}; {hint}" if hint else text
    return (StorageUnavailableError if passes else StorageError)(f"{where}: {said}")
