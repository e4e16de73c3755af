"""Programs run and end as usual whichever standard streams are closed."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from ranks import ROOT, TIMEOUT, environment

from plsc.arguments import exit_status
from plsc.machine import streams

# Commands with Paddle and without it, which treat the streams alike and take 2 s and 0.3 s.
PLAN = f"{sys.executable} -m plsc plan --model GlyphNet --classes 1000 --emb 64 --image-shape 3,32,32"
LIST = f"{sys.executable} -m plsc fs ls file://{ROOT}/tests"
# Opens a file after plsc has started: it must not get the number of a standard stream.
SCRIPT = "from plsc import Entry; Entry(); import os; file = os.open('/dev/null', os.O_RDONLY); assert file > 2, file"


def shell(line):
    return subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, text=True, timeout=TIMEOUT)


@pytest.mark.parametrize(
    "command, says, closed",
    [
        *((LIST, "conftest.py", closed) for closed in (">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-")),
        *((PLAN, "largest class count", closed) for closed in ("<&- 2>&-", "<&- >&- 2>&-")),
    ],
)
def test_a_command_ends_well_with_closed_streams(command, says, closed):
    process = shell(f"{command} {closed}")
    assert process.returncode == 0 and "Traceback" not in process.stderr
    assert ">&-" in closed.split() or says in process.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_files_of_a_script_do_not_take_the_place_of_closed_streams(closed):
    assert shell(f'{sys.executable} -c "{SCRIPT}" {closed}').returncode == 0


def test_a_full_disk_under_the_output_of_a_command_is_one_line():
    process = shell(f"{LIST} > /dev/full")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last == "plsc: error: cannot write to the standard output (No space left on device)"


def test_an_error_of_another_file_is_not_blamed_on_the_output():
    def command():
        raise OSError(errno.ENOSPC, "No space left on device")  # as `os.fsync` of a file raises it, without a name

    with pytest.raises(OSError, match="No space left"):
        exit_status(command)


@pytest.mark.parametrize("streams", ["> /dev/null 2>&-", "2> /dev/full", "2>&1 | head -1"])
def test_a_training_without_stderr_ends_well(tmp_path, streams):
    script = tmp_path / "train.py"
    script.write_text(
        "import numpy as np\nfrom plsc import Entry\nins = Entry()\n"
        "ins.train_reader = [(np.zeros((4, 3, 32, 32), 'float32'), np.arange(4))] * 2\n"
        "import paddle\nins.set_model(paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3072, 8)))\n"
        "ins.set_image_shape((3, 32, 32))\nins.set_class_num(4)\nins.set_emb_size(8)\nins.set_train_epochs(1)\n"
        "ins.set_with_test(False)\nins.set_model_save_dir('out')\nins.train()\n"
    )
    process = shell(f"cd {tmp_path} && set -o pipefail && {sys.executable} train.py {streams}")
    assert process.returncode == 0 and (tmp_path / "out" / "0" / "meta.json").exists()


# `plsc run`: the launcher copies the stderr of rank 0, must read that of all ranks, and waits for their processes.

CLOSED_OR_BROKEN = ["2>&-", "2>/dev/full", "2>&1 | head -1", ">&-", ">/dev/full", ">&- 2>&-", "<&- >&- 2>&-",
                    ">/dev/full 2>&1", "| head -1"]  # fmt: skip
TALKATIVE = "import sys\nfor _ in range(20000): print('x' * 100, file=sys.stderr)\nsys.exit({})\n"


@pytest.mark.parametrize(
    "streams, status", [*((streams, 1) for streams in CLOSED_OR_BROKEN), ("2>/dev/full", 0), ("2>&1 | head -1", 0)]
)
def test_ranks_end_with_their_status_whatever_becomes_of_the_streams(tmp_path, streams, status):
    (tmp_path / "script.py").write_text(TALKATIVE.format(status))
    run = f"{sys.executable} -m plsc run --ranks 2 {tmp_path}/script.py"
    assert shell(f"set -o pipefail; {run} {streams}").returncode == status


def test_a_rank_has_ended_though_a_process_that_it_started_holds_its_stderr(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, subprocess, sys, time\n"
        "if os.environ['PADDLE_TRAINER_ID'] == '0': time.sleep(600)\n"
        f"child = subprocess.Popen(['sleep', '600'])\nopen('{tmp_path}/pid', 'w').write(str(child.pid))\n"
        "sys.exit('rank one is broken')\n"
    )
    command = [sys.executable, "-m", "plsc", "run", "--ranks", "2", str(tmp_path / "script.py")]
    try:
        process = subprocess.run(command, env=environment(), stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert process.returncode == 1 and process.stderr.splitlines()[-1] == "rank one is broken"


def test_what_a_library_prints_is_discarded_and_what_python_prints_is_not(capfd):
    library = ctypes.CDLL(None)
    print("before")
    with streams.discarded_output():
        library.printf(b"buffered remark")
        os.write(1, b"remark")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_two_threads_that_discard_the_output_give_it_back(capfd):
    inside, done = threading.Event(), threading.Event()

    def first():
        with streams.discarded_output():
            inside.set()
            done.wait(0.1)

    one = threading.Thread(target=first)
    one.start()
    inside.wait()
    with streams.discarded_output(1, 2), streams.discarded_output():
        done.set()
        one.join()
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"
