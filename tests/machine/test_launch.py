import os
import signal
import subprocess
import sys

from ranks import ROOT, TIMEOUT, wait_until

from plsc.cli import main
from plsc.machine import launch

WAIT_TO_BE_STOPPED = "time.sleep(600)\nopen('{}/never stopped', 'w').close()\n"


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text("import os, sys, time\nrank = int(os.environ['PADDLE_TRAINER_ID'])\n" + text)
    return str(path)


def test_every_rank_gets_its_place(tmp_path):
    path = script(tmp_path, f"open(f'{tmp_path}/{{rank}}', 'w').write(os.environ['PADDLE_TRAINERS_NUM'])")
    assert launch.run([sys.executable, path], 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["3", "3", "3"]


def test_the_first_failure_stops_all_and_comes_last(tmp_path, capfd):
    path = script(tmp_path, "if rank == 2: sys.exit('rank two is broken')\n" + WAIT_TO_BE_STOPPED.format(tmp_path))
    assert launch.run([sys.executable, path], 3) == 1
    assert not (tmp_path / "never stopped").exists()
    assert capfd.readouterr().err.splitlines()[-1] == "rank two is broken"


def test_a_killed_rank_stops_all(tmp_path, capfd):
    path = script(tmp_path, "if rank == 1: os.kill(os.getpid(), 9)\n" + WAIT_TO_BE_STOPPED.format(tmp_path))
    assert launch.run([sys.executable, path], 2) == 1
    assert "rank 1 was killed by signal 9" in capfd.readouterr().err
    assert not (tmp_path / "never stopped").exists()


def test_a_missing_script_is_said(capsys):
    assert main(["run", "nowhere.py"]) == 1
    assert "nowhere.py" in capsys.readouterr().err


def test_stopping_the_launcher_stops_its_ranks(tmp_path):
    path = script(tmp_path, f"open(f'{tmp_path}/pid{{rank}}', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", "run", "--ranks", "2", path], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=TIMEOUT) == 128 + signal.SIGTERM
    for file in files:
        assert not os.path.exists(f"/proc/{file.read_text()}")


def test_ctrl_c_in_a_terminal_asks_the_ranks_to_end_and_interrupts_none(tmp_path):
    """A terminal sends the signal to the launcher and to its ranks."""
    path = script(
        tmp_path,
        "import signal\n"
        f"def asked(*_): open(f'{tmp_path}/asked{{rank}}', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, asked)\n"
        f"open(f'{tmp_path}/ready{{rank}}', 'w').close()\n"
        "time.sleep(600)\n",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", "run", "--ranks", "2", path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=TIMEOUT)[1]
    assert (process.returncode, said) == (130, b"")
    assert all((tmp_path / f"asked{rank}").exists() for rank in range(2))
