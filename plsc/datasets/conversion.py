"""Converts a data set to another format: streamed, in several processes, and resumable."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from PIL import Image

from plsc.data.damaged import is_damage
from plsc.data.encoded_image import check_header, open_image
from plsc.data.exclusion import line_of
from plsc.data.image_folders import image_suffixes, is_image_suffix
from plsc.data.inputs import Inputs
from plsc.data.records import Record, Records
from plsc.data.transforms import decode
from plsc.datasets import image_tree
from plsc.datasets.image_tree import DATA
from plsc.datasets.joining import Places, joining
from plsc.datasets.opening import open_data
from plsc.datasets.remote_staging import RemoteStaging
from plsc.datasets.staging import LISTS, WHOLE, ShardRecord, Staging
from plsc.datasets.targets import TARGETS
from plsc.datasets.writers import class_folders, names_text
from plsc.errors import ConfigError, DataError, is_mistake
from plsc.machine import threads
from plsc.machine.files import replace_file
from plsc.machine.locks import lock_folder
from plsc.machine.names import readable, to_text
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options
from plsc.shuffle.worker_pool import Tasks, run_workers
from plsc.storage.address import is_address
from plsc.storage.working import StorePlace

Watch = Callable[[str, int, int], None]
Report = Callable[[int], None]
CONVERTING = "converting"
_SHARD_BYTES, _LEAST_BYTES = 256_000_000, 16_000_000  # encoded bytes of a shard, and of one of a small data set
_LEAST_SHARDS = 16  # as many as many machines have cores
_ANY_SHAPE = (3, 16, 16)  # to which an image is decoded to see whether it can be
_SAMPLE = 64  # images whose mean size decides the number of shards
_REPORTED = 64  # images between two reports of progress
_LONGEST_NUMBER = 18  # digits of the number of a line
_SUFFIXES: dict[bytes, tuple[str, ...]] = {  # by the first bytes of a file; the first suffix is the usual one
    b"\xff\xd8": (".jpg", ".jpeg", ".jpe", ".jfif"),
    b"\x89P": (".png",),
    b"GI": (".gif",),
    b"BM": (".bmp",),
    b"II": (".tif", ".tiff"),
    b"MM": (".tif", ".tiff"),
    b"WEBP": (".webp",),
}
_ROOM_SECONDS = 0.5


@dataclass(frozen=True)
class Conversion:
    """What to convert, and how.

    Attributes:
        source: Path of the data set.
        output: Folder for the output: a new one, or one that holds the unfinished output of the same conversion.
        to: A name of `TARGETS`.
        data_format: Format of the source; 'auto' recognises it.
        size: Side of the images in pixels; None copies them unchanged.
        quality: Quality of JPEG images that are resized.
        shards: Number of files; None chooses it.
        ranks: Number of ranks to split base64 data for; None leaves it as parts.
        workers: Number of processes; None is one for each core.
        skip_damaged: Whether to leave out damaged images, instead of stopping at the first.
    """

    source: str
    output: str
    to: str
    data_format: str = "auto"
    size: Optional[int] = None
    quality: int = 95
    shards: Optional[int] = None
    ranks: Optional[int] = None
    workers: Optional[int] = None
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.shards is not None and not TARGETS[self.to].has_shards:
            raise ConfigError(f"--shards is not for --to {self.to}, which has no shards; leave it out")
        if self.ranks is not None and self.to != "base64":
            raise ConfigError(f"--ranks is for --to base64; leave it out, because --to {self.to} is read by any ranks")


class Result(NamedTuple):
    """The outcome of a conversion.

    Attributes:
        images: Number of images in the output.
        classes: Number of classes.
        image_bytes: Encoded bytes of the images.
        shards: Number of shards.
        kept: Number of shards that an earlier run had completed.
        skipped: Number of damaged images that were left out.
    """

    images: int
    classes: int
    image_bytes: int
    shards: int
    kept: int
    skipped: int


class Failure(NamedTuple):
    """A damaged image, which ends the conversion.

    Attributes:
        image: Its number.
        message: What is wrong, where, and what to do.
    """

    image: int
    message: str


class Job(NamedTuple):
    """What a worker needs to make a shard.

    Attributes:
        conversion: The conversion.
        class_names: Name of each class; empty if they are unknown.
        num_classes: Number of classes; 0 where the writer need not know it.
        images: Number of images of the source.
        shards: Number of shards.
        room: A semaphore that lets a worker begin a shard when there is room for it on the disk; None if there always
            is.
        named: Returns a text with addresses in place of the paths of their copies.
        places: Where the shards lie in one file of all; None if each has a file of its own.
    """

    conversion: Conversion
    class_names: Sequence[str]
    num_classes: int
    images: int
    shards: int
    room: Any = None
    named: Callable[[str], str] = str
    places: Optional[Places] = None

    def bounds(self, number: int) -> tuple[int, int]:
        """Returns the first image of a shard, and the first of the next one."""
        return number * self.images // self.shards, (number + 1) * self.images // self.shards

    @property
    def is_joined(self) -> bool:
        """Whether several shards become one file."""
        return bool(TARGETS[self.conversion.to].part) and self.shards > 1


Engine = Callable[[Job, Records, list[int], Report], list[Failure]]


def convert(
    conversion: Conversion,
    watch: Watch,
    engine: Optional[Engine] = None,
    inputs: Optional[Inputs] = None,
    target: Optional[StorePlace] = None,
) -> Result:
    """Converts a data set. The output has the images in the order of the source, whatever the number of processes.

    Args:
        conversion: What to convert, and how.
        watch: Is called now and then with the stage, what is done, and all: images of 'converting', and bytes of the
            stages in which base64 data is split.
        engine: Makes the shards; by default processes of this machine do.
        inputs: Fetches a source in a store; see `open_data`.
        target: Where in a store the output goes, shard by shard, if the format has shards; None if the output folder is
            the place for it.

    Raises:
        ConfigError: The output cannot be used.
        DataError: The source has a mistake, an image is damaged, or the disk is full. Complete shards are kept, and the
            next run resumes from them.
        StorageError: The store cannot take the output. It keeps the complete shards that it has, and so does the next
            run.
    """
    _check_places(conversion)
    TARGETS[conversion.to].check()
    data_format, records = open_data(conversion.source, conversion.data_format, inputs)
    output = Path(conversion.output)
    is_new = not output.exists()
    try:
        with lock_folder(output, "give another folder"):
            staging = Staging(output) if target is None else RemoteStaging(output, target)
            job = _job(conversion, records, staging)
            if inputs is not None and is_address(conversion.source):
                job = job._replace(named=inputs.named)  # which Spark could not send
            staging.begin(_plan(conversion, data_format, records, job.shards))
            try:
                return _convert(job, records, staging, watch, staging.engine(engine or _on_this_machine))
            finally:
                staging.remove_pieces()
    except OSError as problem:
        raise DataError(
            f"{problem.filename or output}: cannot be written ({problem.strerror or problem}); free some space, or "
            "check quota and permissions, and run the same command again, which resumes"
        ) from problem
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(output)


def _check_places(conversion: Conversion) -> None:
    """Raises ConfigError if the output would be the source, or in it."""
    source, output = os.path.realpath(conversion.source), os.path.realpath(conversion.output)
    if output == source or os.path.commonpath([source, output]) == source:
        raise ConfigError(
            f"{conversion.output}: is the source, or a folder in it; give a folder outside {conversion.source}"
        )
    if os.path.lexists(conversion.output) and not os.path.isdir(conversion.output):
        raise ConfigError(f"{conversion.output}: is not a folder; give a new folder")


def _job(conversion: Conversion, records: Records, staging: Staging) -> Job:
    earlier = (staging.plan() or {}).get("shards")
    shards = conversion.shards or (
        earlier if type(earlier) is int and earlier > 0 else _number_of_shards(records, conversion.to)
    )
    return Job(
        conversion=conversion,
        class_names=records.class_names,
        num_classes=0 if TARGETS[conversion.to].file else records.num_classes,  # It may take a pass over the data.
        images=records.num_images,
        shards=min(shards, records.num_images),
    )


def _number_of_shards(records: Records, to: str) -> int:
    """Returns a number of shards that depends on the data alone, so that every machine makes the same files."""
    if records.image_bytes is not None:
        return _shards_of(records.image_bytes, to)
    sizes = []
    for i in np.linspace(0, records.num_images - 1, min(_SAMPLE, records.num_images)).astype(int).tolist():
        try:
            sizes.append(len(records.read(i)[0]))
        except DataError:
            continue
    return _shards_of(int(np.mean(sizes or [0]) * records.num_images), to)


def _shards_of(total: int, to: str) -> int:
    """Returns the number of shards for some encoded bytes."""
    if TARGETS[to].part:  # Each process holds one in memory.
        return max(1, -(-total // _LEAST_BYTES))
    return max(1, -(-total // _SHARD_BYTES), min(_LEAST_SHARDS, total // _LEAST_BYTES))


def _plan(conversion: Conversion, data_format: str, records: Records, shards: int) -> dict[str, object]:
    """Returns what must be the same when an unfinished conversion is resumed, by the word for it."""
    options = asdict(conversion)
    return {
        "version": 2,
        "source": to_text(conversion.source if is_address(conversion.source) else os.path.realpath(conversion.source)),
        "format of the source": data_format,
        "number of images": records.num_images,
        "digest of the source": digest_of(records),
        "--to": conversion.to,
        "shards": shards,
        **{f"--{name.replace('_', '-')}": options[name] for name in ("size", "quality", "ranks", "skip_damaged")},
    }


def digest_of(records: Records) -> str:
    """Returns a digest that changes when the source does, as far as its readers notice."""
    return hashlib.sha256(repr(sorted(records.digests().items())).encode("utf-8", "surrogateescape")).hexdigest()


def _convert(job: Job, records: Records, staging: Staging, watch: Watch, engine: Engine) -> Result:
    done = {number: record for number in range(job.shards) if (record := staging.keep(number)) is not None}
    todo = [number for number in range(job.shards) if number not in done]
    before = sum(end - first for first, end in map(job.bounds, done))
    watch(CONVERTING, before, job.images)
    is_joined = job.is_joined and not staging.is_publishing
    whole = joining(staging, TARGETS[job.conversion.to], job.shards, job.class_names) if is_joined else None
    with whole or contextlib.nullcontext(lambda: None) as join:

        def report(count: int) -> None:
            watch(CONVERTING, before + count, job.images)
            join()

        failures = engine(job, records, todo, report) if todo else []
        if failures:
            hint = "" if job.conversion.skip_damaged else " (or leave out all damaged images with --skip-damaged)"
            raise DataError(f"{min(failures).message}{hint}")
        shards = [staging.record(number) for number in range(job.shards)]
        result = _result(job, shards, len(done))
        if not result.images:
            first = readable(shards[0].skipped[0].strip())
            raise DataError(f"{job.conversion.source}: no image of it can be read; {first}")
    _publish(job, shards, staging, watch)
    return result


def _result(job: Job, shards: Sequence[ShardRecord], kept: int) -> Result:
    return Result(
        images=sum(one.images for one in shards),
        classes=len(job.class_names) or job.num_classes or max(one.classes for one in shards),
        image_bytes=sum(one.image_bytes for one in shards),
        shards=job.shards,
        kept=kept,
        skipped=sum(len(one.skipped) for one in shards),
    )


def _on_this_machine(job: Job, records: Records, todo: list[int], watch: Report) -> list[Failure]:
    """Makes shards in several processes. Returns the damaged images at which some of them stopped."""
    workers = 1 if records.is_streamed else min(job.conversion.workers or threads.cores(), len(todo))
    if records.is_streamed:
        records.will_read(np.concatenate([np.arange(*job.bounds(number)) for number in todo]))
    if job.is_joined:
        places = Places(Staging(Path(job.conversion.output)), TARGETS[job.conversion.to], job.shards)
        job = job._replace(places=places)
    if TARGETS[job.conversion.to].has_image_names or job.is_joined:
        image_suffixes()  # loads Pillow's formats here, and not in every process
    found = run_workers(
        partial(_work, job, records, todo),
        len(todo),
        workers,
        watch,
        advice="run the same command again, which resumes; if the machine ran out of memory, give fewer --workers",
    )
    return [failure for failures in found for failure in failures]


def _work(job: Job, records: Records, todo: list[int], tasks: Tasks) -> list[Failure]:
    for task in tasks:
        failure = make_shard(job, records, todo[task], tasks.report)
        if failure is not None:
            tasks.stop()  # Shards before it are under way, and may fail at an earlier image.
            return [failure]
    return []


def make_shard(job: Job, records: Records, number: int, report: Report) -> Optional[Failure]:
    """Makes one shard, in the hidden folder of the output.

    Args:
        job: What to do.
        records: The source.
        number: Number of the shard.
        report: Is called now and then with the number of images since the last call.

    Returns:
        The damaged image at which it stopped; None if the shard is complete.

    Raises:
        OSError: The disk refuses the shard.
    """
    conversion, staging = job.conversion, Staging(Path(job.conversion.output))
    target = TARGETS[conversion.to]
    first, end = job.bounds(number)
    images, size, largest, skipped = 0, 0, -1, []
    while job.room is not None and not job.room.acquire(timeout=_ROOM_SECONDS):
        report(0)  # ends this process if that of the command was killed
    with staging.piece(staging.shard(number).name) as piece:
        writer: Any = target.open(piece / DATA, number, job.shards, job.class_names, job.num_classes)
        for i in range(first, end):
            try:
                record = _record(conversion, records, i)
            except DataError as error:
                if not (conversion.skip_damaged and _is_damaged(error)):
                    return Failure(i, str(error))
                why = job.named(str(error))
                skipped.append((line_of(records.name(i), why) or b"").decode("utf-8", "surrogateescape"))
            else:
                writer.add(record)
                images, size, largest = images + 1, size + len(record.data), max(largest, record.label)
            if (i + 1 - first) % _REPORTED == 0:
                report(_REPORTED)
                if job.places is not None:
                    job.places.write(writer, number)
        if job.places is not None:
            job.places.finish(writer, number, partial(report, 0))
        writer.close()
        report((end - first) % _REPORTED)
        made = ShardRecord(images, size, largest + 1, files=images, file_bytes=size, skipped=skipped)
        staging.finish_shard(piece, made, synced=bool(target.file))
    return None


def _is_damaged(error: DataError) -> bool:
    """Returns whether an image is at fault, and not a disk, which may be there again later."""
    cause = error.__cause__ or error.__context__
    of_pillow = isinstance(cause, OSError) and cause.errno is None
    return is_damage(error) and (of_pillow or is_mistake(error))


def _record(conversion: Conversion, records: Records, i: int) -> Record:
    """Returns an image as it is to be written. Raises DataError if it is damaged.

    Without `size`, damage behind the header of an image is found only with `skip_damaged`, which decodes it.
    """
    data, label = records.read(i)
    if not data:
        raise DataError(f"{records.where(i)}: the image is empty; restore it, or leave it out")
    if conversion.size is not None:
        data = _resized(data, conversion.size, conversion.quality, records, i)
    elif conversion.skip_damaged:
        decode(data, _ANY_SHAPE, partial(records.where, i))
    if not TARGETS[conversion.to].has_image_names:
        return Record(f"image {i}", data, label)  # To look up a name may be to read the disk.
    return Record(_named(records.name(i), data), data, label)


def _resized(data: bytes, side: int, quality: int, records: Records, i: int) -> bytes:
    """Returns an encoded image with `side` x `side` pixels: the same bytes if it has them, otherwise a JPEG image."""
    try:
        with open_image(data) as image:
            if image.size == (side, side):
                return data
    except Exception:  # Pillow's errors are of many types, and `check_header` words them.
        check_header(io.BytesIO(data), records.where(i))
    stream = io.BytesIO()
    pixels = decode(data, (3, side, side), partial(records.where, i))
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _named(name: str, data: bytes) -> str:
    """Returns the name of an image with a suffix that says its format, as some formats need.

    A line of base64, `part:12`, becomes `part-00000012`, so that names sort like lines and hold no colon.
    """
    kind = b"WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else data[:2]
    suffixes = _SUFFIXES.get(kind)
    part, colon, line = name.rpartition(":")
    if colon and line.isascii() and line.isdigit() and len(line) <= _LONGEST_NUMBER:
        return f"{part}-{int(line):08d}{suffixes[0] if suffixes else ''}"
    if suffixes is None or name.endswith(suffixes) or name.lower().endswith(suffixes):
        return name
    stem, suffix = os.path.splitext(name)
    return (stem if suffix and is_image_suffix(suffix) else name) + suffixes[0]


def _publish(job: Job, shards: Sequence[ShardRecord], staging: Staging, watch: Watch) -> None:
    """Puts the output in place."""
    conversion = job.conversion
    folders, whole = [staging.shard(number) for number in range(job.shards)], staging.folder / WHOLE
    if not staging.is_publishing:
        lists = _lists(job, shards)
        if conversion.ranks is not None:
            shutil.rmtree(whole, ignore_errors=True)
            _split(conversion.ranks, lists.pop("file_list.txt"), staging, watch)
        staging.write_lists(lists)
    if not TARGETS[conversion.to].file:
        if not staging.is_publishing:
            staging.remove_pieces()  # of tasks that Spark repeated
            image_tree.check_count(staging.folder, folders, sum(one.images for one in shards))
        settle = partial(image_tree.settle, staging.folder, folders)
        staging.publish([staging.folder / image_tree.TREE, staging.folder / LISTS], settle)
    else:
        staging.publish([*([whole] if whole.exists() else folders), staging.folder / LISTS])


def _split(ranks: int, file_list: bytes, staging: Staging, watch: Watch) -> None:
    """Shuffles the base64 parts of all shards and splits them for a number of ranks."""
    parts = "".join(
        f"shard-{number:05d}/{DATA}/{name}\n" for number, name in enumerate(file_list.decode().splitlines())
    )
    replace_file(staging.folder / "file_list.txt", parts.encode())
    with staging.piece(WHOLE) as piece:
        options = Options(str(staging.folder), "file_list.txt", ranks, output_dir=str(piece / DATA))
        shuffle_base64(options, lambda stage, done, total: watch(f"{stage} base64", done, total))
        staging.commit(piece)


def _lists(job: Job, shards: Sequence[ShardRecord]) -> dict[str, bytes]:
    """Returns the small files that describe the output, by name."""
    lists: dict[str, bytes] = {}
    target, names = TARGETS[job.conversion.to], job.class_names
    if not target.file:  # The folders in the order of the numbers, also of those that have no image.
        lists["classes.txt"] = names_text(class_folders(names, job.num_classes))
    elif names and not target.has_names:
        lists["classes.txt"] = names_text(names)
    skipped = "".join(line for one in shards for line in one.skipped)
    if skipped:
        lists["skipped.txt"] = skipped.encode("utf-8", "surrogateescape")
    if job.conversion.to == "base64":
        files = (target.file.format(shard=number, shards=job.shards) for number, one in enumerate(shards) if one.images)
        lists["file_list.txt"] = "".join(f"{name}\n" for name in files).encode()
    return lists
