"""`plsc fs`, as a user runs it."""

import ast
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from checkpoint_folders import make_checkpoint, same_files
from ranks import TIMEOUT, environment, run_python

from plsc import cli
from plsc.commands import fs, store_words
from plsc.storage import LocalStorage, Retrying, credentials, open_hdfs
from plsc.storage.address import Address
from plsc.storage.transfer import tree


def fs_command(*arguments, **options):
    return command("fs", *arguments, **options)


def command(*arguments, status=0, env_of=()):
    variables = {**environment(), "HADOOP_USER_NAME": "eve", **dict(env_of)}
    process = run_python("-m", "plsc", *arguments, variables=variables)
    assert process.returncode == status, process.stderr
    return process


def test_put_list_and_get(hdfs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "disabled", True)  # the tests have imported what shows its lines
    place = f"/{tmp_path.name}"
    (tmp_path / "源").mkdir()
    (tmp_path / "源" / "a b").write_bytes(os.urandom(100_000))
    fs = ("--fs", hdfs.web)
    # Its old name is kept.
    assert command("hdfs", "put", *fs, tmp_path / "源", place).stdout == f"{hdfs.web}{place}: 100,000 bytes\n"
    assert hdfs.client().status(place)["owner"] == "eve"
    assert "100,000" in fs_command("ls", *fs, place).stdout
    (record,) = json.loads(fs_command("ls", *fs, place, "--json").stdout)
    assert record["name"] == "a b" and record["size"] == 100_000 and record["folder"] is False
    target = tmp_path / "back"
    # A new process has not imported what shows them, and has nothing on stderr.
    words = ["fs", "get", *fs, "--user", "someone", f"{place}/a b", str(target), "--json"]
    process = subprocess.run(
        [sys.executable, "-m", "plsc", *words], env=environment(), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {"path": str(target), "bytes": 100_000} and process.stderr == ""
    assert target.read_bytes() == (tmp_path / "源" / "a b").read_bytes()
    for arguments, words in (
        (("get", *fs, f"{place}/a b", target), "name another place"),
        (("ls", *fs, f"{place}/absent"), "no such file or folder"),
        (("ls", "--fs", "nosuch://bucket", "x"), "does not know nosuch://"),
        (("put", *fs, tmp_path / "absent", place), "no such file or folder"),
    ):
        assert cli.main(["fs", *map(str, arguments)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("plsc: error: ") and words in said and said.count("\n") == 1


def test_a_checkpoint_is_checked_and_goes_on_where_it_was(hdfs, tmp_path):
    path = f"/{tmp_path.name}"
    text = make_checkpoint(tmp_path / "made")
    fs_command("put", "--fs", hdfs.web, tmp_path / "made", path)
    digest = hashlib.sha256(text).hexdigest()[:12]
    part = tmp_path / f".{tmp_path.name}.fetching.{digest}" / f".optimizer.safetensors.{digest}.part"
    part.parent.mkdir()
    part.write_bytes(b"not what was there")
    assert fs_command("get", "--fs", hdfs.web, path, tmp_path).stdout.startswith(f"{tmp_path}{path}: ")
    assert same_files(tmp_path / tmp_path.name, tmp_path / "made") and not part.parent.exists()
    hdfs.client().write(
        f"{path}/optimizer.safetensors", (tmp_path / "made/optimizer.safetensors").read_bytes()[::-1], overwrite=True
    )
    assert "its sha256 differs" in fs_command("get", "--fs", hdfs.web, path, tmp_path / "other", status=1).stderr
    assert not (tmp_path / "other").exists()


def test_a_bar_shows_bytes_and_rate_and_a_password_is_asked_for(hdfs, tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # without a width there is no bar
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", "fs", "put", "--fs", hdfs.web, "--user", "eve", "--ask-password",
         str(tmp_path / "file"), f"/{tmp_path.name}"],
        env=environment(), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if b"Password of eve" not in shown and b"Password of eve" in shown + part:
            os.write(master, b"pa55-w0rd\n")
        shown += part
        if not part:
            break
    os.close(master)
    assert process.wait(timeout=TIMEOUT) == 0, shown
    text = shown.decode()
    assert "3.00M" in text and "B/s" in text and "100%" in text and "pa55-w0rd" not in text


@pytest.fixture
def memory(tmp_path):
    """A store of this process with files in it, and its address."""
    pytest.importorskip("fsspec")
    address = f"memory://{tmp_path.name}"
    store = open_hdfs(address, None)
    for name, size in {"run/19/a": 1_500_000, "run/19/b/c": 500, "run/20/a": 20, "run/x": 3, "other": 1}.items():
        store.write(name, lambda size=size: [bytes(size)], size)
    return store, address


def test_what_folders_hold_is_shown_for_humans_and_programs(memory, capsys):
    store, address = memory
    assert cli.main(["fs", "du", f"{address}/run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["1.5", "MB", "2", f"{address}/run/19/"], ["20", "B", "1", f"{address}/run/20/"],
        ["3", "B", "1", f"{address}/run/x"], ["1.5", "MB", "4", f"{address}/run"],
    ]  # fmt: skip
    assert cli.main(["fs", "du", "--json", "--fs", address, "run/19"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": "run/19", "address": f"{address}/run/19", "bytes": 1_500_500, "files": 2,
        "parts": [{"name": "a", "bytes": 1_500_000, "files": 1}, {"name": "b/", "bytes": 500, "files": 1}],
    }  # fmt: skip
    assert cli.main(["fs", "du", f"{address}/other"]) == 0 and "other" in capsys.readouterr().out
    assert cli.main(["fs", "ls", f"{address}/run"]) == 0  # folders have no time there
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()][:2] == [["-", "-"], ["-", "-"]]


def test_rm_removes_what_is_named_and_nothing_without_a_yes(memory, capsys, monkeypatch):
    store, address = memory
    before = tree(store, "")
    for arguments, words in (
        ([f"{address}/run"], "holds 4 files with 1.5 MB; give --yes"),
        (["--json", f"{address}/run"], "give --yes"),
        (["--yes", address], "names the whole store"),
        (["--yes", "--fs", address, "."], "names the whole store"),
        (["--yes", "--fs", address, "run/../.."], "contains '..'"),
        (["--yes", "--fs", address, "../other"], "contains '..'"),
        (["--yes", f"{address}/run/../run"], "contains '..'"),
        (["--yes", f"{address}/absent"], "no such file or folder"),
        (["--yes", "run"], "no store is named"),
        (["--yes", "--fs", address, f"{address}/run"], "both name a store"),
    ):
        assert cli.main(["fs", "rm", *arguments]) == 1
        shown = capsys.readouterr().err
        assert words in shown and shown.count("\n") == 1, shown
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    for answer in ("", "n", "nonsense"):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: prompt and answer)
        assert cli.main(["fs", "rm", f"{address}/run"]) == 0 and "nothing was removed" in capsys.readouterr().out
    assert cli.main(["fs", "rm", "--dry-run", f"{address}/run/19"]) == 0
    shown = capsys.readouterr().out
    assert "1,500,000  a" in shown and "2 files with 1.5 MB would be removed from" in shown
    assert tree(store, "") == before
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    assert cli.main(["fs", "rm", f"{address}/run/19"]) == 0
    assert list(tree(store, "")) == ["other", "run/20/a", "run/x"]
    assert cli.main(["fs", "rm", "--yes", "--json", f"{address}/run"]) == 0
    assert '"files": 2' in capsys.readouterr().out and list(tree(store, "")) == ["other"]


def test_kerberos_is_for_hdfs_and_needs_no_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(credentials, "password", lambda: "that of a gateway")
    for arguments, words in (
        (
            ["--kerberos", f"file://{tmp_path}"],
            "--kerberos and --keytab are for HDFS, and 'file://' is none; leave them",
        ),
        (["--keytab", "/k", "--user", "me", "hdfs://localhost:9/x"], "leave out --user and --ask-password"),
        (["--keytab", f"{tmp_path}/absent", "hdfs://localhost:9/x"], "absent' cannot be read"),
    ):
        assert cli.main(["fs", "ls", *arguments]) == 1
        shown = capsys.readouterr().err
        assert words in shown and shown.count("\n") == 1, shown


def test_a_dry_run_shows_what_would_be_copied_and_copies_nothing(memory, capsys, tmp_path):
    store, address = memory
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(bytes(2000))
    before = tree(store, "")
    for arguments, words in (
        (["put", tmp_path / "source", f"file://{tmp_path}/new"], "2,000  file"),
        (["put", tmp_path / "source/file", f"file://{tmp_path}/new"], "would be uploaded to"),
        (["get", f"{address}/run", tmp_path], f"4 files with 1.5 MB would be downloaded to {tmp_path}/run"),
        (["get", "--json", f"{address}/run", tmp_path], '"dry_run": true'),
    ):
        assert cli.main(["fs", arguments[0], "--dry-run", *map(str, arguments[1:])]) == 0
        assert words in capsys.readouterr().out
    assert cli.main(["fs", "put", "--dry-run", str(tmp_path / "absent"), f"file://{tmp_path}/new"]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    for arguments, words in (
        (["get", f"{address}/run", "memory://other/run"], "give a local target"),
        (["put", "memory://other/run", f"{address}/new"], "give a local source"),
    ):
        assert cli.main(["fs", *arguments]) == 1
        assert words in capsys.readouterr().err
    assert tree(store, "") == before and [path.name for path in tmp_path.iterdir()] == ["source"]
    new = f"file://{tmp_path}/new"
    assert cli.main(["fs", "put", str(tmp_path / "source"), new]) == 0
    assert cli.main(["fs", "get", new, str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "file").read_bytes() == bytes(2000)


def test_a_checkpoint_is_copied_to_s3_and_verified_on_its_way_back(s3, tmp_path):
    make_checkpoint(tmp_path / "made")
    address = "s3://bucket/command"
    fs_command("put", tmp_path / "made", f"{address}/19", env_of=s3.environment)
    fs_command("get", f"{address}/19", tmp_path / "back", env_of=s3.environment)
    assert same_files(tmp_path / "back", tmp_path / "made")
    fs_command("rm", "--yes", f"{address}/19", env_of=s3.environment)
    assert open_hdfs("s3://bucket", None).status("command") is None


API_NAMES = re.compile("fs_ugi|fs_name|fs_dir|fs_checkpoint|set_hdfs|auth=|keytab=|plsc fs")


def messages_of(name):
    """Returns the texts in a module of stores that call something by the name of an argument of `Entry`."""
    from plsc import storage

    tree = ast.parse((pathlib.Path(storage.__file__).parent / f"{name}.py").read_text())
    documentation = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts = (part.value if isinstance(part, ast.Constant) else "s3" for part in node.values)
            yield "".join(map(str, texts))
            documentation |= set(node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield node.value


def test_messages_of_stores_name_the_options_of_the_command_or_the_environment():
    """They are written for scripts; none of them reaches a user of the command with the name of an argument."""
    found = []
    for name in ("address", "opening", "login", "hdfs", "rpc", "objects", "object_refusals", "refusals", "kerberos"):
        for text in messages_of(name):
            if API_NAMES.search(text) and len(text) > 30:
                found.append(text)
                assert not API_NAMES.search(store_words.in_options(text)), text
                assert not API_NAMES.search(store_words.in_environment(text)), text
    assert len(found) > 15


@pytest.mark.parametrize(
    "arguments, host, expected",
    [
        (["swebhdfs://gate:1/x"], "gate", "me,secret"),
        (["--fs", "https://gate:1/gateway/default", "x"], "gate", "me,secret"),
        (["swebhdfs://gate:1/x"], "", None),
        (["--user", "you", "swebhdfs://gate:1/x"], "gate", "you,secret"),
        (["--user", "you", "swebhdfs://gate:1/x"], "", "you,"),
        (["--ask-password", "swebhdfs://gate:1/x"], "", "me,typed"),
        (["--fs", "gate", "x"], "gate", None),  # an alias of HdfsCLI
        (["s3://bucket/x"], "", None),
        (["--user", "key", "s3://bucket/x"], "", "key,secret"),
        (["file:///x"], "gate", None),
    ],
)
def test_a_password_of_the_environment_needs_no_name_and_is_for_stores_that_take_one(
    arguments, host, expected, tmp_path, monkeypatch
):
    (tmp_path / "hdfscli.cfg").write_text("[gate.alias]\nurl = http://gate:1\n")
    for name, value in (("PLSC_HDFS_HOST", host), ("HADOOP_USER_NAME", "me"), ("HDFSCLI_CONFIG", "hdfscli.cfg")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(credentials, "password", lambda: "secret")
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed")
    asked = []

    def open_store(name, ugi, **options):
        asked.append(ugi)
        return Retrying(LocalStorage(tmp_path), 0)

    monkeypatch.setattr(fs, "open_hdfs", open_store)
    cli.main(["fs", "ls", *arguments])
    assert asked == [expected]


def test_who_types_nothing_gets_a_line_or_keeps_the_files(tmp_path, monkeypatch, capsys):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr("getpass.getpass", end)
    monkeypatch.setattr("builtins.input", end)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    (tmp_path / "x").write_text("x")
    for words, says in (
        (["ls", "--ask-password", "--user", "me", "hdfs://localhost:9/x"], "no password was typed; set PLSC_HDFS_PASS"),
        (["ls", "--ask-password", "s3://bucket/x"], "give the key with --user"),
    ):
        assert cli.main(["fs", *words]) == 1
        shown = capsys.readouterr().err
        assert says in shown and shown.count("\n") == 1
    assert cli.main(["fs", "rm", f"file://{tmp_path}/x"]) == 0
    assert "nothing was removed" in capsys.readouterr().out and (tmp_path / "x").exists()


def test_a_folder_goes_to_the_same_place_in_every_store_and_a_dry_run_names_it(memory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Address, "is_fleeting", False)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    (tmp_path / "store" / "run").mkdir(parents=True)
    for there in (f"file://{tmp_path}/store/run", f"{memory[1]}/run"):
        assert cli.main(["fs", "put", "--dry-run", str(tmp_path / "source"), there]) == 0
        assert capsys.readouterr().out.endswith(f" would be uploaded to {there}/source\n")
        assert cli.main(["fs", "put", str(tmp_path / "source"), there]) == 0
        assert cli.main(["fs", "put", str(tmp_path / "source"), there]) == 1
        assert capsys.readouterr().err == f"plsc: error: {there}/source: already exists; name another place\n"


def test_addresses_that_are_shown_can_be_given_to_the_next_command(tmp_path, capsys):
    make_checkpoint(tmp_path / "19")
    store = f"file://{tmp_path}/store"
    assert cli.main(["fs", "put", str(tmp_path / "19"), f"{store}/runs/19"]) == 0
    put_line = capsys.readouterr().out
    assert put_line.startswith(f"{store}/runs/19: ")
    assert cli.main(["fs", "get", f"{store}/runs/19", str(tmp_path / "back")]) == 0
    assert capsys.readouterr().out.partition(": ")[2] == put_line.partition(": ")[2], "the bytes are counted alike"
    for action in ("ls", "du"):
        assert cli.main(["fs", action, f"{store}/runs"]) == 0
        shown = capsys.readouterr().out.split()
        address = next(word for word in shown if word.startswith(f"{store}/runs/19"))
        assert cli.main(["fs", action, address]) == 0 and f"{store}/runs/19/meta.json" in capsys.readouterr().out
    assert cli.main(["fs", "ls", f"{store}/runs/absent"]) == 1
    assert f"error: {store}/runs/absent: no such file or folder" in capsys.readouterr().err
    assert cli.main(["fs", "rm", "--yes", f"{store}/runs/19"]) == 0
    assert capsys.readouterr().out.startswith(f"{store}/runs/19: removed 5 files")


def test_addresses_of_a_command_that_lead_nowhere(tmp_path, capsys):
    for arguments, words in (
        (["put", str(tmp_path), "memory://x/y"], "memory://x/y: what is in memory:// ends with this command; name"),
        (["ls", "s3:/bucket/x"], "path: 's3:/bucket/x' is not an address; did you mean 's3://bucket/x'?"),
        (["get", "hdfs://nn:port/x", "y"], "source: 'hdfs://nn:port/x' is not an address: 'port' is no port"),
        (["ls", "--fs", "hdfs://nn:port", "x"], "error: 'hdfs://nn:port' is not an address: 'port' is no port"),
        (["ls", "--fs", "hdfs://me:pw@nn", "x"], "the address holds a user or a password; give the name with --user"),
        (["ls", "--fs", "hdfs://nn:9000/a", "x"], "ends in a folder; give the folder as the path"),
        (["ls", "hdfs://me:pw@nn/x"], "give the name with --user, and the password with --ask-password"),
        (["ls", "--user", "me", "file:///tmp"], "file:// takes no --user; leave it out"),
    ):
        assert cli.main(["fs", *arguments]) == 1
        shown = capsys.readouterr().err
        assert words in shown and shown.count("\n") == 1 and not API_NAMES.search(shown), shown


def test_a_command_without_options_for_a_store_names_the_environment(tmp_path, capsys):
    for words, says in (
        (["data", "info", "hdfs://me:pw@nn/x"], "set HADOOP_USER_NAME to the name, PLSC_HDFS_PASSWORD to the password"),
        (["export", "--checkpoint", "hdfs:///x", "--output", "y"], "names no server; write hdfs://host:port/path\n"),
        (["data", "info", "hdfs://nn:port/x"], "'port' is no port"),
    ):
        assert cli.main(words) == 1
        shown = capsys.readouterr().err
        assert says in shown and shown.count("\n") == 1 and not API_NAMES.search(shown), shown
