"""How a run begins: from fresh weights, from those of a checkpoint, or where its newest good checkpoint left it."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Optional

import paddle

from plsc import checkpoint, parallel
from plsc.checkpoint import Checkpoint, DamagedError
from plsc.config import Config
from plsc.engine.state import TrainingState
from plsc.errors import CheckpointError
from plsc.heads import ClassifierHead

logger = logging.getLogger("plsc")


def hold_save_dir(stack: contextlib.ExitStack, save_dir: Path) -> bool:
    """Keeps other runs out of the folder, until `stack` is closed.

    Returns:
        Whether this rank is the first of those that see the folder.

    Raises:
        ConfigError: nothing can be written there, or another run does; on every rank.
    """
    leads = checkpoint.leader_of(save_dir, "set_model_save_dir") == parallel.rank()
    parallel.together(lambda: stack.enter_context(checkpoint.locked(save_dir)) if leads else None)
    return leads


def warm_start(config: Config, backbone: paddle.nn.Layer, head: ClassifierHead) -> None:
    """Takes weights from `checkpoint_dir`, as `head_init` says, and lists what was taken."""
    if not config.checkpoint_dir:
        return
    source = checkpoint.open_checkpoint(Path(config.checkpoint_dir), partial=True)
    checkpoint.load_backbone(source, backbone)
    done = ["backbone loaded"]
    if config.head_init == "checkpoint":
        checkpoint.load_head(source, head)
        done.append(f"head loaded, {config.num_classes} classes")
    elif config.head_init == "keep-common":
        done += checkpoint.load_common_head(source, head)
    else:
        done.append(f"head is fresh, {config.num_classes} classes; the checkpoint's ignored")
    logger.info("weights from %s: %s; optimizer and progress are fresh", source.folder, "; ".join(done))


def resume(state: TrainingState, save_dir: Path, leads: bool) -> tuple[checkpoint.Writer, bool]:
    """Puts the folder in order, and goes on from its newest good checkpoint when that is asked for.

    Args:
        leads: whether this rank is the first of those that see the folder.

    Returns:
        What writes the run's checkpoints, and whether it goes on from one.
    """
    if leads:
        for line in checkpoint.recover(save_dir):
            logger.warning(line)
    parallel.barrier()
    config, restarted = state.config, parallel.restarted()
    wanted = config.resume or restarted is not None
    # A restart alone goes on with its own run, not with what an earlier one left in the folder.
    since = 0.0 if config.resume or restarted is None else restarted
    source = resume_from_newest(state, save_dir, since) if wanted else None
    saved = [] if source is None else checkpoint.saved_by_run(save_dir, state.run, source.written)
    if wanted and source is None:
        logger.info("nothing to resume in %s; starting from the beginning", save_dir)
    writer = checkpoint.Writer(save_dir, config.keep_checkpoints, config.background_save, saved, leads)
    return writer, source is not None


def resume_from_newest(state: TrainingState, save_dir: Path, since: float = 0.0) -> Optional[Checkpoint]:
    """Puts `state` where the newest good checkpoint in `save_dir` has it, on every rank; None when there is none at all.

    The newest is the one written last: an earlier run in the same folder may have come further.

    Args:
        since: older ones do not count (seconds since 1970).

    Raises:
        CheckpointError: the newest one that is whole does not fit the settings, or every one is damaged.
    """
    found = sorted(parallel.all_gather_object(_candidates(save_dir, since))[0], reverse=True)
    first_error = None
    for written, name in found:
        source, error, is_damage = None, None, False
        try:
            source = checkpoint.open_checkpoint(save_dir / name, partial=True)
            if source.written != written:
                raise DamagedError(f"{source.folder}: another checkpoint than that of rank 0; move it away")
            state.load(source)
        except CheckpointError as problem:
            error, is_damage = str(problem), isinstance(problem, DamagedError)
        problems = [(error, damage) for error, damage in parallel.all_gather_object((error, is_damage)) if error]
        for error, damage in problems:
            if not damage:
                raise CheckpointError(error)
        if not problems:
            assert source is not None
            _log_resumed(state, source)
            return source
        logger.warning("%s; trying the checkpoint before", problems[0][0])
        first_error = first_error or problems[0][0]
    if first_error is not None:
        raise CheckpointError(f"{save_dir}: no checkpoint can be resumed; the newest: {first_error}")
    return None


def _candidates(save_dir: Path, since: float) -> list[tuple[float, str]]:
    """When checkpoints were written, and their names; for the damaged, when their folder was changed."""
    if parallel.rank() != 0:
        return []
    found = []
    for folder in checkpoint.list_checkpoints(save_dir):
        try:
            written = checkpoint.open_checkpoint(folder, partial=True).written
        except (CheckpointError, KeyError, TypeError, ValueError):
            written = folder.stat().st_mtime
        found.append((written, folder.name))
    return [one for one in found if one[0] >= since]


def _log_resumed(state: TrainingState, source: Checkpoint) -> None:
    progress = state.progress
    logger.info(
        "resumed from %s: step %d, epoch %d, batch %d", source.folder, progress.step, progress.epoch, progress.batch
    )
    differences = state.differences(source)
    if differences:
        logger.warning("the run will not be the stopped one to the last bit: %s", "; ".join(differences))
