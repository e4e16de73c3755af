import base64
import fcntl
import json
import os
import platform
import pty
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from ranks import TIMEOUT, wait_until

from plsc.shuffle import command as base64_command

TOOL = Path(__file__).parent.parent.parent / "tools" / "process_base64_files.py"
KILLS = int(os.environ.get("PLSC_KILLS", 6))


def make(folder, megabytes, parts=3):
    """Makes parts of random images of 6 to 18 kB, all cut from the same random bytes."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for number in range(parts):
        left, pool = int(megabytes * 1e6 / parts), base64.b64encode(rng.randbytes(300_000))
        with open(folder / f"dataset.part{number}", "wb") as file:
            while left > 0:
                start, length = 4 * rng.randrange(90_000), 4 * rng.randrange(2000, 6000)
                left -= file.write(b"%b\t%d\n" % (pool[start : start + length], rng.randrange(1000)))
    (folder / "file_list.txt").write_text("".join(f"dataset.part{number}\n" for number in range(parts)))
    return folder


def command(data, *arguments):
    return [sys.executable, str(TOOL), f"--data_dir={data}", "--file_list=file_list.txt", "--nranks=8", *arguments]


def run(data, *arguments, **options):
    return subprocess.run(command(data, *arguments), capture_output=True, text=True, timeout=TIMEOUT, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tool") / "data set 数据", 40)


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """The outputs of an undisturbed run."""
    output = tmp_path_factory.mktemp("expected")
    assert run(data, "--output_dir", str(output)).returncode == 0
    return contents(output)


def test_the_command_of_the_specification(tmp_path):
    data = make(tmp_path / "dataset", 1)
    before = contents(data)
    process = subprocess.run(
        [sys.executable, TOOL, "--data_dir=./dataset", "--file_list=file_list.txt", "--nranks=8"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert len({(data / f"base64_rank_{rank}").read_bytes().count(b"\n") for rank in range(8)}) == 1
    assert before.items() <= contents(data).items()
    manifest = json.loads((data / "base64_manifest.json").read_text())
    assert f"{manifest['samples']} samples from 3 parts" in process.stdout
    assert f"8 files of {manifest['samples_per_file']} lines" in process.stdout
    assert f"{manifest['padding']} of them padding" in process.stdout
    assert re.search(r"[\d.]+ s, \d+ MB/s with \d+ workers?, at most \d+ MB of memory", process.stdout)


def test_help_explains_every_option():
    process = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    options = "data_dir file_list nranks output_dir seed memory workers tmp_dir check on-error compress-tmp max_line"
    for option in options.split():
        assert f"--{option}" in process.stdout


def test_paddle_is_not_loaded():
    code = "import sys; from plsc.shuffle import command; sys.exit('paddle' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TOOL.parent.parent)}
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nranks=0",),
        ("--nranks=x",),
        ("--memory=lots",),
        ("--memory=-5MB",),
        ("--workers=0",),
        ("--on-error=ignore",),
        ("--unknown",),
        ("--seed=-1",),
    ],
)
def test_wrong_usage_ends_with_status_2(data, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        base64_command.main(command(data, *arguments)[2:])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--memory=10MB",), "at least"),
        (("--data_dir=/nowhere",), "/nowhere: no such folder"),
        (("--file_list=other.txt",), "other.txt: cannot read the list"),
        (("--tmp_dir=/nowhere",), "/nowhere: no such folder"),
        (("--output_dir=/dev/null",), "/dev/null: cannot write there"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(data, arguments, says, capsys):
    assert base64_command.main(command(data, *arguments)[2:]) == 1
    said = capsys.readouterr().err
    assert said.startswith("plsc: error: ") and says in said
    assert said.count("\n") == 1


def test_a_bad_line_is_one_line_and_status_1_or_skipped(tmp_path):
    data = make(tmp_path / "data", 1)
    with open(data / "dataset.part1", "ab") as file:
        file.write(b"A" * 50_000_000 + b"\t5\nQUJD\t5\n")
    lines = (data / "dataset.part1").read_bytes().count(b"\n")
    process = run(data)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == (
        f"plsc: error: {data}/dataset.part1:{lines - 1}: the line is longer than 8000000 bytes; "
        "raise --max_line or remove the line\n"
    )
    process = run(data, "--on-error", "skip")
    assert process.returncode == 0
    assert "1 bad line skipped (base64_skipped.txt)" in process.stdout
    assert (data / "base64_skipped.txt").read_text().startswith(f"dataset.part1:{lines - 1}: the line is longer")


@pytest.mark.parametrize(
    "arguments",
    [("--workers=1", "--memory=60MB", "--max-line=2MB"), ("--workers=3", "--memory=250MiB"), ("--compress-tmp",)],
)
def test_the_same_bytes_and_no_more_memory_than_allowed(data, expected, tmp_path, arguments):
    process = run(data, "--output_dir", str(tmp_path), *arguments)
    assert process.returncode == 0, process.stderr
    assert contents(tmp_path) == expected
    memory = re.search(r"--memory=(\d+)", " ".join(arguments))
    used = int(re.search(r"at most (\d+) MB", process.stdout)[1])
    assert used <= (int(memory[1]) if memory else 512)


def test_killed_at_random_moments_and_run_again_it_gives_the_same_bytes(data, expected, tmp_path):
    began = time.monotonic()
    assert run(data, "--output_dir", str(tmp_path / "timed")).returncode == 0
    took = time.monotonic() - began
    rng, inputs = random.Random(0), contents(data)
    for number in range(KILLS):
        output = tmp_path / str(number)
        process = subprocess.Popen(
            command(data, "--output_dir", str(output)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0, took))
        process.kill()
        process.wait()
        if (output / "base64_manifest.json").exists():
            assert contents_of_files(output) == expected
        assert run(data, "--output_dir", str(output)).returncode == 0
        assert contents(output) == expected
    assert contents(data) == inputs


def contents_of_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


# Each process waits when it has sorted its lines, until there is a file with the name of the first argument.
HELD = f"""
import os, sys, time
sys.path.insert(0, {str(TOOL.parents[1])!r})
from plsc.shuffle import command, local

go, scan_parts = sys.argv.pop(1), local.scan_parts

def held(plan, tasks):
    scan = scan_parts(plan, tasks)
    while not os.path.exists(go):
        tasks.report(0)
        time.sleep(0.01)
    return scan

local.scan_parts = held
sys.exit(command.main())
"""


def running(data, output, *arguments, ignored=()):
    """Starts a run that ignores some signals, and returns once it has begun to write. `release` lets it end."""

    def inherit():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", HELD, go_of(output), *command(data, "--output_dir", str(output), *arguments)[2:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=inherit,
    )
    while not list(output.glob(".base64_shuffle-*/runs-*")):
        assert process.poll() is None
        time.sleep(0.001)
    return process


def go_of(output):
    return f"{output}.go"


def release(output):
    Path(go_of(output)).touch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_cleans_up(data, tmp_path, number, workers):
    process = running(data, tmp_path, "--workers", workers, "--memory=180MB")
    process.send_signal(number)
    process.send_signal(number)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert errors == f"plsc: error: stopped by {number.name} before it was done; run it again to start over\n"
    assert not list(tmp_path.iterdir())


def test_signals_that_nohup_or_a_shell_made_the_tool_ignore_end_neither_it_nor_its_workers(data, expected, tmp_path):
    process = running(data, tmp_path, "--workers=2", ignored=(signal.SIGHUP, signal.SIGINT))
    for number in (signal.SIGHUP, signal.SIGINT):
        os.killpg(process.pid, number)
    release(tmp_path)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    assert contents(tmp_path) == expected


def test_two_runs_at_once(data, expected, tmp_path):
    first = running(data, tmp_path)
    second = run(data, "--output_dir", str(tmp_path))
    release(tmp_path)
    assert second.returncode == 1
    assert second.stderr == (
        f"plsc: error: {tmp_path}: process {first.pid} on {platform.node()} is writing there; wait for it to end, "
        "or give another folder with --output_dir\n"
    )
    assert first.wait() == 0
    assert contents(tmp_path) == expected


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """A folder of locales that do not use UTF-8."""
    folder = tmp_path_factory.mktemp("locales")
    for language, encoding in (("en_US", "ISO-8859-1"), ("zh_CN", "GBK")):
        try:
            subprocess.run(
                ["localedef", "-i", language, "-f", encoding, str(folder / f"{language}.{encoding}")],
                capture_output=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            pytest.skip(f"the locale {language}.{encoding} cannot be made here")
    return folder


def test_names_are_bytes_whatever_the_locale(locales, tmp_path):
    names = ["part 数据 é".encode(), "部分".encode("gbk"), b"\xff\x80"]
    found = []
    for locale in ("C.UTF-8", "en_US.ISO-8859-1", "zh_CN.GBK"):
        data = os.path.join(os.fsencode(tmp_path), locale.encode(), "文件夹".encode("gbk"))
        os.makedirs(data)
        for number, name in enumerate(names):
            with open(os.path.join(data, name), "wb") as file:
                file.write(b"QUJD\t%d\nbad line\n" % number)
        with open(os.path.join(data, "列表".encode("gbk")), "wb") as file:
            file.write(b"\n".join(names))
        process = subprocess.run(
            [sys.executable, TOOL, b"--data_dir=" + data, b"--file_list=" + "列表".encode("gbk"), b"--nranks=2"]
            + [b"--on-error=skip", b"--tmp_dir=" + os.path.dirname(data)],
            env={**os.environ, "LOCPATH": str(locales), "LC_ALL": locale},
            capture_output=True,
        )
        assert (process.returncode, process.stderr) == (0, b"")
        found.append({name: open(os.path.join(data, name), "rb").read() for name in os.listdir(data)})  # noqa: SIM115
    assert found[0] == found[1] == found[2]
    manifest = json.loads(found[0][b"base64_manifest.json"])
    assert [source["name"].encode("utf-8", "surrogateescape") for source in manifest["sources"]] == names
    assert found[0][b"base64_skipped.txt"].split(b"\n")[1].startswith(names[1] + b":2: no tab")


def test_a_file_that_cannot_grow_is_one_line(data, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    process = run(data, "--output_dir", str(tmp_path), preexec_fn=limit)
    assert process.returncode == 1
    assert "cannot write (File too large); free some space" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_killed_is_one_line(data, tmp_path):
    process = running(data, tmp_path, "--workers", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert errors.startswith("plsc: error: a worker process ended early (exit code -9)")
    assert not list(tmp_path.iterdir())


def test_workers_end_after_their_parent_is_killed(data, tmp_path):
    process = running(data, tmp_path, "--workers", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    wait_until(lambda: all(state_of(child) in (None, "Z") for child in children))


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


def test_a_bar_with_bytes_rate_and_time_left_on_a_terminal(data, tmp_path):
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        command(data, "--output_dir", str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=side,
    )
    os.close(side)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
    os.close(terminal)
    assert process.wait() == 0
    assert b"reading:" in shown
    assert b"writing:" in shown
    assert re.search(rb"/40\.\dM \[\d\d:\d\d<.*B/s\]", shown)  # bytes, time left, rate


def test_plain_lines_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(base64_command, "_PERIOD", 0)
    progress = base64_command._Progress()
    progress.show("reading", 0, 4 * 10**9)
    time.sleep(0.01)
    progress.show("reading", 10**9, 4 * 10**9)
    assert re.search(r"^reading: 25% of 4\.00 GB, \d+ MB/s, \d+ s left$", capsys.readouterr().err, re.MULTILINE)
