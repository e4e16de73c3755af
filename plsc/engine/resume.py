"""Where a run begins: at fresh weights, at the weights of a checkpoint, or where its newest good checkpoint ends."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Optional

import paddle

from plsc import checkpoint, parallel
from plsc.checkpoint import Checkpoint, DamagedError
from plsc.checkpoint.download import fetch_newest
from plsc.config import Config
from plsc.engine.state import TrainingState
from plsc.errors import CheckpointError
from plsc.heads import ClassifierHead
from plsc.storage import Retrying

logger = logging.getLogger("plsc")


def warm_start(config: Config, backbone: paddle.nn.Layer, head: ClassifierHead) -> None:
    """Loads weights from `checkpoint_dir`, as `head_init` says, and logs what was loaded; does nothing without one."""
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
        done.append(f"head is fresh, {config.num_classes} classes; the head of the checkpoint is ignored")
    logger.info("weights from %s: %s; optimizer and progress are fresh", source.folder, "; ".join(done))


def open_save_dir(
    state: TrainingState, store: Optional[Retrying], resources: contextlib.ExitStack
) -> tuple[Optional[checkpoint.Writer], bool]:
    """Locks the save folder, cleans it up, and resumes from its newest good checkpoint where that is asked for.

    Args:
        state: The training, before its first step.
        store: The storage of `set_hdfs_info`, which may hold a newer checkpoint.
        resources: Closes the writer and gives up the folder when training ends.

    Returns:
        The writer of the run's checkpoints, None without a save folder; and whether the run was resumed.

    Raises:
        ConfigError: The folder cannot be written, or another run writes there; on every rank.
        CheckpointError: The newest checkpoint does not fit the settings, or all are damaged; on every rank.
    """
    config = state.config
    if not config.model_save_dir:
        return None, False
    save_dir = Path(config.model_save_dir)
    leads = checkpoint.leader_of(save_dir, "set_model_save_dir") == parallel.rank()
    parallel.together(
        lambda: resources.enter_context(checkpoint.locked(save_dir)) if leads else None, "the lock of the save folder"
    )
    fetch_newest(config, store, save_dir)
    if leads:
        for line in checkpoint.recover(save_dir):
            logger.warning(line)
    parallel.meet("the save folder, which it cleans up")
    source = _resume_if_wanted(state, save_dir)
    saved = [] if source is None else checkpoint.saved_by_run(save_dir, state.run, source.written)
    writer = checkpoint.Writer(save_dir, config.keep_checkpoints, config.background_save, saved, leads)
    resources.callback(writer.close)
    return writer, source is not None


def _resume_if_wanted(state: TrainingState, save_dir: Path) -> Optional[Checkpoint]:
    """Resumes the run if the settings or a restart ask for it; returns the checkpoint, or None at a fresh start."""
    restarted = parallel.restarted()
    if not state.config.resume and restarted is None:
        return None
    # A restart by itself resumes its own run, and no earlier one that used the same folder.
    since = 0.0 if state.config.resume or restarted is None else restarted
    source = resume_from_newest(state, save_dir, since)
    if source is None:
        logger.info("nothing to resume in %s; starting from the beginning", save_dir)
    return source


def resume_from_newest(state: TrainingState, save_dir: Path, since: float = 0.0) -> Optional[Checkpoint]:
    """Loads the newest good checkpoint in `save_dir` into `state`, the same one on every rank.

    The newest is the one written last, not the one with the most steps: an earlier run in the same folder may have come
    further.

    Args:
        state: The training, before its first step.
        save_dir: Folder of the checkpoints.
        since: Time before which checkpoints do not count, in seconds since 1970.

    Returns:
        The checkpoint, or None when the folder has none.

    Raises:
        CheckpointError: The newest complete checkpoint does not fit the settings, or all are damaged.
    """
    found = sorted(parallel.all_gather_object(_candidates(save_dir, since), "the list of checkpoints")[0], reverse=True)
    first_error = None
    for written, name in found:
        source, error, is_damage = None, None, False
        try:
            source = checkpoint.open_checkpoint(save_dir / name, partial=True)
            if source.written != written:
                raise DamagedError(f"{source.folder}: this is not the checkpoint that rank 0 has there; move it away")
            state.load(source)
        except CheckpointError as problem:
            error, is_damage = str(problem), isinstance(problem, DamagedError)
        results = parallel.all_gather_object((error, is_damage), f"the checkpoint {name}, which it loads")
        problems = [(error, damage) for error, damage in results if error]
        for error, damage in problems:
            if not damage:
                raise CheckpointError(error)
        if not problems:
            assert source is not None
            _log_resumed(state, source)
            return source
        logger.warning("%s; trying the checkpoint before it", problems[0][0])
        first_error = first_error or problems[0][0]
    if first_error is not None:
        raise CheckpointError(f"{save_dir}: no checkpoint can be resumed; the newest one: {first_error}")
    return None


def _candidates(save_dir: Path, since: float) -> list[tuple[float, str]]:
    """Returns when checkpoints were written, and their names; for damaged ones, when their folder changed."""
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
    text = "resumed from %s: epoch %d, step %d; %d steps done in all"
    logger.info(text, source.folder, progress.epoch, progress.batch, progress.step)
    differences = state.differences(source)
    if differences:
        logger.warning("the run will not repeat the stopped one to the last bit: %s", "; ".join(differences))
