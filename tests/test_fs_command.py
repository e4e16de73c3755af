"""`plsc hdfs`, as a user runs it."""

import fcntl
import hashlib
import json
import os
import pty
import struct
import subprocess
import sys
import termios

from checkpoint_folders import make_checkpoint, same_files
from ranks import TIMEOUT, environment


def hdfs_command(*arguments, status=0, **options):
    process = subprocess.run(
        [sys.executable, "-m", "plsc", "hdfs", *map(str, arguments)],
        env={**environment(), "HADOOP_USER_NAME": "eve", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=TIMEOUT, **options,
    )  # fmt: skip
    assert process.returncode == status, process.stderr
    return process


def test_put_list_and_get(hdfs, tmp_path):
    place = f"/{tmp_path.name}"
    (tmp_path / "源").mkdir()
    (tmp_path / "源" / "a b").write_bytes(os.urandom(100_000))
    fs = ("--fs", hdfs.web)
    assert hdfs_command("put", *fs, tmp_path / "源", place).stdout == f"{place}: 100,000 bytes\n"
    assert hdfs.client().status(place)["owner"] == "eve"
    assert "100,000" in hdfs_command("ls", *fs, place).stdout
    (record,) = json.loads(hdfs_command("ls", *fs, place, "--json").stdout)
    assert record["name"] == "a b" and record["size"] == 100_000 and record["folder"] is False
    target = tmp_path / "back"
    process = hdfs_command("get", *fs, "--user", "someone", f"{place}/a b", target, "--json")
    assert json.loads(process.stdout) == {"path": str(target), "bytes": 100_000} and process.stderr == ""
    assert target.read_bytes() == (tmp_path / "源" / "a b").read_bytes()
    for arguments, words in (
        (("get", *fs, f"{place}/a b", target), "name another place"),
        (("ls", *fs, f"{place}/absent"), "nothing there"),
        (("ls", "--fs", "s3://bucket", "x"), "does not know s3://"),
        (("put", *fs, tmp_path / "absent", place), "no such file or folder"),
    ):
        said = hdfs_command(*arguments, status=1).stderr
        assert said.startswith("plsc: error: ") and words in said and said.count("\n") == 1


def test_a_checkpoint_is_checked_and_goes_on_where_it_was(hdfs, tmp_path):
    path = f"/{tmp_path.name}"
    text = make_checkpoint(tmp_path / "made")
    hdfs_command("put", "--fs", hdfs.web, tmp_path / "made", path)
    digest = hashlib.sha256(text).hexdigest()[:12]
    part = tmp_path / f".{tmp_path.name}.fetching.{digest}" / f".optimizer.safetensors.{digest}.part"
    part.parent.mkdir()
    part.write_bytes(b"not what was there")
    assert hdfs_command("get", "--fs", hdfs.web, path, tmp_path).stdout.startswith(f"{tmp_path}{path}: ")
    assert same_files(tmp_path / tmp_path.name, tmp_path / "made") and not part.parent.exists()
    hdfs.client().write(
        f"{path}/optimizer.safetensors", (tmp_path / "made/optimizer.safetensors").read_bytes()[::-1], overwrite=True
    )
    assert "its sha256 differs" in hdfs_command("get", "--fs", hdfs.web, path, tmp_path / "other", status=1).stderr
    assert not (tmp_path / "other").exists()


def test_a_bar_shows_bytes_and_rate_and_a_password_is_asked_for(hdfs, tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # without a width there is no bar
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", "hdfs", "put", "--fs", hdfs.web, "--user", "eve", "--ask-password",
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
    assert process.wait(timeout=60) == 0, shown
    text = shown.decode()
    assert "3.00M" in text and "B/s" in text and "100%" in text and "pa55-w0rd" not in text
