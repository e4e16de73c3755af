import os
import signal
import subprocess
import sys
import time

import pytest
from ranks import ROOT, TIMEOUT, wait_until

from plsc.cli import main
from plsc.machine import launch
from plsc.machine.launch import local_ranks

WAIT_TO_BE_STOPPED = "time.sleep(600)\nopen('{}/never stopped', 'w').close()\n"


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text("import os, sys, time\nrank = int(os.environ['PADDLE_TRAINER_ID'])\n" + text)
    return str(path)


def after(tmp_path, first):
    """Has the other rank of two wait, in a script, until the launcher has seen the end of rank `first`."""
    return (
        "import glob\n"
        f"if rank == {first}: os.mkdir(f'{tmp_path}/pid.{{os.getpid()}}')\n"
        f"while not glob.glob('{tmp_path}/pid.*'): time.sleep(0.01)\n"
        f"pid = glob.glob('{tmp_path}/pid.*')[0].rpartition('.')[2]\n"
        f"while rank != {first} and os.path.exists('/proc/' + pid): time.sleep(0.01)\n"
    )


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


def test_ranks_compute_on_the_gpus_that_the_user_has_chosen(tmp_path, monkeypatch, capsys):
    path = script(tmp_path, f"open(f'{tmp_path}/{{rank}}', 'w').write(os.environ['FLAGS_selected_gpus'])")
    for chosen, expected in ((None, "01"), ("", "01"), ("3,1", "31"), ("2,3,5", "23")):
        monkeypatch.delenv("FLAGS_selected_gpus", raising=False)
        if chosen is not None:
            monkeypatch.setenv("FLAGS_selected_gpus", chosen)
        assert launch.run([sys.executable, path], 2) == 0
        assert "".join((tmp_path / str(rank)).read_text() for rank in range(2)) == expected
    assert main(["run", "--ranks", "4", path]) == 1
    assert "FLAGS_selected_gpus=2,3,5 in the environment names 3 GPU(s) for 4 ranks" in capsys.readouterr().err


def test_the_command_speaks_before_the_script_does(tmp_path, capfd):
    path = script(tmp_path, "print('the script', file=sys.stderr)")
    assert main(["run", "--ranks", "2", path]) == 0
    assert capfd.readouterr().err.splitlines() == [f"plsc: starting 2 ranks of {path}", "the script"]


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
    )
    wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=TIMEOUT)[1]
    assert (process.returncode, said.decode()) == (130, f"plsc: starting 2 ranks of {path}\n")
    assert all((tmp_path / f"asked{rank}").exists() for rank in range(2))


def test_sigterm_that_comes_twice_at_once_leaves_the_ranks_time_to_save(tmp_path):
    """`timeout` sends it to the launcher, and then to the launcher and all its ranks."""
    path = script(
        tmp_path,
        "import signal\n"
        f"def save(*_): time.sleep(0.5); open(f'{tmp_path}/saved{{rank}}', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"open(f'{tmp_path}/ready{{rank}}', 'w').close()\n"
        "time.sleep(600)\n",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", "run", "--ranks", "2", path], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.wait(timeout=TIMEOUT) == 143
    assert all((tmp_path / f"saved{rank}").exists() for rank in range(2))


def test_ranks_end_when_their_launcher_is_killed(tmp_path):
    """The ranks get SIGTERM, and what they have started does not."""
    path = script(
        tmp_path,
        "import signal, subprocess\n"
        f"def asked(*_): open(f'{tmp_path}/asked{{rank}}', 'w').close(); child.kill(); os._exit(143)\n"
        "signal.signal(signal.SIGTERM, asked)\n"
        "show = 'import os, sys, time; print(os.environ.get(\"PLSC_LAUNCHER_PID\"), flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', show], stdout=subprocess.PIPE, text=True)\n"
        "assert child.stdout.readline() == 'None\\n'\n"
        f"open(f'{tmp_path}/ready{{rank}}', 'w').close()\n"
        "time.sleep(60)\n",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", "run", "--ranks", "2", path], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
    process.kill()
    process.wait(timeout=TIMEOUT)
    wait_until(lambda: all((tmp_path / f"asked{rank}").exists() for rank in range(2)))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("status, name", [(143, "SIGTERM"), (130, "Ctrl-C")])
def test_a_signal_to_one_rank_is_no_failure(tmp_path, capfd, ranks, status, name):
    """The rank that still saves when another one has ended is waited for, and nothing is restarted."""
    path = script(
        tmp_path,
        "import signal\n"
        f"open(f'{tmp_path}/{{rank}}', 'x').close()\n"
        f"signal.signal(signal.SIGTERM, lambda *_: open(f'{tmp_path}/disturbed', 'w').close())\n"
        f"{after(tmp_path, 0)}time.sleep(rank * 0.5)\nsys.exit({status})\n",
    )
    assert launch.run([sys.executable, path], ranks, restarts=1) == status
    assert not (tmp_path / "disturbed").exists()
    line = f"plsc: rank 0 ended after {name}; all ranks were stopped\n"
    assert capfd.readouterr().err == (line if ranks == 2 else "")


@pytest.mark.parametrize("pause, count", [(0.2, 1), (60, 0)])
def test_a_rank_that_ends_long_before_the_others_is_reported_once(tmp_path, monkeypatch, capfd, pause, count):
    monkeypatch.setattr(local_ranks, "_SECONDS_BETWEEN_ENDS", pause)
    path = script(tmp_path, f"{after(tmp_path, 1)}time.sleep(0.8 - 0.8 * rank)\n")
    assert launch.run([sys.executable, path], 2) == 0
    assert capfd.readouterr().err.count("plsc: rank 1 ended 0 s ago, and other ranks still run; if they wait") == count


@pytest.mark.parametrize(
    "text, lines",
    [
        ("if rank == 0: sys.exit('plsc: error: bad')", ["plsc: error: bad"]),
        ("if rank == 1: sys.exit('plsc: error: bad')", ["plsc: error: rank 1: bad"]),
        ("if rank == 1: sys.exit('plsc: error: worse')", ["plsc: error: rank 1: bad", "rank 1 ended", "worse"]),
        (
            "if rank == 1: raise ValueError('bad')",
            ["error: rank 1: bad", "rank 1 ended", "Traceback", "ValueError: bad"],
        ),
    ],
)
def test_an_error_that_rank_0_has_shown_is_not_shown_again(tmp_path, capfd, text, lines):
    shown = (
        f"if rank == 0: print({lines[0]!r}, file=sys.stderr, flush=True); os.mkdir('{tmp_path}/shown')\n"
        f"while not os.path.exists('{tmp_path}/shown'): time.sleep(0.01)\n"
        "time.sleep(0.3)\n"  # for the launcher, which reads the line at once
    )
    path = script(tmp_path, ("" if "rank == 0" in text else shown) + f"{text}\ntime.sleep(60)\n")
    assert launch.run([sys.executable, path], 2) == 1
    said = capfd.readouterr().err
    at = [said.index(line) for line in lines]
    assert at == sorted(at) and all(said.count(line) == 1 for line in lines), said
    assert ("The last lines of" in said) == (len(lines) > 2)


def test_what_rank_0_writes_is_passed_on_at_once_also_without_a_line_end(tmp_path):
    """A progress bar draws its line again and again, and ends it when it is done."""
    path = script(
        tmp_path,
        "from plsc.machine.streams import shows_bars\n"
        "for part in ('\\r10 %', '\\r20 %', f'\\r{shows_bars()}'): print(part, end='', file=sys.stderr, flush=True)\n"
        f"while not os.path.exists('{tmp_path}/seen'): time.sleep(0.01)\n",
    )
    main, other = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "plsc", "run", "--ranks", "1", path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=other,
    )
    os.close(other)
    said = b""
    while b"True" not in said:
        said += os.read(main, 1000)
    (tmp_path / "seen").touch()
    assert process.wait(timeout=TIMEOUT) == 0
    assert said.partition(b"\n")[2].startswith(b"\r10 %\r20 %\rTrue"), "after the line of the launcher"
    os.close(main)
