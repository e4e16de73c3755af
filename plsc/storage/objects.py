"""Object stores, and every other file system that the `fsspec` package knows: `s3://`, `gs://`, `abfs://`, `memory://`.

The only module that imports `fsspec`. An object store has no folders, cannot rename, and need not list at once what was
just written. So nothing here relies on a listing but what must: moving and deleting a folder, and showing it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswerError
from datetime import datetime
from typing import Any, Optional

from plsc.errors import ConfigError, one_line, shown
from plsc.machine.json_files import as_integer
from plsc.storage.answers import answer, limited
from plsc.storage.base import (
    COMMIT,
    Chunks,
    Status,
    StorageError,
    StorageUnavailableError,
    check_absent,
    missing,
    place_of,
)
from plsc.storage.object_refusals import AZURE, GOOGLE, HINTS, PASSING, S3, code_of, login, object_error, words_of

ANSWER_SECONDS, CONNECT_SECONDS = 60.0, 5.0
_COPY_SECONDS = 3600.0  # a server that copies a file answers when it is done
_ABORT_SECONDS = 5.0
_LEAST_SECONDS_OF_PARTS = 30.0  # slow networks take as long for the parts that are sent at a time
_PART_BYTES, _MOST_PARTS = 8 << 20, 9000  # S3 takes 10,000 parts of at least 5 MB
_PARTS_AT_ONCE = 4  # each is in memory
_REQUESTS_AT_ONCE = 32
_DELETED_AT_ONCE = 1000

_BUCKETS = (*S3, *GOOGLE, *AZURE, "oss")  # their roots are buckets, or containers, that must exist
_EXTRAS = {**dict.fromkeys(S3, "s3"), **dict.fromkeys(GOOGLE, "gcs"), **dict.fromkeys(AZURE, "azure")}
# What the two parts of fs_ugi are called there.
_CREDENTIALS = {**dict.fromkeys(S3, ("key", "secret")), "oss": ("key", "secret")}
_CREDENTIALS |= dict.fromkeys(AZURE, ("account_name", "account_key"))
_LOGGERS = ("botocore", "aiobotocore", "s3fs", "gcsfs", "adlfs", "azure", "fsspec")  # they log headers with tokens


class ObjectStorage:
    """A `Storage` on a file system of `fsspec`.

    Args:
        system: The file system. It must not keep listings.
        root: The folder in it at which paths start; of an object store, the bucket and a folder in it.
        name: What messages call the store.
        has_folders: Whether its folders exist without files, as on a disk.

    Attributes:
        renames: False: a folder is moved file by file, `meta.json` last, and gone from its old place after that.
    """

    renames = False

    def __init__(self, system: Any, root: str, name: str, has_folders: bool = False) -> None:
        self._system, self._root, self.name, self._has_folders = system, root.rstrip("/"), name, has_folders
        self._moving: set[tuple[str, str]] = set()

    def status(self, path: str) -> Optional[Status]:
        """Returns the status of a path, or None if nothing has that name. A folder has a file in it, or is none."""
        with self._worded(path):
            try:
                return _status(self._ask("info", self._place(path)))
            except FileNotFoundError as problem:
                if code_of(problem) == "NoSuchBucket":
                    raise
                return None

    def list(self, path: str) -> dict[str, Status]:
        """Returns the names in a folder with their status."""
        place = self._place(path)
        with self._worded(path):
            found = self._ask("ls", place, detail=True)
            names = {str(one["name"]): one for one in found}
            if len(names) == 1 and _bare(*names) == _bare(place) and found[0]["type"] == "file":
                if str(found[0]["name"]).endswith("/"):
                    return {}
                raise StorageError(f"{place_of(self, path)}: is a file, not a folder", "is a file, not a folder")
            statuses = {self._name_in(place, name): _status(one) for name, one in names.items()}
            if "" in statuses and statuses[""].size == 0 and statuses[""].is_file:
                del statuses[""]  # how other programs keep an empty folder
            return statuses

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """Yields `count` bytes from `offset` on in parts, some of which are fetched ahead; fewer if the file ends."""
        place, end, begin = self._place(path), offset + count, offset
        at_once = _PARTS_AT_ONCE if self._system.async_impl else 1
        waiting: deque[tuple[int, Future]] = deque()
        try:
            while begin < end or waiting:
                while begin < end and len(waiting) < at_once:
                    stop = min(begin + _PART_BYTES, end)
                    with self._worded(path):
                        waiting.append((stop - begin, self._begin("cat_file", place, start=begin, end=stop)))
                    begin = stop
                size, future = waiting.popleft()
                with self._worded(path):
                    try:
                        data = _result(future, _seconds_of_parts())
                    except OSError as problem:
                        if code_of(problem) == "InvalidRange":  # the file ends before
                            return
                        raise
                if len(data) > size:
                    raise StorageError(
                        f"{place_of(self, path)}: the server sent {len(data):,} bytes instead of {size:,}; check it"
                    )
                yield data
                if len(data) < size:
                    return
        finally:
            for _, future in waiting:
                future.cancel()

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file and replaces one of that name. It appears when it is complete, where the store allows that."""
        place = self._place(path)
        with self._worded(path):
            if self._has_folders:
                self._ask("makedirs", posixpath.dirname(place), exist_ok=True)
            if size <= _PART_BYTES:
                data = b"".join(chunks())
                kept = len(data)
                _result(self._begin("pipe_file", place, data), _seconds_of_parts())
            else:
                self._write_parts(place, _parts(chunks(), max(_PART_BYTES, -(-size // _MOST_PARTS))))
                found = self.status(path)
                kept = found.size if found else size  # another rank may have moved the complete file by now
        if kept != size:
            raise StorageUnavailableError(f"{place_of(self, path)}: the server kept {kept:,} of {size:,} bytes")

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path that nothing has yet. A call after one that failed continues it."""
        move = (source, target)
        if move not in self._moving:
            check_absent(self, target)
        with self._worded(source):
            names = self._files(source)
            if not names:
                raise missing(self, source)
            self._moving.add(move)
            old, new = self._place(source), self._place(target)
            pairs = [(old + name, new + name) for name in sorted(names, key=lambda name: name == f"/{COMMIT}")]
            for folder in {posixpath.dirname(there) for _, there in pairs} if self._has_folders else ():
                self._ask("makedirs", folder, exist_ok=True)
            for some in (pairs[:-1], pairs[-1:]):
                self._each("cp_file", some, seconds=_COPY_SECONDS)
        self.delete(source)
        self._moving.discard(move)

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it; does nothing if the path is missing."""
        place = self._place(path)
        with self._worded(path):
            names = self._files(path)
            if f"/{COMMIT}" in names:  # what is left is no checkpoint
                self._each("rm_file", [(f"{place}/{COMMIT}",)], FileNotFoundError)
            self._remove([place + name for name in names if name != f"/{COMMIT}"])
            if self._has_folders and self.status(path) is not None:
                self._ask("rm", place, recursive=True)

    def mkdirs(self, path: str) -> None:
        """Checks that a folder can be there; object stores make none before its first file."""
        names = [name for name in posixpath.normpath(path).split("/") if name not in ("", ".")]
        for count in range(1, len(names) + 1):
            above = "/".join(names[:count])
            found = self.status(above)
            if found is not None and found.is_file:
                raise StorageError(
                    f"{place_of(self, above)}: a file stands where a folder should be; name another folder"
                )
        if self._has_folders:
            with self._worded(path):
                self._ask("makedirs", self._place(path), exist_ok=True)

    def check(self) -> None:
        """Asks the store for its root. Raises StorageError if there is no such bucket, or it must not be read."""
        with self._worded(""):
            try:
                self._look()
            except FileNotFoundError:
                raise StorageError(f"{self.name}: no such bucket; {HINTS['NoSuchBucket']}") from None

    def _look(self) -> None:
        self._ask("info", self._root.split("/", 1)[0])

    def _write_parts(self, place: str, parts: Iterable[bytes]) -> None:
        """Writes a large file; nothing of it stays if that fails."""
        # fsspec waits for servers here for as long as it likes.
        file = answer(lambda: self._system.open(place, "wb", block_size=_PART_BYTES), 2 * ANSWER_SECONDS)
        try:
            for part in parts:
                answer(functools.partial(file.write, part), 2 * ANSWER_SECONDS)
            answer(file.close, 2 * ANSWER_SECONDS)
        except BaseException:
            with contextlib.suppress(Exception):
                answer(file.discard, _ABORT_SECONDS)
            with contextlib.suppress(Exception):
                file.closed = True  # otherwise Python completes the file when it forgets the object
            with contextlib.suppress(Exception):
                _result(self._begin("rm_file", place), _ABORT_SECONDS)
            raise

    def _remove(self, places: Sequence[str]) -> None:
        self._each("rm_file", [(place,) for place in places], FileNotFoundError)

    def _files(self, path: str) -> Sequence[str]:
        """Returns what follows the path in the names of all files under it; `['']` if it is a file."""
        place = self._place(path)
        found = [str(one) for one in self._ask("find", place)]
        bare = [f"{place[: len(place) - len(place.lstrip('/'))]}{one.lstrip('/')}" for one in found]
        for one in bare:
            if one != place and (not one.startswith(f"{place}/") or ".." in one.split("/")):
                raise StorageError(f"{place_of(self, path)}: the server lists {shown(one)} there; check the server")
        return [one[len(place) :] for one in bare]

    def _name_in(self, place: str, name: str) -> str:
        """Returns what the server calls a part of a folder, all of it, so that `check_names` sees what is wrong."""
        return name.lstrip("/").removeprefix(f"{_bare(place)}/" if place.strip("/") else "")

    def _place(self, path: str) -> str:
        inner = posixpath.normpath(f"/{path}").lstrip("/")
        return f"{self._root}/{inner}" if inner else self._root

    def _begin(self, method: str, *arguments: Any, **options: Any) -> Future:
        """Starts a call of the file system, and returns its result to come."""
        if self._system.async_impl:
            import asyncio  # takes time

            loop = self._system.loop  # raises RuntimeError in a process that was forked after the store was opened
            coroutine = getattr(self._system, f"_{method}")(*arguments, **options)
            return asyncio.run_coroutine_threadsafe(coroutine, loop)
        done: Future = Future()
        try:
            done.set_result(getattr(self._system, method)(*arguments, **options))
        except Exception as problem:
            done.set_exception(problem)
        return done

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        return _result(self._begin(method, *arguments, **options))

    def _each(
        self, method: str, items: Iterable[Sequence[Any]], *harmless: type[Exception], seconds: Optional[float] = None
    ) -> None:
        """Calls a method for each of some arguments, several at once. Harmless exceptions do not end that."""
        waiting: deque[Future] = deque()
        left = deque(items)
        try:
            while left or waiting:
                while left and len(waiting) < _REQUESTS_AT_ONCE:
                    waiting.append(self._begin(method, *left.popleft()))
                with contextlib.suppress(*harmless):
                    _result(waiting.popleft(), seconds)
        finally:
            for future in waiting:
                future.cancel()

    @contextlib.contextmanager
    def _worded(self, path: str) -> Iterator[None]:
        """Turns the exceptions of fsspec's file systems into StorageErrors."""
        try:
            yield
        except (StorageError, ConfigError):
            raise
        except Exception as problem:
            raise object_error(self, path, problem) from None


class S3Storage(ObjectStorage):
    """A store with the protocol of S3. It uploads parts of a file at the same time, and removes unfinished ones."""

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it, and the parts of uploads to it that were interrupted."""
        super().delete(path)
        bucket, key, _ = self._system.split_path(self._place(path))
        with contextlib.suppress(Exception):  # a right that not everyone has; the parts are invisible
            found = self._call("list_multipart_uploads", Bucket=bucket, Prefix=key)
            for one in found.get("Uploads", ()):
                if one["Key"] == key or one["Key"].startswith(f"{key}/"):
                    self._call("abort_multipart_upload", Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])

    def _look(self) -> None:
        bucket, key, _ = self._system.split_path(self._root)  # the rights of a user may end at a folder
        self._call("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)

    def _call(self, method: str, **options: Any) -> Any:
        return self._ask("call_s3", method, **options)

    def _write_parts(self, place: str, parts: Iterable[bytes]) -> None:
        bucket, key, _ = self._system.split_path(place)
        where = {"Bucket": bucket, "Key": key}
        where["UploadId"] = self._call("create_multipart_upload", **where)["UploadId"]
        waiting: deque[Future] = deque()
        done: list[dict[str, Any]] = []

        def wait(most: int) -> None:
            while len(waiting) > most:
                answer = _result(waiting.popleft(), _seconds_of_parts())
                kept = {name: answer[name] for name in answer if name == "ETag" or re.match("Checksum[A-Z0-9]+$", name)}
                done.append({"PartNumber": len(done) + 1, **kept})

        try:
            for number, part in enumerate(parts, 1):
                waiting.append(self._begin("call_s3", "upload_part", PartNumber=number, Body=part, **where))
                wait(_PARTS_AT_ONCE - 1)
            wait(0)
            self._call("complete_multipart_upload", MultipartUpload={"Parts": done}, **where)
        except BaseException:
            for future in waiting:
                future.cancel()
            with contextlib.suppress(Exception):
                _result(self._begin("call_s3", "abort_multipart_upload", **where), _ABORT_SECONDS)
            raise

    def _remove(self, places: Sequence[str]) -> None:
        for begin in range(0, len(places), _DELETED_AT_ONCE):
            some = [self._system.split_path(place) for place in places[begin : begin + _DELETED_AT_ONCE]]
            keys = {"Objects": [{"Key": key} for _, key, _ in some], "Quiet": True}
            for problem in self._call("delete_objects", Bucket=some[0][0], Delete=keys).get("Errors", ()):
                code = str(problem.get("Code"))
                if code != "NoSuchKey":
                    kind = OSError if code in PASSING else PermissionError
                    raise kind(f"{problem.get('Key')}: {code}: {problem.get('Message')}")


def check_object_address(setter: str, address: str) -> None:
    """Checks that `fsspec` can open an address, without asking its server.

    Raises:
        ConfigError: It cannot be read, `fsspec` does not know it, or a package is missing.
    """
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    user, is_there, _ = rest.partition("@")  # a secret of S3 may hold a slash
    has_user = is_there and "/" not in user and not scheme.startswith(("abfs", "sftp", "ssh"))
    if has_user or (is_there and ":" in user):
        raise ConfigError(f"{setter}: the address holds a user or a password; take it out of there: {login(scheme)}")
    if scheme in _BUCKETS and not re.fullmatch(r"[^\s;,/?#:]+(/.*)?", rest):
        why = "is not an address" if rest.strip("/") else "names no bucket"
        raise ConfigError(f"{setter}: {shown(address)} {why}; expected {scheme}://bucket/folder")
    if scheme in _BUCKETS and "//" in rest:
        right = f"{scheme}://{re.sub('/+', '/', rest)}"
        raise ConfigError(f"{setter}: {shown(address)} has a folder without a name; did you mean {shown(right)}?")
    _class_of(setter, scheme)


def connect(address: str, ugi: Optional[str]) -> ObjectStorage:
    """Opens a store, and asks it whether its bucket exists.

    Args:
        address: `s3://bucket/folder`, or another address that `fsspec` knows.
        ugi: `key,secret` of S3, or `account,key` of Azure. None leaves the credentials to the environment, and to
            where the package of the store finds them.

    Raises:
        ConfigError: The address cannot be read, or takes no such credentials.
        StorageUnavailableError: The store does not answer.
        StorageError: The store refuses.
    """
    check_object_address("set_hdfs_info: fs_name", address)
    scheme = address.partition("://")[0].lower()
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if ugi is not None:
        if scheme not in _CREDENTIALS:
            raise ConfigError(f"set_hdfs_info: {scheme}:// takes no fs_ugi; give None: {login(scheme)}")
        options.update(zip(_CREDENTIALS[scheme], ugi.split(",", 1)))
    kind = _class_of("set_hdfs_info: fs_name", scheme)
    for package in _LOGGERS:
        if logging.getLogger(package).level == logging.NOTSET:
            logging.getLogger(package).setLevel(logging.WARNING)
    if scheme in S3:
        options["config_kwargs"] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": ANSWER_SECONDS,
            "retries": {"total_max_attempts": 1},  # `Retrying` tries again, with a line in the log
            "max_pool_connections": 2 * _REQUESTS_AT_ONCE,
            "http_session_cls": _one_server_session(),
        }
    else:
        options = {**kind._get_kwargs_from_urls(address), **options}
    name = address.rstrip("/")
    try:
        system = kind(**options)
        root = str(kind._strip_protocol(address))
    except Exception as problem:
        raise ConfigError(f"{name}: cannot be opened ({words_of(problem)}); {login(scheme)}") from None
    if scheme not in S3:
        has_folders = scheme not in (*_BUCKETS, "memory")
        store = ObjectStorage(system, root, name, has_folders)
    else:
        system.retries = 1
        store = S3Storage(system, root, name)
    if scheme in _BUCKETS:
        store.check()
    return store


def _class_of(setter: str, scheme: str) -> Any:
    """Returns the class of `fsspec` for a scheme. Raises ConfigError if it is unknown, or a package is missing."""
    extra = _EXTRAS.get(scheme, "fsspec")
    if importlib.util.find_spec("fsspec") is None:
        raise ConfigError(f"{setter}: {scheme}:// needs a package that is not installed: pip install 'plsc[{extra}]'")
    import fsspec

    if scheme in GOOGLE:
        # Otherwise gcsfs asks for the kind of the bucket by gRPC, which takes a minute where that is not let through.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        return fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise ConfigError(
            f"{setter}: plsc does not know {shown(scheme + '://')[1:-1]}, nor does fsspec; check the address"
        ) from None
    except ImportError as problem:
        how = f"pip install 'plsc[{extra}]'" if scheme in _EXTRAS else one_line(str(problem))
        raise ConfigError(f"{setter}: {scheme}:// needs a package that is not installed: {how}") from None


def _one_server_session() -> type:
    """Returns a class of connections that follow no redirect: aiohttp would send data and a session token after it."""
    from aiobotocore.httpsession import AIOHTTPSession

    class Direct:
        def __init__(self, session: Any) -> None:
            self._session = session

        def request(self, *arguments: Any, **options: Any) -> Any:
            return self._session.request(*arguments, **{**options, "allow_redirects": False})

    class OneServerSession(AIOHTTPSession):
        async def _get_session(self, *arguments: Any) -> Any:
            return Direct(await super()._get_session(*arguments))

    return OneServerSession


def _parts(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yields the bytes of chunks in parts of one size, of which the last may be smaller."""
    kept: list[bytes] = []
    count = 0
    for chunk in chunks:
        kept.append(chunk)
        count += len(chunk)
        if count >= size:
            data = b"".join(kept)
            for begin in range(0, count - size + 1, size):
                yield data[begin : begin + size]
            rest = data[count - count % size :]
            kept, count = [rest], len(rest)
    if count:
        yield b"".join(kept)


def _result(future: Future, seconds: Optional[float] = None) -> Any:
    """Waits for a call of the file system. Raises TimeoutError if a server is silent for too long."""
    try:
        return future.result(limited(2 * ANSWER_SECONDS) if seconds is None else seconds)
    except NoAnswerError:
        future.cancel()
        raise TimeoutError(None, "no answer in time") from None


def _seconds_of_parts() -> float:
    """Returns for how many seconds parts of files may be on their way."""
    return limited(2 * ANSWER_SECONDS, _LEAST_SECONDS_OF_PARTS)


def _bare(place: str) -> str:
    return place.strip("/")


def _status(found: Any) -> Status:
    """Returns a status of `fsspec`. Raises an error of `_MISUNDERSTOOD` if it is none."""
    is_folder = found["type"] == "directory"
    when = next((found[name] for name in ("LastModified", "last_modified", "mtime", "updated", "created")
                 if found.get(name)), 0.0)  # fmt: skip
    seconds = _seconds(when)
    version = next((found[name] for name in ("ETag", "etag", "generation") if found.get(name)), seconds)
    return Status(
        size=0 if is_folder else as_integer(found["size"]),
        is_folder=is_folder,
        modified=float(int(seconds)),  # S3 tells fractions in listings alone
        is_special=found["type"] not in ("file", "directory"),
        version=None if is_folder else str(version).strip('"'),
    )


def _seconds(when: Any) -> float:
    if isinstance(when, str):
        when = datetime.fromisoformat(re.sub(r"(\.\d+)?Z$", "+00:00", when))
    return when.timestamp() if isinstance(when, datetime) else float(when)
