"""Where a run begins: at fresh weights, at the weights of a checkpoint, or where its newest good checkpoint ends."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

import paddle

from plsc import checkpoint, parallel
from plsc.checkpoint import Checkpoint, DamagedError
from plsc.checkpoint.download import fetch_newest
from plsc.checkpoint.folder import EARLIER
from plsc.config import DAMAGED_LIST, INITS_BY_NAME, Config
from plsc.data.class_names import CLASSES
from plsc.engine import new_centres
from plsc.engine.log import METRICS
from plsc.engine.run_record import NAME as RECORD
from plsc.engine.scalars import FOLDER as SCALARS
from plsc.engine.state import TrainingState, first_difference
from plsc.errors import CheckpointError, ConfigError, counted
from plsc.heads import ClassifierHead, HeadGroup
from plsc.machine.files import sync
from plsc.machine.json_files import read_bytes
from plsc.machine.names import quoted
from plsc.report.pairs_file import SUFFIX as PAIRS_SUFFIX
from plsc.storage import Retrying
from plsc.weights.importing import load_pretrained
from plsc.weights.kinds import check_kind

logger = logging.getLogger("plsc")

_OTHERS_OF_A_RUN = (METRICS, RECORD, CLASSES, DAMAGED_LIST, SCALARS)


def check_pretrained(config: Config) -> None:
    """Checks on every rank that the file of `pretrained` is there and can hold weights, before anything takes time.

    Raises:
        ConfigError: It is missing, or something else; on every rank.
    """
    if config.pretrained is not None:
        source = Path(config.pretrained.source)
        parallel.together(lambda: check_kind(source), "the file of set_pretrained")


def warm_start(
    config: Config, backbone: paddle.nn.Layer, head: Union[ClassifierHead, HeadGroup]
) -> Optional[new_centres.NewCentres]:
    """Loads the weights of `checkpoint_dir` or `pretrained`, if one is set, and logs what was loaded.

    Returns:
        The classes whose centres begin at embeddings, which `new_centres.fill` makes; None if there are none.
    """
    by_name = config.head_init in INITS_BY_NAME
    if config.pretrained is not None:
        file = Path(config.pretrained.source)
        tensors = counted(len(load_pretrained(file, backbone, config.pretrained).found), "tensor")
        done, new = new_centres.take_over(config, None, head) if by_name else (["the head is fresh"], None)
        logger.info("weights from %s: %s of the backbone; %s", file, tensors, "; ".join(done))
        return new
    if not config.checkpoint_dir:
        return new_centres.take_over(config, None, head)[1] if by_name else None
    source = checkpoint.open_checkpoint(_place_of(Path(config.checkpoint_dir), config.model_save_dir), partial=True)
    checkpoint.load_backbone(source, backbone, config.checkpoint_weights)
    is_average = config.checkpoint_weights == "average" and "average" in source.meta
    kept = source.meta.get("head_dtype", "float32")
    is_rounded = kept != config.head_dtype == "bfloat16" and config.head_init != "fresh"
    rounding = f"; its class centres, in {kept}, are rounded to the nearest {config.head_dtype}" if is_rounded else ""
    done, new = [f"backbone loaded{' (the average of its weights)' if is_average else ''}"], None
    _warn_of_names(config, source)
    if config.head_init in ("checkpoint", "keep-common"):
        checkpoint.check_heads(source, len(head.parts))
    if config.head_init == "checkpoint":
        for number, part in enumerate(head.parts):
            checkpoint.load_head(source, part.head, number)
        done.append(f"head loaded, {counted(config.num_classes, 'class')}")
    elif config.head_init == "keep-common":
        for number, part in enumerate(head.parts):
            done += checkpoint.load_common_head(source, part.head, number)
    elif by_name:
        found, new = new_centres.take_over(config, source, head)
        done += found
    else:
        done.append(f"head is fresh, {counted(config.num_classes, 'class')}; the head of the checkpoint is ignored")
    logger.info("weights from %s: %s%s; optimizer and progress are fresh", source.folder, "; ".join(done), rounding)
    return new


def _warn_of_names(config: Config, source: Checkpoint) -> None:
    """Warns if the head is loaded by numbers that stand for other classes in the checkpoint."""
    if config.head_init not in ("checkpoint", "keep-common"):
        return
    theirs, ours = source.meta.get("class_names", ()), config.class_names or ()
    common = min(len(theirs), len(ours))
    number = first_difference(theirs[:common], ours[:common])
    if number is not None:
        logger.warning(
            "%s: class %d is %s in the checkpoint and %s in the data, and class centres are taken over by number: "
            "such classes begin at the centres of others; set_head_init('by-name') takes each class by its name",
            source.folder,
            number,
            quoted(theirs[number]),
            quoted(ours[number]),
        )


def _place_of(folder: Path, save_dir: str) -> Path:
    """Returns where a checkpoint is now: the run that began with it may have moved it aside, and been restarted."""
    if folder.exists() or not save_dir or os.path.realpath(folder.parent) != os.path.realpath(save_dir):
        return folder
    places = folder.parent.glob(f"{EARLIER}*/{folder.name}")
    return max(places, key=lambda place: os.path.getmtime(place.parent), default=folder)


def open_save_dir(
    state: TrainingState, store: Optional[Retrying], resources: contextlib.ExitStack
) -> tuple[Optional[checkpoint.Writer], bool]:
    """Locks the save folder, cleans it up, and resumes from its newest good checkpoint where that is asked for.

    A run that is not resumed is moved aside.

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
    starts = parallel.all_gather_object((parallel.launch_name(), parallel.restarted()), "the start")
    launches, is_restart = {name for name, _ in starts if name}, any(again for _, again in starts)
    restart_of = launches if is_restart else set()
    uploaded = fetch_newest(config, store, save_dir, restart_of)
    if leads:
        for line in checkpoint.recover(save_dir):
            logger.warning(line)
    parallel.meet("the save folder, which it cleans up")
    found = find_candidates(save_dir)
    source = _resume_if_wanted(state, save_dir, found, restart_of)
    saved = [] if source is None else checkpoint.saved_by_run(save_dir, state.run, source.age)
    state.began = _began(found, source, uploaded)
    state.launches = sorted(launches.union([] if source is None else source.meta.get("launches", [])))
    writer = checkpoint.Writer(save_dir, config.keep_checkpoints, config.background_save, saved, leads)
    if source is None:
        parallel.together(
            lambda: _set_aside(save_dir, writer, resources) if leads else None, "the earlier run, which it moves"
        )
    resources.callback(writer.close)
    return writer, source is not None


def _set_aside(save_dir: Path, writer: checkpoint.Writer, resources: contextlib.ExitStack) -> None:
    """Moves what an earlier run left in a folder to `earlier_<n>` in that folder, so that no file of it is replaced.

    Args:
        save_dir: The folder.
        writer: The writer of the new run.
        resources: Moves everything back if the new run has saved nothing when they are released.

    Raises:
        ConfigError: It cannot be moved.
    """
    checkpoints = _complete_checkpoints(save_dir)
    if not checkpoints:
        return
    others = [save_dir / name for name in _OTHERS_OF_A_RUN] + sorted(save_dir.glob(f"*{PAIRS_SUFFIX}"))
    target = next(place for n in itertools.count(1) if not (place := save_dir / f"{EARLIER}{n}").exists())
    try:
        target.mkdir()
        # If the process is killed here, checkpoints remain, by which the next run finds that there is more to move.
        for path in [*others, *checkpoints]:
            if path.exists():
                os.rename(path, target / path.name)
        sync(target)
        sync(save_dir)
    except OSError as problem:
        with contextlib.suppress(OSError):
            _move_all(target, save_dir)
        raise ConfigError(
            f"{save_dir}: holds an earlier run, which cannot be moved to {target.name} "
            f"({problem.strerror or problem}); choose another folder with set_model_save_dir, or resume the run with "
            "set_resume(True)"
        ) from None
    resources.callback(_bring_back, save_dir, target, writer)
    logger.warning(
        "%s held an earlier run, with %s; it is now in %s, and set_resume(True) would have resumed it",
        save_dir,
        counted(len(checkpoints), "checkpoint"),
        target,
    )


def _complete_checkpoints(save_dir: Path) -> list[Path]:
    return [folder for folder in checkpoint.list_checkpoints(save_dir) if (folder / checkpoint.META).is_file()]


def _bring_back(save_dir: Path, aside: Path, writer: checkpoint.Writer) -> None:
    """Undoes `_set_aside` if the new run has saved nothing, so that the earlier one can still be resumed."""
    if writer.saved or _complete_checkpoints(save_dir):
        return
    try:
        _move_all(aside, save_dir)
    except OSError as problem:
        logger.warning("%s: cannot be moved back to %s (%s)", aside, save_dir, problem.strerror or problem)
    else:
        logger.warning("nothing was saved, so the earlier run is in %s again", save_dir)


def _move_all(source: Path, target: Path) -> None:
    """Moves what a folder holds, and removes it. A folder that the target has too receives the files of the other."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if place.is_dir() and path.is_dir() and not path.is_symlink():
            _move_all(path, place)
        else:
            os.replace(path, place)
    source.rmdir()


@dataclass(frozen=True, order=True)
class Candidate:
    """A folder that some rank has, and that may be a checkpoint to resume from.

    Attributes:
        age: The age of the checkpoint; `_UNREADABLE` if it is not known.
        name: The name of the folder.
        holder: The first rank that has it.
        launches: The `plsc run` commands that have trained the run.
    """

    age: checkpoint.Age
    name: str
    holder: int = field(compare=False)
    launches: tuple[str, ...] = field(compare=False)


# What cannot be read comes first, so that it is reported, and counts as damaged if there is nothing else.
_UNREADABLE = (math.inf, 0, 0.0)


def find_candidates(save_dir: Path) -> list[Candidate]:
    """Returns what the folders of all ranks hold, the newest first; the same on every rank, which all call it.

    The order does not depend on a clock, nor on one rank's disk, which may have been lost.
    """
    own = []
    for folder in checkpoint.list_checkpoints(save_dir):
        try:
            found = checkpoint.parse_meta(folder, read_bytes(folder / checkpoint.META))
            age, launches = found.age, tuple(found.meta.get("launches", ()))
        except (CheckpointError, OSError, ValueError):
            age, launches = _UNREADABLE, ()
        own.append(Candidate(age, folder.name, parallel.rank(), launches))
    of_ranks: dict[Candidate, Candidate] = {}
    for one in itertools.chain(*parallel.all_gather_object(own, "the list of checkpoints")):
        of_ranks.setdefault(one, one)
    readable = {one.name for one in of_ranks if one.age != _UNREADABLE}
    return sorted((one for one in of_ranks if one.age != _UNREADABLE or one.name not in readable), reverse=True)


def _resume_if_wanted(
    state: TrainingState, save_dir: Path, found: Sequence[Candidate], restart_of: set[str]
) -> Optional[Checkpoint]:
    """Resumes the run if the settings or a restart ask for it; returns the checkpoint, or None at a fresh start."""
    if not state.config.resume:
        if not restart_of:
            return None
        # A restart by itself resumes its own run, and no earlier one that used the same folder.
        found = [one for one in found if restart_of.intersection(one.launches)]
    source = resume_from_newest(state, save_dir, found)
    if source is None:
        logger.info("nothing to resume in %s; starting from the beginning", save_dir)
        earlier = sorted(save_dir.glob(f"{EARLIER}*"), key=os.path.getmtime)
        if earlier:
            logger.info("to resume the run in %s instead, move its files to %s", earlier[-1], save_dir)
    return source


def _began(found: Sequence[Candidate], source: Optional[Checkpoint], uploaded: Optional[checkpoint.Age]) -> float:
    """Returns the `began` that makes the run's next checkpoints newer than all that exist, also if a clock was wrong.

    Args:
        found: What the ranks have in their folders.
        source: What the run is resumed from; None at a fresh start.
        uploaded: The age of the newest checkpoint in the store; None if there is none.
    """
    ages = [*([] if uploaded is None else [uploaded]), *(one.age for one in found if one.age != _UNREADABLE)]
    newest = max((began for began, _, _ in ages), default=0.0)
    if source is not None and source.age[0] >= newest:
        return source.age[0]
    return max(newest + 1.0, *parallel.all_gather_object(time.time(), "the start"))


def resume_from_newest(state: TrainingState, save_dir: Path, found: Sequence[Candidate]) -> Optional[Checkpoint]:
    """Loads the newest good checkpoint in `save_dir` into `state`, the same one on every rank.

    The newest is the last one of the run that began last, not the one with the most steps: an earlier run in the same
    folder may have come further.

    Args:
        state: The training, before its first step.
        save_dir: Folder of the checkpoints.
        found: What may be resumed, the newest first.

    Returns:
        The checkpoint, or None when there is none.

    Raises:
        CheckpointError: The newest complete checkpoint does not fit the settings, or none can be loaded by all ranks.
    """
    first_error = None
    for candidate in found:
        source, error, is_damage = None, None, False
        try:
            source = _open(save_dir, candidate)
            state.load(source)
        except CheckpointError as problem:
            error, is_damage = str(problem), isinstance(problem, DamagedError)
        of_ranks = parallel.all_gather_object((error, is_damage), f"the checkpoint {candidate.name}, which it loads")
        many = parallel.world_size() > 1
        problems = [
            (f"rank {rank}: {error}" if many else error, damage)
            for rank, (error, damage) in enumerate(of_ranks)
            if error
        ]
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
        raise CheckpointError(
            f"{save_dir}: no checkpoint can be resumed, and nothing was changed; the newest one: {first_error}"
        )
    return None


def _open(save_dir: Path, candidate: Candidate) -> Checkpoint:
    """Opens a candidate on this rank.

    Raises:
        CheckpointError: The folder of this rank does not hold it, or it is damaged.
    """
    folder = save_dir / candidate.name
    if not folder.exists():
        raise DamagedError(
            f"{folder}: is missing on {platform.node()}, but rank {candidate.holder} has it; copy the files of this "
            "machine's ranks there from where they are"
        )
    source = checkpoint.open_checkpoint(folder, partial=True)
    if source.age != candidate.age:
        raise DamagedError(f"{folder}: this is not the checkpoint that rank {candidate.holder} has there; move it away")
    return source


def _log_resumed(state: TrainingState, source: Checkpoint) -> None:
    progress = state.progress
    text, steps = "resumed from %s: epoch %d, step %d; %s done in all", counted(progress.step, "step")
    logger.info(text, source.folder, progress.epoch, progress.batch, steps)
    change = state.average.change(source)
    if change is not None:
        logger.info(change)
    differences = state.differences(source)
    if differences:
        logger.warning("the run will not repeat the stopped one to the last bit: %s", "; ".join(differences))
