"""Ranks wait for late ones, and fail together: see tests/helpers/disturbed_ranks.py for the places."""

import contextlib
import json
import logging
import socket
import threading
import time
from importlib import import_module
from types import SimpleNamespace

import disturbed_ranks
import pytest
from hdfs_server import free_ports
from ranks import HELPERS, TIMEOUT, environment, popen_python, popen_ranks, run_python, start, wait_until

from plsc.errors import PlscError, RankError
from plsc.machine.logs import set_up_logging
from plsc.parallel import peers, stopping, working

SECONDS = 15  # on a busy machine; an error travels in milliseconds


def core(*values):
    """Marks a case of a parametrised test."""
    return pytest.param(*values, marks=pytest.mark.core)


@pytest.fixture(scope="module", autouse=True)
def late(glyphs, tmp_path_factory):
    """A run with two delays of a minute in all, which passes while the tests of this module run."""
    late = ("image", 1, 33, "pairs for the report", 0, 33)
    with popen_ranks("disturbed_ranks.py", 2, glyphs, tmp_path_factory.mktemp("late"), "delay", *late) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def failed(request, glyphs, tmp_path_factory):
    """What each of two ranks raised at each place that the chosen tests ask for."""
    folder = tmp_path_factory.mktemp("failed")
    names = [item.callspec.params["name"] for item in request.session.items if "failed" in item.fixturenames]
    process = start("disturbed_ranks.py", 2, glyphs, folder, "fail-all", *names)
    assert process.returncode == 0, process.stderr[-4000:]
    return [json.loads((folder / f"failed_{rank}.json").read_text()) for rank in (0, 1)]


# Ranks report failures to each other without Paddle: its version matters where a rank may wait in Paddle.
CORE_PLACES = ("backbone", "optimizer", "image", "copy of the state", "part of a checkpoint", "test", "training ends")


@pytest.mark.parametrize("name", [core(name) if name in CORE_PLACES else name for name in disturbed_ranks.PLACES])
def test_when_one_rank_fails_the_other_one_fails_with_its_error(failed, name):
    place = disturbed_ranks.PLACES[name]
    (own_seconds, own_kind, own_text), (seconds, kind, text) = failed[place.rank][name], failed[1 - place.rank][name]
    assert own_seconds < SECONDS and seconds < SECONDS
    if own_kind == kind:  # all ranks raise a failure that all of them look for
        assert text == own_text
        return
    if isinstance(place.error, MemoryError):
        assert own_kind == "TrainingError" and own_text.startswith("the memory is not enough")
    else:
        assert (own_kind, own_text) == (type(place.error).__name__, str(place.error))
    assert kind == "RankError" and text.startswith(f"rank {place.rank}: ") and own_text in text
    assert isinstance(place.error, (PlscError, MemoryError)) or own_kind in text


@pytest.mark.parametrize("name", [core("forward"), core("busy"), "forward of rank 0", "other calls", "between actions"])
def test_a_rank_that_cannot_raise_the_error_ends_with_it(glyphs, tmp_path, name):
    place = disturbed_ranks.HARD_PLACES[name]
    began = time.monotonic()
    process = start("disturbed_ranks.py", 2, glyphs, tmp_path / "output", "fail", name)
    assert process.returncode == 1 and time.monotonic() - began < 60  # the busy one would take two minutes
    assert str(place.error) in process.stderr.splitlines()[-1], process.stderr[-3000:]


@pytest.mark.parametrize(
    ("name", "statuses", "last"),
    [
        core(
            "forward",
            [1, 1],
            ["plsc: error: rank 1: the memory is not enough (out", "plsc: error: the memory is not enough (out"],
        ),
        core("killed", [1, -9], ["plsc: error: rank 1: its process ended without an error message; it was killed", ""]),
        ("rank 0 killed", [-9, 1], ["", "plsc: error: rank 0: its process ended without an error message; it was"]),
        ("left", [1, 0], ["plsc: error: rank 1: its program has ended, while rank 0 waited for the ", ""]),
        ("rank 0 left", [0, 1], ["", "plsc: error: rank 0: its program has ended"]),
    ],
)
def test_ranks_without_a_common_launcher_fail_together(glyphs, tmp_path, name, statuses, last):
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = [start_alone(rank, endpoints, glyphs, tmp_path / "output", "fail", name) for rank in (0, 1)]
    while all(process.poll() is None for process in processes):
        time.sleep(0.1)
    began = time.monotonic()
    for process, status, line in zip(processes, statuses, last):
        stderr = process.communicate(timeout=TIMEOUT)[1]
        assert process.returncode == status, stderr
        assert not line or stderr.splitlines()[-1].startswith(line)
    assert time.monotonic() - began < SECONDS


def test_the_others_hear_of_a_wish_to_end_that_ends_the_block_at_once(monkeypatch):
    announced = []
    others = SimpleNamespace(stopping=False, announce_stop=lambda: announced.append(True))
    monkeypatch.setattr(import_module("plsc.parallel.action"), "peers", lambda: others)
    with stopping(lambda: False) as is_stopping:
        assert not is_stopping()
    assert not announced
    wish = []
    with pytest.raises(SystemExit), stopping(lambda: bool(wish)) as is_stopping:
        wish.append("SIGTERM")
        assert is_stopping()
        raise SystemExit
    assert announced


@pytest.fixture
def said(monkeypatch):
    """What this process says of its work."""
    action, found = import_module("plsc.parallel.action"), []
    monkeypatch.setattr(action, "_SIGN_SECONDS", 0.01)
    monkeypatch.setattr(action, "_warnings", action._Warnings())
    monkeypatch.setattr(action, "peers", lambda: SimpleNamespace(say_it_works=found.append))
    logger = logging.getLogger("plsc")
    before = logger.filters[:]
    yield found
    logger.filters[:] = before


def says(said, wanted):
    """Waits until all threads that are in blocks of `working` have said something, and all of it is `wanted`."""

    def is_wanted():
        said.clear()
        time.sleep(0.1)
        return len(said) > 1 and set(said) == {wanted}

    wait_until(is_wanted)
    return True


def test_threads_that_work_say_the_last_warning_of_the_process_until_it_is_old(said, monkeypatch):
    action, logger = import_module("plsc.parallel.action"), logging.getLogger("plsc")
    with contextlib.suppress(KeyError), working():
        assert says(said, "")
        logger.warning("store:\n%s", "Connection refused")
        logger.info("training continues")
        with working():  # which has begun after the warning
            assert says(said, "store: Connection refused")
            of_others = threading.Thread(target=logger.warning, args=("still waiting for rank 1",), name=peers.THREAD)
            of_others.start()
            of_others.join()
            assert says(said, "store: Connection refused")
            monkeypatch.setattr(action, "_WARNING_SECONDS", 0.0)
            logger.warning("an old one")
            assert says(said, "")
        raise KeyError
    before = len(said)
    time.sleep(0.1)
    assert len(said) <= before + 1, "the block has ended"


def test_the_log_that_is_set_up_while_a_rank_works_has_its_handler(said, monkeypatch):
    logger = logging.getLogger("plsc")
    monkeypatch.setattr(logger, "handlers", [])
    for name in ("propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    with working():
        set_up_logging(0)
        assert len(logger.handlers) == 1


@pytest.mark.core
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("words", "text", "seconds"),
    [
        ([{"left": 0}], "rank 0: its program has ended", 0.2),  # it may close its files in peace
        ([], "rank 0: its process ended without an error message", 0.0),
    ],
)
def test_the_end_of_rank_0_is_called_what_it_is(monkeypatch, wait, words, text, seconds):
    ended = []
    monkeypatch.setattr(peers, "rank", lambda: 1)
    monkeypatch.setattr(peers, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(peers, "_SECONDS_TO_CLOSE", 0.2)
    monkeypatch.setattr(peers.Peers, "_end_process", lambda self, failure, action: ended.append(time.monotonic()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = peers.Peers(socket.create_connection(server.getsockname()), "token", None)
        own.begin(60)
        began = time.monotonic()
        with server.accept()[0] as connection:
            connection.sendall(b"".join(json.dumps(one).encode() + b"\n" for one in words))
        own.wait_for_failure()
        with pytest.raises(RankError, match=text):
            own.meet("the batch of step 7", wait)
    while not ended and time.monotonic() - began < SECONDS:
        time.sleep(0.01)
    assert ended[0] - began >= seconds
    own.close()


@pytest.mark.parametrize(("name", "restarts"), [("busy", 0), core("forward", 2)])
def test_the_launcher_does_not_restart_after_an_error_that_would_come_again(glyphs, tmp_path, name, restarts):
    process = start("disturbed_ranks.py", 2, glyphs, tmp_path / "output", "fail", name, restarts=2)
    assert process.returncode == 1
    assert process.stderr.count("plsc: restart ") == restarts
    assert process.stderr.count("plsc: not restarted") == (0 if restarts else 1)


@pytest.mark.core
def test_paddles_launcher_shows_the_first_cause_on_every_rank(glyphs, tmp_path):
    words = [HELPERS / "disturbed_ranks.py", glyphs, tmp_path / "output", "fail", "busy"]
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    variables = {**environment(), "GLOG_minloglevel": "1"}
    process = run_python(*launcher, "--log_dir", tmp_path / "log", *words, variables=variables)
    assert process.returncode != 0
    lines = [(tmp_path / "log" / f"workerlog.{rank}").read_text().splitlines()[-1] for rank in (0, 1)]
    assert lines == ["plsc: error: rank 1: label.txt:3: no label", "plsc: error: label.txt:3: no label"]


def start_alone(rank, endpoints, *words):
    """Starts a rank as a machine of its own would, without a launcher that ends the others."""
    variables = {
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": str(len(endpoints)),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_LOCAL_RANK": "0",
        "GLOG_minloglevel": "1",  # Paddle 2 has a last word otherwise
    }
    return popen_python(HELPERS / "disturbed_ranks.py", *words, variables={**environment(), **variables})


@pytest.mark.core
def test_ranks_wait_longer_than_gloo_does_and_say_for_whom(late):
    """This test is the last one here, so that little is left to wait for; tests/benchmarks/late.py has more places."""
    text = late.communicate()[1]
    assert late.returncode == 0, text[-3000:]
    lines = [line.partition("] ")[2] for line in text.splitlines()]
    for late_rank, what in ((1, "the batch of step 1"), (0, "the pairs of glyphs for the report")):
        assert any(line.startswith(f"still waiting for rank {late_rank} after 3") and what in line for line in lines)
