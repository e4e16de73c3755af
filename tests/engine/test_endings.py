"""Runs that are interrupted: by signals, full disks, folders that cannot be written, and restarts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_runs import children_of, kill_rounds, same_tensors
from ranks import HELPERS, TIMEOUT, command, environment, popen_ranks, run_plsc, run_python, start, wait_until


def test_killed_runs_end_as_if_nothing_had_happened(glyphs, tmp_path):
    """One round; tests/benchmarks/kill.py does fifty."""
    for killed, good in kill_rounds(glyphs, tmp_path, rounds=1, seed=3):
        assert good, killed


def hold(*arguments, ranks=2):
    """Starts a training whose ranks wait in step 5; returns the process and its lines so far."""
    process = popen_ranks("train_glyphs.py", ranks, *arguments, "--hold-step=5")
    return process, lines_until(process, "holding step 5")


def lines_until(process, words):
    """Returns the lines that a process prints up to one with these words."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines))


BASE = ("train_epochs=3", "log_period=1", "with_test=false", "train_batch_size=4", "resume=true")


def test_sigterm_saves_and_the_resumed_run_ends_like_an_uninterrupted_one(glyphs, tmp_path):
    straight = start("train_glyphs.py", 2, glyphs, tmp_path / "straight", *BASE, "--dropout=0.2")
    assert straight.returncode == 0
    output = tmp_path / "stopped"
    process, lines = hold(glyphs, output, *BASE, "--dropout=0.2")
    process.terminate()
    lines += lines_until(process, "received SIGTERM")
    (tmp_path / "stopped.release").touch()
    lines += process.stderr.readlines()
    assert process.wait(timeout=TIMEOUT) == 128 + signal.SIGTERM
    assert any(
        "stopped by SIGTERM after step" in line and "set_resume(True) resumes from there" in line for line in lines
    )
    assert "Traceback" not in "".join(lines)
    assert [path.name for path in output.glob("*/meta.json")], "a checkpoint was made"
    resumed = start("train_glyphs.py", 2, glyphs, output, *BASE, "--dropout=0.2")
    assert resumed.returncode == 0 and "resumed from" in resumed.stderr
    assert same_tensors(output / "2", tmp_path / "straight" / "2")


@pytest.mark.parametrize("with_launcher", [True, False])
def test_ctrl_c_saves_and_is_called_by_its_name(glyphs, tmp_path, with_launcher):
    output = tmp_path / "stopped"
    words = command("train_glyphs.py", 1, glyphs, output, *BASE, "--hold-step=3")
    process = subprocess.Popen(
        words if with_launcher else [sys.executable, *words[words.index(str(HELPERS / "train_glyphs.py")) :]],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines_until(process, "holding step 3")
    process.send_signal(signal.SIGINT)
    if with_launcher:
        lines_until(process, "received SIGTERM")
    (tmp_path / "stopped.release").touch()
    said = process.stderr.read()
    assert process.wait(timeout=TIMEOUT) == 130
    assert "stopped by Ctrl-C after step 4: saved" in said.splitlines()[-1] and "Traceback" not in said
    assert (output / "step_4" / "meta.json").exists()


def test_sigterm_to_one_rank_stops_all_at_the_same_step(glyphs, tmp_path):
    output = tmp_path / "output"
    process, lines = hold(glyphs, output, *BASE, ranks=3)
    os.kill(children_of(process.pid)[1], signal.SIGTERM)
    (tmp_path / "output.release").touch()
    lines += process.stderr.readlines()
    assert process.wait(timeout=TIMEOUT) == 128 + signal.SIGTERM
    assert "ended after SIGTERM; all ranks were stopped" in lines[-1]
    assert any("stopped by SIGTERM after step" in line for line in lines)
    (folder,) = output.glob("step_*")
    assert len(json.loads((folder / "meta.json").read_text())["rng"]) == 3


@pytest.mark.parametrize(
    "wait, number, to_all, step", [("file", 2, True, 0), ("reader", 3, False, 1), ("test", 2, False, 3)]
)
def test_a_signal_while_a_rank_waits_saves_on_all_ranks(glyphs, base64_glyphs, tmp_path, wait, number, to_all, step):
    """The signal goes to all ranks, or to one that does not wait."""
    output = tmp_path / "output"
    data = base64_glyphs if wait == "file" else glyphs
    process = popen_ranks("stop_waiting.py", number, data, output, wait, step)
    wait_until((tmp_path / "output.waits").exists)
    began = time.monotonic()
    for pid in children_of(process.pid)[: number if to_all else 1]:
        os.kill(pid, signal.SIGTERM)
    statuses = [tmp_path / f"output.status_{rank}" for rank in range(number)]
    wait_until(lambda: all(path.exists() for path in statuses) or process.poll() is not None)
    assert time.monotonic() - began < 60
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert [path.read_text() for path in statuses] == [str(128 + signal.SIGTERM)] * number
    assert f"stopped by SIGTERM after step {step}: saved" in said and f"step_{step}: epoch 0, step {step};" in said
    assert same_tensors(output / "1", tmp_path / "output.straight" / "1")


def is_running(pid):
    """Returns whether a process has not ended; one that no parent has asked about yet has."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def test_ranks_whose_launcher_is_killed_save_and_end(glyphs, tmp_path):
    process, _ = hold(glyphs, tmp_path / "output", *BASE, ranks=2)
    ranks = children_of(process.pid)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    (tmp_path / "output.release").touch()
    wait_until(lambda: not any(map(is_running, ranks)))
    (folder,) = tmp_path.glob("output/step_*")
    assert (folder / "meta.json").exists()


def test_the_second_sigterm_ends_at_once(glyphs, tmp_path):
    process, _ = hold(glyphs, tmp_path / "output", *BASE)
    process.terminate()
    lines_until(process, "received SIGTERM")
    time.sleep(2.2)  # earlier, it would only repeat the first
    began = time.monotonic()
    process.terminate()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 45, "after one SIGTERM the ranks have 60 s"
    assert not list(tmp_path.glob("*/meta.json"))


def test_restarts_resume_from_the_newest_checkpoint(ranks, glyphs, tmp_path):
    options = ("train_epochs=2", "save_period=1", "with_test=false", "--dropout=0.2")
    ranks("train_glyphs.py", 2, glyphs, tmp_path / "straight", *options)
    # set_resume is not needed: a restart resumes by itself.
    # It ignores an earlier run in the same folder, which had come further, on a machine whose clock was a day ahead.
    earlier = (*options, "train_epochs=3", "save_period=7", "seed=9", "--clock=86400")
    ranks("train_glyphs.py", 2, glyphs, tmp_path / "killed", *earlier)
    kill = ("--kill-rank=1", "--kill-step=4", "--kill-after-resume")
    process = ranks("train_glyphs.py", 2, glyphs, tmp_path / "killed", *options, *kill, restarts=2)
    assert "restart 1 of 2" in process.stderr and "restart 2" not in process.stderr
    assert "resumed from" in process.stderr
    assert same_tensors(tmp_path / "killed" / "1", tmp_path / "straight" / "1")


def test_a_restart_before_the_first_checkpoint_does_not_resume_an_earlier_run(ranks, glyphs, tmp_path):
    options = ("train_epochs=1", "with_test=false", "num_workers=0")
    ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "--clock=86400")
    kill = ("--kill-rank=0", "--kill-step=1", "--kill-after-resume")
    process = ranks("train_glyphs.py", 1, glyphs, tmp_path, *options, "seed=9", *kill, restarts=1)
    assert "restart 1 of 1" in process.stderr and "nothing to resume" in process.stderr


def test_restarts_end_after_the_given_number(glyphs, tmp_path):
    process = start("train_glyphs.py", 2, glyphs, tmp_path, "--fail-rank=1", "with_test=false", restarts=1)
    assert process.returncode == 1 and process.stderr.count("plsc: restart") == 1
    assert "the reader broke here" in process.stderr.splitlines()[-1]


def test_a_script_resumes_when_paddles_launcher_runs_it_again(glyphs, tmp_path):
    """After a failure a cluster starts the same command again."""
    arguments = [str(glyphs), str(tmp_path / "o"), "save_period=1", "with_test=false", "resume=true"]
    arguments += ["--kill-rank=1", "--kill-step=4"]
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    launcher += ["--log_dir", str(tmp_path / "log"), str(HELPERS / "train_glyphs.py"), *arguments]
    statuses = [run_python(*launcher).returncode for _ in range(2)]
    assert statuses[0] != 0 and statuses[1] == 0
    assert json.loads((tmp_path / "o" / "result_0.json").read_text())["steps"] == 6


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of 6 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True).returncode
    ):
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_last_checkpoint(glyphs, small_disk):
    # W and its momentum: 2.5 MB a checkpoint, so the third does not fit
    options = ("class_num=20000", "save_period=1", "with_test=false", "train_epochs=3")
    process = start("train_glyphs.py", 2, glyphs, small_disk, *options)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert "could not be written: No space left on device; free some space, or" in last
    assert sorted(path.name for path in small_disk.glob("*step*")) == ["step_1", "step_2"]
    assert not list(small_disk.glob(".*"))
    # Once there is room the run resumes from there.
    shutil.rmtree(small_disk / "step_1")
    options = ("class_num=20000", "with_test=false", "train_epochs=1", "keep_checkpoints=1", "resume=true")
    resumed = start("train_glyphs.py", 2, glyphs, small_disk, *options)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "step_2: epoch 0, step 2; 2 steps" in resumed.stderr and [
        path.parent.name for path in small_disk.glob("*/meta.json")
    ] == ["0"]


@pytest.mark.parametrize("place", ["/proc/no/such", "a file"])
def test_a_folder_that_cannot_be_written_is_reported_before_the_first_step(glyphs, tmp_path, place):
    (tmp_path / "a file").write_text("")
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(HELPERS)!r})\n"
        "import paddle\nfrom plsc import Entry\nfrom train_glyphs import TinyNet\n"
        f"ins = Entry()\nins.set_dataset_dir({str(glyphs)!r})\nins.set_model_save_dir({str(tmp_path / place)!r})\n"
        "ins.set_class_num(12)\nins.set_image_shape((3, 32, 32))\nins.set_emb_size(16)\nins.set_with_test(False)\n"
        "ins.set_model(TinyNet())\nins.train()\n"
    )
    process = run_plsc("run", "--ranks", "2", script)
    assert process.returncode == 1 and "epoch 0" not in process.stderr and "Traceback" not in process.stderr
    assert "cannot write there" in process.stderr.splitlines()[-1]
