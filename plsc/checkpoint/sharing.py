"""Which ranks see the same folder: the disks of machines may be their own, and a folder's name does not tell."""

from __future__ import annotations

import uuid
from pathlib import Path

from plsc import parallel
from plsc.errors import ConfigError


def leader_of(folder: Path, setter: str) -> int:
    """The first rank that sees this rank's `folder`, which is made where it is missing. Every rank calls it.

    Each rank makes a file of a new name there: a network file system that remembers what it has seen has not seen that.

    Args:
        setter: for the message.

    Raises:
        ConfigError: some rank cannot write there; on every rank.
    """
    if parallel.world_size() == 1:
        return 0
    token = parallel.all_gather_object(uuid.uuid4().hex)[0]
    own = folder / f".rank_{parallel.rank()}.{token}"

    def leave_token() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own.touch()
        except OSError as problem:
            raise cannot_write(folder, setter, problem) from None

    parallel.together(leave_token)
    leader = next(rank for rank in range(parallel.rank() + 1) if (folder / f".rank_{rank}.{token}").exists())
    parallel.barrier()
    own.unlink(missing_ok=True)
    return leader


def cannot_write(folder: Path, setter: str, problem: OSError) -> ConfigError:
    """What is said of a folder that takes no files."""
    return ConfigError(
        f"{setter}('{folder}'): cannot write there ({problem.strerror or problem}); choose another folder"
    )
