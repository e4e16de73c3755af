"""Disturbs one rank at chosen places of a training: an error is raised there, or the rank is late.

    disturbed_ranks.py DATA OUTPUT fail-all PLACE ...  these places of `PLACES` one after the other, in one process
    disturbed_ranks.py DATA OUTPUT fail PLACE          one place of `HARD_PLACES`; the error is not caught
    disturbed_ranks.py DATA OUTPUT delay PLACE RANK SECONDS [PLACE RANK SECONDS ...]

Each rank of `fail-all` writes `<OUTPUT>/failed_<rank>.json`: {place: [seconds, kind of error, text]}.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple

import paddle
import train_glyphs
from train_glyphs import TinyNet, make_reader, small_entry

import plsc.checkpoint.download
from plsc import parallel
from plsc.errors import CheckpointError, DataError, RankError
from plsc.storage import LocalStorage, Retrying

RANK = parallel.rank()


class Place(NamedTuple):
    """A function of plsc, the rank that is disturbed in it, what it raises there, and the settings that lead there."""

    function: str
    rank: int
    error: BaseException
    settings: dict[str, Any] = {}


NO_SPACE = OSError(28, "No space left on device")
BROKEN = ValueError("broken here")
PLACES = {
    "settings": Place("plsc.config:Config.check_combination", 1, BROKEN),
    "callbacks": Place("plsc.engine.trainer:build_callbacks", 1, BROKEN),
    "list of images": Place("plsc.data.sources:open_images", 1, DataError("label.txt:3: no label")),
    "test set": Place("plsc.engine.trainer:build_evaluator", 1, DataError("glyphs.bin: damaged")),
    "backbone": Place("plsc.engine.trainer:build_backbone", 1, MemoryError()),
    "warm start": Place("plsc.engine.trainer:warm_start", 1, CheckpointError("output/0: damaged")),
    "optimizer": Place("plsc.engine.trainer:Updates", 0, BROKEN),
    "header": Place("plsc.engine.trainer:log_header", 0, NO_SPACE),
    "lock": Place("plsc.checkpoint:locked", 0, NO_SPACE),
    "recovery": Place("plsc.checkpoint:recover", 0, NO_SPACE),
    "resume": Place("plsc.engine.state:TrainingState.load", 1, BROKEN, {"resume": True}),
    "run record": Place("plsc.engine.trainer:write_run_record", 0, NO_SPACE),
    "training begins": Place("plsc.engine.log:ProgressLog.on_train_begin", 1, SystemExit(3)),
    "epoch begins": Place("plsc.engine.log:ProgressLog.state", 0, BROKEN),
    "image": Place("plsc.data.loader:ImageLoader._batch", 1, DataError("label.txt:3: not an image")),
    "reader": Place("train_glyphs:make_global_random_reader", 1, BROKEN, {"reader": True}),
    "callback of a step": Place("plsc.engine.log:ProgressLog.on_step_end", 0, KeyboardInterrupt()),
    "metrics": Place("plsc.engine.log:MetricsFile.write", 0, NO_SPACE),
    "scalars": Place("plsc.engine.scalars:ScalarFiles.on_record", 0, NO_SPACE, {"scalars": "tensorboard"}),
    "copy of the state": Place("plsc.checkpoint.snapshot:Snapshot.take", 1, MemoryError()),
    "part of a checkpoint": Place("plsc.checkpoint.writer:_write", 1, BROKEN),
    "disk of a checkpoint": Place("plsc.checkpoint.writer:_write", 1, NO_SPACE),
    "leader of a checkpoint": Place("plsc.checkpoint.folder:publish", 0, BROKEN),
    "old checkpoints": Place("plsc.checkpoint.folder:remove", 0, BROKEN, {"keep_checkpoints": 1, "with_test": False}),
    "test": Place("plsc.evaluation.embedder:Embedder._forward", 1, MemoryError()),
    "metrics of a test": Place("plsc.evaluation.evaluator:verification_metrics", 1, BROKEN),
    "pairs for the report": Place("plsc.evaluation.evaluator:write_pairs", 0, NO_SPACE),
    "test reader": Place("plsc.evaluation.embedder:Embedder.embed_reader", 1, BROKEN, {"test_reader": True}),
    "after a test": Place("plsc.engine.log:ProgressLog.on_test", 0, BROKEN),
    "training ends": Place("plsc.engine.log:ProgressLog.on_train_end", 1, BROKEN),
    "export": Place("plsc.inference.export:_write", 0, BROKEN),
    "images to embed": Place("plsc.evaluation.embedder:open_collection", 1, BROKEN, {"predict": True}),
    "embeddings": Place("plsc.search.embeddings:EmbeddingsWriter.append", 0, NO_SPACE, {"predict": True}),
    "Parquet": Place("plsc.evaluation.trained:write_parquet", 0, NO_SPACE, {"predict": True}),
    "connection to HDFS": Place("plsc.engine.trainer:open_store", 1, BROKEN, {"hdfs": True}),
    "newest in HDFS": Place("plsc.checkpoint.remote:newest", 0, BROKEN, {"hdfs": True, "resume": True}),
    "download": Place("plsc.checkpoint.remote:download", 1, BROKEN, {"hdfs": True, "resume": True, "lost": True}),
}
# Here the other rank waits in a collective or is busy, or the process ends without a word.
HARD_PLACES = {
    "forward": Place("train_glyphs:TinyNet.build_network", 1, MemoryError("out of memory")),
    "forward of rank 0": Place("train_glyphs:TinyNet.build_network", 0, MemoryError("out of memory")),
    "busy": Place("plsc.engine.trainer:write_run_record", 1, DataError("label.txt:3: no label")),
    "killed": Place("plsc.engine.trainer:log_header", 1, BROKEN),
    "rank 0 killed": Place("plsc.engine.trainer:log_header", 0, BROKEN),
    "left": Place("plsc.engine.trainer:log_header", 1, SystemExit(0)),
    "rank 0 left": Place("plsc.engine.trainer:log_header", 0, SystemExit(0)),
    "other calls": Place(
        "plsc.engine.trainer:log_header", 1, RankError("while rank 1 came to its own save; every rank must")
    ),
    "between actions": Place("plsc:Entry.convert_for_prediction", 1, BROKEN),
}
BUSY = ("busy",)
END = {name: lambda: os.kill(os.getpid(), signal.SIGKILL) for name in ("killed", "rank 0 killed")}
END["other calls"] = lambda: parallel.meet("its own save")
# Errors of an upload are reported, but end nothing at once.
LATE_PLACES = {
    "start": Place("plsc.parallel:initialise", 1, BROKEN),
    "upload": Place("plsc.checkpoint.remote:upload_files", 1, BROKEN, {"hdfs": True}),
    "end of an upload": Place("plsc.checkpoint.remote:publish", 0, BROKEN, {"hdfs": True}),
    "between actions": HARD_PLACES["between actions"],
}
EVERY_PLACE = {**PLACES, **LATE_PLACES}


def disturb(place: Place, act: Callable[[], None]) -> Callable[[], None]:
    """Has the function of a place call `act` at first; returns what makes the function whole again."""
    module, _, path = place.function.partition(":")
    owner = importlib.import_module(module)
    *outer, name = path.split(".")
    for one in outer:
        owner = getattr(owner, one)
    whole = getattr(owner, name)

    @functools.wraps(whole)
    def disturbed(*arguments: Any, **options: Any) -> Any:
        act()
        return whole(*arguments, **options)

    setattr(owner, name, disturbed)
    return lambda: setattr(owner, name, whole)


def work(data: str, output: Path, settings: dict[str, Any]) -> None:
    """Trains two epochs, with a checkpoint after each, and exports or embeds images."""
    settings = dict(settings)
    predicts = settings.pop("predict", False)
    if settings.pop("lost", False) and RANK == 0:
        shutil.rmtree(output)
    ins = small_entry(data, str(output))
    paddle.seed(0)
    ins.set_model(TinyNet())
    ins.set_log_period(1)
    ins.set_rank_timeout(5)
    for name, value in settings.items():
        if name == "reader":
            ins.train_reader = lambda: train_glyphs.make_global_random_reader(RANK)()
        elif name == "hdfs":
            plsc.checkpoint.download.open_hdfs = lambda *arguments: Retrying(LocalStorage(), 5)
            if value:
                ins.set_hdfs_info("hdfs://nowhere:9000", "name,word", str(output.with_name(f"{output.name}_store")))
        elif name == "test_reader":
            ins.test_reader = make_reader(RANK, [8, 8])
        else:
            getattr(ins, f"set_{name}")(value)
    ins.train()
    if predicts:
        ins.predict(f"{data}/label.txt", output / "embeddings", parquet=True)
    else:
        ins.convert_for_prediction()


def raise_error(error: BaseException) -> None:
    raise error


def fail_all(data: str, output: Path, *names: str) -> None:
    found = {}
    for name in names:
        place = PLACES[name]
        folder = output / name.replace(" ", "_")
        if place.settings.get("resume"):
            work(data, folder, {"hdfs": "hdfs" in place.settings})
        repair = disturb(place, lambda error=place.error: raise_error(error)) if place.rank == RANK else lambda: None
        began = time.monotonic()
        try:
            work(data, folder, place.settings)
            found[name] = [0.0, "", ""]
        except BaseException as error:
            found[name] = [time.monotonic() - began, type(error).__name__, str(error)]
        repair()
    (output / f"failed_{RANK}.json").write_text(json.dumps(found))


def fail(data: str, output: Path, name: str) -> None:
    place = HARD_PLACES[name]
    if place.rank == RANK:
        disturb(place, END[name] if name in END else lambda: raise_error(place.error))
    elif name in BUSY:
        disturb(Place("plsc.engine.trainer:write_run_record", RANK, BROKEN), lambda: time.sleep(120))
    work(data, output, place.settings)


def delay(data: str, output: Path, *words: str) -> None:
    """Delays ranks at places, once each: words are a place, a rank and seconds, and so on."""
    for name, rank, seconds in zip(words[::3], words[1::3], words[2::3]):
        if int(rank) == RANK:
            disturb(EVERY_PLACE[name], functools.cache(lambda seconds=seconds: time.sleep(float(seconds))))
    settings = {key: value for name in words[::3] for key, value in EVERY_PLACE[name].settings.items()}
    if settings.get("resume"):
        work(data, output / "run", {"hdfs": settings.get("hdfs", False)})
    work(data, output / "run", settings)


def main() -> None:
    data, output, act, words = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    output.mkdir(parents=True, exist_ok=True)
    {"fail-all": fail_all, "fail": fail, "delay": delay}[act](data, output, *words)


if __name__ == "__main__":
    main()
