"""Feeds damaged and hostile bytes to the parsers of plsc, guided by what code they reach.

A parser may raise only a `PlscError` (or what its docstring names), and within bounds of memory and time. What breaks
that rule is printed as JSON and kept in the output folder, one file for each place in the code. It needs
`pip install atheris`, and it is not part of the test suite: inputs that found faults are cases of the tests of each
parser.

python tests/fuzz.py --seconds 60 --output /tmp/found verification tensor_file
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "helpers")]

MOST_SECONDS = 2.0
MOST_MEMORY = 192 << 20  # bytes that an input of a few kB may take
WORK = Path(tempfile.gettempdir()) / f"plsc-fuzz-{os.getpid()}"


class Case:
    """What a target needs: a folder of its own, its seeds, and the errors that it may raise besides `PlscError`."""

    allowed: tuple = ()

    def seeds(self):
        """Returns valid inputs."""
        raise NotImplementedError

    def feed(self, data):
        """Gives the bytes to the parser."""
        raise NotImplementedError


class Verification(Case):
    """`.bin` files."""

    def seeds(self):
        import pickle

        import numpy as np

        image = (np.arange(768) % 251).astype(np.uint8).reshape(16, 16, 3)
        for content in (([image.tobytes()] * 2, [True]), ([image] * 2, [True]), (np.array([b"a", b"b"], object), [0])):
            for protocol in (0, 2, 4, 5):
                yield pickle.dumps(content, protocol)
        yield pickle.dumps(([image, np.asfortranarray(image)], np.array([True])), 2)
        yield pickle.dumps(([b"x"] * 4, [np.bool_(True), np.int64(0)]), 3)

    def feed(self, data):
        from plsc.data.verification import load_verification

        path = WORK / "set.bin"
        path.write_bytes(data)
        load_verification(str(path), (3, 16, 16))


class Tensors(Case):
    """Tensor files, whose checksums are always right: those who can change a file can change meta.json too."""

    def seeds(self):
        import numpy as np

        from plsc.checkpoint.tensor_file import write_tensors

        for tensors in (
            {"weight": np.ones([3, 4], "float32"), "n": np.array(3), "empty": np.zeros([0, 5], "float16")},
            {"a": np.zeros(7, bool), "b": np.arange(6, dtype="int8").reshape(1, 2, 3)},
            {},
        ):
            write_tensors(WORK / "file", tensors, {"format": "pt"})
            yield (WORK / "file").read_bytes()

    def feed(self, data):
        from plsc.checkpoint.tensor_file import BLOCK_BYTES, FileSum, TensorFile

        path = WORK / "tensors"
        path.write_bytes(data)
        blocks = [data[first : first + BLOCK_BYTES] for first in range(0, len(data), BLOCK_BYTES)]
        with TensorFile(path, FileSum(len(data), tuple(hashlib.sha256(one).hexdigest() for one in blocks))) as file:
            for name in file:
                whole = file.read(name)
                if whole.ndim and len(whole):
                    assert sum(map(len, file.rows(name, 0, len(whole)))) == len(whole)


class Meta(Case):
    """The `meta.json` of checkpoints."""

    def seeds(self):
        from plsc.checkpoint.folder import BACKBONE, OPTIMIZER, head_file, write_meta
        from plsc.checkpoint.tensor_file import FileSum

        files = {name: FileSum(9, ("a" * 64,)) for name in (BACKBONE, OPTIMIZER, head_file(0))}
        meta = {
            "run": "a", "began": 1.5, "launches": ["x"], "model": "ResNet50", "loss_type": "softmax", "emb_dim": 8,
            "image_shape": [3, 16, 16], "by_rows": ["weight"], "accumulators": {}, "steps_per_epoch": 3, "step": 5,
            "progress": {"epoch": 0, "loss_sum": 1.0, "test": {}}, "written": 2.5, "head_rows": [4], "num_classes": 4,
            "ranks": 1, "sharded": True, "test": {"lfw": {"accuracy": 0.5}}, "rng": [],
        }  # fmt: skip
        write_meta(WORK, meta, files)
        yield (WORK / "meta.json").read_bytes()

    def feed(self, data):
        from plsc.checkpoint.folder import parse_meta, score_of

        one = parse_meta(WORK, data)
        assert len(one.age) == 3
        score_of(one.meta)
        sum(one.head_rows)


class Manifest(Case):
    """Manifests of base64 data, and the files that they describe."""

    def seeds(self):
        from plsc.data.base64_parts import Manifest as Content
        from plsc.data.base64_parts import OutputFile

        (WORK / "data").mkdir(exist_ok=True)
        (WORK / "data" / "base64_rank_0").write_bytes(b"AAAA\t1\n" * 6)
        files = [OutputFile("base64_rank_0", 6, 1, 42, "a" * 64)]
        yield Content(1, 0, 5, 1, 0, 6, 1, files, "file_list.txt", [{"name": "a"}]).to_json().encode()

    def feed(self, data):
        from plsc.data.base64_parts import load_manifest
        from plsc.data.base64_source import Base64Files

        (WORK / "data" / "base64_manifest.json").write_bytes(data)
        manifest = load_manifest(str(WORK / "data"))
        assert manifest is not None
        source = Base64Files(str(WORK / "data"), manifest, 10, 0, 1)
        for i in source.epoch_order(0, 0, 0, 1)[:20]:
            source.read(int(i))


class Index(Case):
    """Indexes of base64 data."""

    def seeds(self):
        import io

        import numpy as np

        from plsc.data.base64_index import begin_index

        (WORK / "lines").write_bytes(b"AAAA\t1\n" * 6)
        file = io.BytesIO()
        begin_index(file, 6)
        yield file.getvalue() + np.full(6, 7, "<u4").tobytes()

    def feed(self, data):
        from plsc.data.base64_index import load_offsets

        (WORK / "index.npy").write_bytes(data)
        found = load_offsets(str(WORK / "lines"), str(WORK / "index.npy"), 6, 42)
        assert len(found) == 7 and found[-1] == 42


class RecordIO(Case):
    """RecordIO files and their indexes; the first byte says which of them is read, and whether with the other."""

    def seeds(self):
        import shutil

        from plsc.data.recordio import RecordIOWriter
        from plsc.data.records import Record

        shutil.rmtree(WORK / "written", ignore_errors=True)
        (WORK / "written").mkdir()
        writer = RecordIOWriter(WORK / "written" / "train.rec")
        for i in range(6):
            writer.add(Record("a", b"abc\x0a\x23\xd7\xce" * i + b"x", i // 2))
        writer.close()
        self.valid = [(WORK / "written" / f"train.{kind}").read_bytes() for kind in ("rec", "idx")]
        yield b"\0" + self.valid[0]
        yield b"\1" + self.valid[0]
        yield b"\2" + self.valid[1]
        yield b"\3" + b"2,112,112\n"

    def feed(self, data):
        from plsc.data.sources import open_images

        number = data[0] % 4 if data else 0
        folder = WORK / "recordio"
        folder.mkdir(exist_ok=True)
        for name, content, of in (("train.rec", self.valid[0], (0, 1)), ("train.idx", self.valid[1], (2,))):
            (folder / name).write_bytes(data[1:] if number in of else content)
        (folder / "property").write_bytes(data[1:] if number == 3 else b"3,112,112\n")
        if number == 0:
            (folder / "train.idx").unlink()
        for shuffle in ("full", "window"):
            source = open_images(str(folder), None, 0, 1, "recordio", shuffle)
            with tolerant(self.allowed):
                source.labels()
            for i in source.epoch_order(0, 0, 0, 1)[:20].tolist():
                with tolerant(self.allowed):
                    source.read(i)


class Lines(Case):
    """Lines of base64 data, in two ways that must agree, and what training decodes of them."""

    def seeds(self):
        yield b"AAAA\t1\nAAA=\t22\nAA==\t3\n"
        yield b"\xef\xbb\xbfAAAA\t1\r\n\n\t1\nAAAA\t-1\nAA=A\t" + b"9" * 19 + b"\n"

    def feed(self, data):
        from plsc.data.base64_parts import _one_by_one, check_line, decode_base64, find_lines

        block = data[: data.rfind(b"\n") + 1]
        found, slow = find_lines(block, 100), _one_by_one(block, 100)
        assert found.faults.tolist() == slow.faults.tolist() and found.starts.tolist() == slow.starts.tolist()
        good = found.faults == 0
        assert found.labels[good].tolist() == slow.labels[good].tolist()
        for line in block.split(b"\n")[:-1]:
            if check_line(line, 100) is None:
                assert decode_base64(line.rpartition(b"\t")[0]) is not None


class Lists(Case):
    """Lists of parts, of images, of labels and of pairs."""

    def seeds(self):
        for folder in ("a", "a/b"):
            (WORK / "images" / folder).mkdir(parents=True, exist_ok=True)
        for name in ("1.jpg", "a/a_0001.jpg", "a/b/2.png", "part"):
            (WORK / "images" / name).write_bytes(b"AAAA\t1\n")
        yield b"1.jpg 0\na/a_0001.jpg\t3\n"
        yield b"part\n"
        yield b"1.jpg a 1\na 1.jpg 0\n"
        yield b"1\t1\na 1 1\na 1 a 1\n"
        yield b"\xef\xbb\xbfa/b/2.png\tid\ttemplate\r1.jpg\tid\r\n"

    def feed(self, data):
        from plsc.data.base64_parts import read_file_list
        from plsc.data.collection import open_collection
        from plsc.data.label_file import read_label_file
        from plsc.data.pair_sets import read_pairs

        path = WORK / "images" / "list.txt"
        path.write_bytes(data)
        folder = str(path.parent)
        for read in (
            lambda: read_label_file(folder, 5, path.name),
            lambda: read_file_list(folder, path.name),
            lambda: open_collection(path).fingerprint(),
            lambda: read_pairs(path),
        ):
            with tolerant(self.allowed):
                read()


class Tars(Case):
    """Tars of images: their headers and labels, and then what training reads."""

    def seeds(self):
        import io
        import tarfile

        for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=kind) as made:
                for name, content in (("a/1.jpg", b"x"), ("a/1.cls", b"1"), ("n" * 90 * number + "2.png", b"y" * 513),
                                      ("n" * 90 * number + "2.json", b'{"label": 3}')):  # fmt: skip
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    made.addfile(member, io.BytesIO(content))
            yield file.getvalue()[: 1024 * (5 + 2 * number)] + bytes(1024)

    def feed(self, data):
        from plsc.data.tar_shards import TarShards

        path = WORK / "x.tar"
        blocks = [bytearray(data[first : first + 512]) for first in range(0, len(data), 512)]
        for one in blocks:  # right checksums, so that more than the checksum is tried
            if one[257:262] == b"ustar" and len(one) == 512:
                one[148:156] = b"%06o\0 " % (sum(one) - sum(one[148:156]) + 256)
        path.write_bytes(b"".join(blocks))
        source = TarShards(str(path), 100)
        for i in range(min(source.num_images, 20)):
            assert source.name(i) and source.where(i)
            source.read(i)


class Tables(Case):
    """Parquet files of images."""

    def seeds(self):
        import pyarrow
        import pyarrow.parquet

        from plsc.data.parquet_files import ParquetWriter
        from plsc.data.records import Record

        writer = ParquetWriter(WORK / "seed.parquet", ["a", "b"])
        for i in range(3):
            writer.add(Record(f"{i}.jpg", b"image", i % 2))
        writer.close()
        yield (WORK / "seed.parquet").read_bytes()
        columns = {"img": pyarrow.array([b"1", None, b"3"]), "label": pyarrow.array(["x", "y", "x"])}
        for codec in ("none", "snappy"):
            pyarrow.parquet.write_table(
                pyarrow.table(columns), WORK / "seed.parquet", compression=codec, row_group_size=2, store_schema=False
            )
            yield (WORK / "seed.parquet").read_bytes()

    def feed(self, data):
        from plsc.data.parquet_files import ParquetFiles

        path = WORK / "x.parquet"
        path.write_bytes(data)
        source = ParquetFiles(str(path), 100)
        for i in range(min(source.num_images, 20)):
            assert source.name(i) and source.where(i)
            source.read(i)


class Journal(Case):
    """The journal of the base64 tool."""

    def seeds(self):
        yield b'["base64_rank_0", "base64_index_0.npy", "base64_file_list.txt", "base64_manifest.json"]'

    def feed(self, data):
        from plsc.shuffle.workspace import _published
        from plsc.storage.local import LOCAL

        (WORK / "publishing.json").write_bytes(data)
        assert all(os.path.basename(name) == name for name in _published(LOCAL, str(WORK)))


class Run(Case):
    """What a report reads: metrics.jsonl, run.json and the pairs, chosen by the first byte."""

    names = ("metrics.jsonl", "run.json", "lfw_pairs.npz")

    def seeds(self):
        from run_folders import make_run

        folder = make_run(WORK / "made", steps=6, tests=1)
        for number, name in enumerate(self.names):
            yield bytes([number]) + (folder / name).read_bytes()

    def feed(self, data):
        from plsc.engine.run_record import _earlier
        from plsc.report.headline import headline
        from plsc.report.page import Page
        from plsc.report.run_folder import read_runs

        folder = WORK / "run"
        folder.mkdir(exist_ok=True)
        for name in self.names:
            (folder / name).unlink(missing_ok=True)
        (folder / "metrics.jsonl").write_text('{"event": "train", "step": 1, "loss": 2.0}\n')
        (folder / self.names[data[0] % 3 if data else 0]).write_bytes(data[1:])
        _earlier(folder / "run.json", "abc")
        runs = read_runs([folder])
        page = Page(runs, [headline(run) for run in runs])
        for part in (
            page.summary,
            page.notes,
            page.settings,
            page.machines,
            lambda: page.tests("lfw"),
        ):
            part()


class Embeddings(Case):
    """The folder of `plsc predict`: its manifest, array and table, chosen by the first byte; and that of an index."""

    names = ("manifest.json", "embeddings.npy", "images.tsv")

    def seeds(self):
        import io

        import numpy as np

        file = io.BytesIO()
        np.save(file, np.ones([2, 3], "float32"))
        meta = {"count": 2, "emb_dim": 3, "model": "a", "source": "b", "images": "c", "image_shape": [3, 16, 16]}
        self.valid = [json.dumps(meta).encode(), file.getvalue(), b"a\tx\nb\ty\n"]
        for number, content in enumerate(self.valid):
            yield bytes([number]) + content
        yield b"\0" + json.dumps({**meta, "format": 1, "kind": "ivf", "probes": 1}).encode()

    def feed(self, data):
        from plsc.search.embeddings import _read_progress, open_embeddings
        from plsc.search.index import _read_meta

        number = data[0] % 3 if data else 0
        for one, (name, content) in enumerate(zip(self.names, self.valid)):
            (WORK / name).write_bytes(data[1:] if one == number else content)
        if number == 0:
            (WORK / "x.json").write_bytes(data[1:])
            for read in (lambda: _read_meta(WORK / "x"), lambda: _read_progress(WORK / "x.json")):
                with tolerant(self.allowed):
                    read()
        found = open_embeddings(WORK)
        assert found.vectors.sum() is not None


class Export(Case):
    """The manifest of an export."""

    def seeds(self):
        (WORK / "inference.onnx").write_bytes(b"")
        meta = {"image_shape": [3, 16, 16], "emb_dim": 8, "format": "onnx", "precision": "float32"}
        yield json.dumps({**meta, "files": {"inference.onnx": "0" * 64}}).encode()

    def feed(self, data):
        from plsc.inference.export_folder import open_export

        (WORK / "inference_meta.json").write_bytes(data)
        open_export(WORK)


class Launchers(Case):
    """Messages between launchers, fed to a hub that has one member."""

    def seeds(self):
        hello = {"kind": "hello", "name": "a", "proof": "", "asked_rank": None, "former_rank": None, "agreed": {"x": 1}}
        for message in (
            hello,
            {"kind": "ready", "attempt": 0, "address": "127.0.0.1", "ports": [1, 2]},
            {"kind": "failed", "cause": "a", "tail": ["b"], "tail_is_reason": True, "ago": 0.5, "is_mistake": False},
            {"kind": "stopped", "rank": 0, "number": 15},
        ):
            yield json.dumps(message).encode() + b"\n"

    def feed(self, data):
        import socket

        from plsc.machine.launch.hub import Hub, _Member
        from plsc.machine.launch.messages import GarbageError
        from plsc.machine.launch.messages import Lines as Buffer

        with contextlib.suppress(GarbageError):
            Buffer(1 << 12).feed(data)
        listener = socket.create_server(("127.0.0.1", 0))
        theirs = socket.create_connection(listener.getsockname())
        ours = listener.accept()[0]
        hub = Hub(listener, {"x": 1}, 1, restarts=0, patience=60)
        try:
            theirs.sendall(data[:60000])
            theirs.shutdown(socket.SHUT_WR)
            ours.setblocking(False)
            member = _Member(ours, time.monotonic())
            member.name = "" if data.startswith(b'{"kind": "h') else "a"
            hub._members.append(member)
            hub._phase = "gathering" if b"ready" in data else "running"
            hub._selector.register(ours, 1, member)
            hub._serve(member, 1)
            hub._watch(time.monotonic() + 1)
        finally:
            for one in (listener, ours, theirs):
                one.close()


class Ranks(Case):
    """Messages between ranks, fed to the meeting place and to a rank."""

    def seeds(self):
        for message in ({"at": [1, 2], "what": "a"}, {"leaves": True}, {"open": [1, 2]}, {"left": 1}, {"late": "x"}):
            yield json.dumps(message).encode() + b"\n"
        yield json.dumps({"failure": {"rank": 1, "text": "a", "action": 2}}).encode() + b"\n"

    def feed(self, data):
        import socket

        from plsc.parallel import meeting_place

        place = meeting_place.MeetingPlace("127.0.0.1", 2)
        try:
            with socket.create_connection(("127.0.0.1", place.port)) as connection:
                hello = json.dumps({"token": place.token, "rank": 1}).encode() + b"\n"
                connection.sendall((b"" if data[:1] == b"\0" else hello) + data)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(5)
                while connection.recv(1 << 16):
                    pass
        except ConnectionError:
            pass
        finally:
            place.close()


class Clusters(Case):
    """The environment variables of clusters and launchers, one `NAME=value` a line."""

    def seeds(self):
        yield b"SLURM_NODEID=0\nSLURM_NNODES=2\nSLURM_STEP_TASKS_PER_NODE=1(x2)\nSLURM_JOB_NODELIST=g[03-07,12]-ib,x"
        yield b"OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=2\nOMPI_COMM_WORLD_LOCAL_SIZE=1"
        yield b"PMI_RANK=0\nPMI_SIZE=2\nMPI_LOCALNRANKS=1\nJOB_COMPLETION_INDEX=3"
        yield b"PADDLE_TRAINER_ID=1\nPADDLE_TRAINERS_NUM=2\nPADDLE_LOCAL_SIZE=2\nOMP_NUM_THREADS=2,1"
        yield b'PLSC_SETTINGS={"lr": 0.1}\nPLSC_CONFIG={"scalars": ["tensorboard", "a"]}'

    def feed(self, data):
        from plsc.machine import threads
        from plsc.machine.launch import read_cluster
        from plsc.parallel import ranks
        from plsc.settings import from_environment, make_config
        from plsc.storage.address import web_addresses
        from plsc.utils.sample_reader import rank_and_world_size

        text = data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
        pairs = [line.partition("=") for line in text.split("\n")]
        given = {name: value for name, _, value in pairs if name in KNOWN_VARIABLES}
        earlier = dict(os.environ)
        os.environ.update(given)
        try:
            for read in (
                lambda: read_cluster(os.environ),
                ranks.rank,
                rank_and_world_size,
                threads.set_threads_per_rank,
                lambda: [make_config(one) for one in from_environment().values()],
                lambda: web_addresses(text),
            ):
                with tolerant(self.allowed):
                    read()
        finally:
            os.environ.clear()
            os.environ.update(earlier)


KNOWN_VARIABLES = {
    *("SLURM_NODEID", "SLURM_NNODES", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"),
    *("SLURM_JOB_ID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK"),
    *("PMI_SIZE", "MPI_LOCALNRANKS", "JOB_COMPLETION_INDEX", "PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM"),
    *("PADDLE_LOCAL_SIZE", "OMP_NUM_THREADS", "PLSC_SETTINGS", "PLSC_CONFIG"),
}


class Settings(Case):
    """`--set NAME=VALUE`, and files of settings."""

    def seeds(self):
        yield b"lr=1e-3"
        yield b"model_save_dir=run #2"
        yield b"hdfs_upload=[step, 5]"
        yield b"mixed_precision={use_fp16: true, dtype: bfloat16}"
        yield b"lr: &a 0.1\nlr_steps: [010, 1e3]\nmodel_save_dir: 2026-11-25 # x\naugmentation: {rotate: *a}\n"

    def feed(self, data):
        from plsc import settings

        parser = argparse.ArgumentParser()
        settings.add_options(parser)
        (WORK / "config.yaml").write_bytes(data)
        text = os.fsdecode(data)
        for words in (["--set", text], ["--config", str(WORK / "config.yaml")]):
            if text.startswith("-") and words[0] == "--set":
                continue
            with tolerant(self.allowed):
                options = parser.parse_args(words)
                settings.make_config(settings.read_options(options))
                settings.to_environment(options)


class Hdfs(Case):
    """Answers of a WebHDFS server to a download."""

    def seeds(self):
        status = {"length": 3, "type": "FILE", "modificationTime": 5, "fileId": 7, "pathSuffix": "a"}
        yield json.dumps({"FileStatuses": {"FileStatus": [status, {**status, "pathSuffix": "b"}]}}).encode()
        yield json.dumps({"FileStatuses": {"FileStatus": [{**status, "pathSuffix": "../b", "length": 0}]}}).encode()

    def feed(self, data):
        import shutil

        import requests
        from hdfs import InsecureClient

        from plsc.storage import Retrying
        from plsc.storage.hdfs import HdfsStorage
        from plsc.storage.transfer import get

        answers = iter([b'{"FileStatus": {"length": 0, "type": "DIRECTORY", "modificationTime": 0}}'])
        client = InsecureClient("http://127.0.0.1:1")

        def answer(method, url, **options):
            made = requests.Response()
            made.status_code, made.url = 200, url
            is_open = "op=OPEN" in url or options.get("params", {}).get("op") == "OPEN"
            made._content = b"abc" if is_open else next(answers, data)
            import io

            made.raw = io.BytesIO(made._content)
            return made

        client._session.request = answer
        inside, outside = WORK / "get" / "inside", WORK / "get"
        shutil.rmtree(outside, ignore_errors=True)
        inside.mkdir(parents=True)
        try:
            get(Retrying(HdfsStorage(client, "hdfs://test"), 0.0), "/x", inside)
        finally:
            assert os.listdir(outside) == ["inside"], "a file was written outside the target"
            assert set(os.listdir(inside)) <= {"x"}, "files were left in the target"


TARGETS = {
    "verification": Verification, "tensor_file": Tensors, "meta": Meta, "manifest": Manifest, "index": Index,
    "recordio": RecordIO, "lines": Lines, "lists": Lists, "tars": Tars, "tables": Tables, "journal": Journal,
    "run": Run, "embeddings": Embeddings, "export": Export, "launchers": Launchers, "ranks": Ranks,
    "clusters": Clusters, "settings": Settings, "hdfs": Hdfs,
}  # fmt: skip
STRUCTURE = [
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"null",
        b"NaN",
        b"Infinity",
        b"-1",
        b"1e400",
        b"1" * 5000,
        b"[" * 3000,
        b"..",
        b"/",
    ),
    *(struct.pack("<Q", 1 << 60), struct.pack("<I", 1 << 31), b"\xff" * 8, b"9007199254740993", b'{"":' * 2000),
]


@contextlib.contextmanager
def tolerant(allowed):
    """Lets pass what a parser may raise."""
    from plsc.errors import PlscError

    try:
        yield
    except (PlscError, *allowed) as problem:
        text = str(problem)
        assert "\n" not in text and len(text) < 2000 and "\0" not in text, f"not one line: {text[:300]!r}"


class Watch:
    """Runs inputs, and keeps those that break a rule, once for each place."""

    def __init__(self, target, output):
        self.target, self.output, self.seen, self.inputs = target, output, {}, 0

    def run(self, data):
        self.inputs += 1
        Path("/proc/self/clear_refs").write_text("5")  # The peak of the memory begins again.
        before, began = memory("VmHWM"), time.process_time()
        try:
            with tolerant(self.target.allowed):
                self.target.feed(data)
        except Exception as problem:  # noqa: BLE001 - this is what it looks for
            frames = [one for one in traceback.extract_tb(problem.__traceback__) if "/plsc/" in one.filename]
            last = frames[-1] if frames else traceback.extract_tb(problem.__traceback__)[-1]
            self.keep(f"{type(problem).__name__} at {Path(last.filename).name}:{last.lineno}", data, str(problem))
        if (seconds := time.process_time() - began) > MOST_SECONDS:
            self.keep("slow", data, f"{seconds:.1f} s")
        if (taken := memory("VmHWM") - before) > MOST_MEMORY:
            self.keep("memory", data, f"{taken / 1e6:.0f} MB")

    def keep(self, what, data, words):
        if what not in self.seen:
            place = self.output / f"{type(self.target).__name__}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
            place.write_bytes(data)
            self.seen[what] = {"what": what, "words": words[:200], "file": str(place), "bytes": len(data)}


def memory(name):
    """Returns a figure of /proc/self/status in bytes."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith(name))


def fuzz_one(name, seconds, output):
    """Fuzzes one parser in this process, which ends with the fuzzer."""
    import atheris

    with atheris.instrument_imports(include=["plsc", "json", "pickle", "yaml", "csv"]):
        import plsc.checkpoint.folder
        import plsc.engine.run_record
        import plsc.report.headline
        import plsc.report.page
        import plsc.settings
        import plsc.shuffle.workspace
        import plsc.storage.transfer
        import plsc.utils.sample_reader  # noqa: F401

    WORK.mkdir()
    corpus = WORK / "corpus"
    corpus.mkdir()
    watch = Watch(TARGETS[name](), output)
    for number, seed in enumerate(watch.target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    with open(WORK / "words", "w") as words:
        for one in STRUCTURE:
            words.write('"' + "".join(f"\\x{byte:02x}" for byte in one[:60]) + '"\n')
    limit = memory("VmSize") + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    began = time.monotonic()

    def one(data):
        watch.run(data)
        if time.monotonic() - began > seconds:
            result = {"target": name, "seconds": round(time.monotonic() - began), "inputs": watch.inputs}
            print(json.dumps({**result, "faults": list(watch.seen.values())}), flush=True)
            os._exit(0)

    for data in STRUCTURE:
        watch.run(data)
    options = [f"-dict={WORK / 'words'}", "-timeout=60", "-rss_limit_mb=0", "-malloc_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, "-max_len=8192", str(corpus)], one)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60, help="for each parser")
    parser.add_argument(
        "--output", type=Path, default=Path(tempfile.gettempdir()) / "plsc-fuzz", help="for what it finds"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.here:
        fuzz_one(options.targets[0], options.seconds, options.output)
    for name in options.targets or TARGETS:
        words = [sys.executable, __file__, name, "--here", "--seconds", str(options.seconds)]
        process = subprocess.run([*words, "--output", str(options.output)], capture_output=True, text=True)
        if process.returncode or not process.stdout:
            print(json.dumps({"target": name, "status": process.returncode, "end": process.stderr[-2000:]}), flush=True)
        else:
            print(process.stdout, end="", flush=True)


if __name__ == "__main__":
    main()
