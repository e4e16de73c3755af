"""Finds out which ranks share a folder. Its name does not tell, since machines may have disks of their own."""

from __future__ import annotations

import contextlib
import re
import uuid
from pathlib import Path

from plsc import parallel
from plsc.errors import ConfigError

_TOKEN = re.compile(r"\.rank_\d+\.[0-9a-f]{32}")
_OLD_SECONDS = 86400.0


def leader_of(folder: Path, setter: str) -> int:
    """Returns the first rank that sees the `folder` of this rank. Every rank must call it.

    Each rank makes a file with a name that was never used, which no cache of a network file system can know.

    Args:
        folder: The folder, which is made if it is missing.
        setter: The setter that named it, for messages.

    Raises:
        ConfigError: Some rank cannot write there. It is raised on every rank.
    """
    if parallel.world_size() == 1:
        return 0
    token = parallel.all_gather_object(uuid.uuid4().hex, f"the folder of {setter}")[0]
    own = folder / f".rank_{parallel.rank()}.{token}"

    def leave_token() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own.touch()
        except OSError as problem:
            raise ConfigError(
                f"{folder}: cannot write there ({problem.strerror or problem}); choose another folder with {setter}"
            ) from None

    parallel.together(leave_token, f"the folder of {setter}")
    leader = next(rank for rank in range(parallel.rank() + 1) if (folder / f".rank_{rank}.{token}").exists())
    parallel.meet(f"the folder of {setter}")
    _remove_old_tokens(folder, own)
    own.unlink(missing_ok=True)
    return leader


def _remove_old_tokens(folder: Path, own: Path) -> None:
    """Removes what ranks that were killed in `leader_of` left. One clock, that of the folder, dates all tokens."""
    with contextlib.suppress(OSError):
        now = own.stat().st_mtime
        for path in folder.iterdir():
            if _TOKEN.fullmatch(path.name) and now - path.stat().st_mtime > _OLD_SECONDS:
                path.unlink(missing_ok=True)
