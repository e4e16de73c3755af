"""`plsc run --nnodes`: launchers that act together. Most of them run on one machine, and their ranks need no Paddle."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from hdfs_server import free_ports
from killed_runs import children_of
from ranks import HELPERS, TIMEOUT, environment, run_ranks, wait_until
from safetensors.numpy import load_file
from separate_machines import Network, reason_to_skip

from plsc.cli import main
from plsc.errors import STATUS_OF_MISTAKE, ConfigError
from plsc.machine.launch import messages
from plsc.machine.launch.cluster_environment import Cluster, read_cluster
from plsc.machine.launch.hub import Hub
from plsc.machine.launch.link import Link, OtherProgramError
from plsc.machine.launch.messages import GarbageError, Lines, encode
from plsc.machine.launch.network import address_towards, interface_of, parse_address

START = "import os, signal, sys, time\nrank, folder = int(os.environ['PADDLE_TRAINER_ID']), {!r}\n"
WAIT = "open(f'{folder}/ready{rank}', 'w').close()\ntime.sleep(600)\n"


class Launchers:
    """Launchers of one run on this machine, each of which believes to be a machine."""

    def __init__(self, folder, text):
        self.folder = folder
        (self.port,) = free_ports(1)
        self.script = folder / "script.py"
        self.script.write_text(START.format(str(folder)) + text)
        self.processes = []

    def start(self, *options, nnodes=2, ranks=1):
        """Starts one more launcher."""
        words = ["run", "--nnodes", nnodes, "--master", f"127.0.0.1:{self.port}", "--ranks", ranks, *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "plsc", *map(str, words), str(self.script)],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def start_two(self, *options):
        """Starts the master and then another one, each with one rank."""
        master = self.start(*options)
        wait_until(self.is_listening)
        return master, self.start(*options)

    def is_listening(self):
        """Returns whether the master takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def await_ranks(self, *ranks):
        """Waits until ranks are ready, and forgets it."""
        for rank in ranks:
            file = self.folder / f"ready{rank}"
            wait_until(file.exists)
            file.unlink()


@pytest.fixture
def launchers(tmp_path):
    """`launchers(text)` gives the launchers of a script with that text; they end with the test."""
    started = []

    def make(text):
        started.append(Launchers(tmp_path, text))
        return started[-1]

    yield make
    for process in (process for one in started for process in one.processes):
        for pid in [*children_of(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def end_of(process):
    """Waits for a launcher; returns its status and its lines."""
    said = process.communicate(timeout=TIMEOUT)[1]
    return process.returncode, said.splitlines()


def test_every_rank_of_every_machine_gets_its_place(launchers, tmp_path):
    names = ["TRAINERS_NUM", "LOCAL_RANK", "RANK_IN_NODE", "LOCAL_SIZE", "TRAINER_ENDPOINTS", "CURRENT_ENDPOINT"]
    run = launchers(f"open(f'{{folder}}/{{rank}}', 'w').write(' '.join(os.environ['PADDLE_' + n] for n in {names}))")
    for _ in range(3):
        run.start(nnodes=3, ranks=2)
    assert [end_of(process)[0] for process in run.processes] == [0, 0, 0]
    places = [(tmp_path / str(rank)).read_text().split() for rank in range(6)]
    assert [place[:4] for place in places] == [["6", str(rank % 2), str(rank % 2), "2"] for rank in range(6)]
    endpoints = places[0][4].split(",")
    assert len(set(endpoints)) == 6 and all(place[4] == places[0][4] for place in places)
    assert [place[5] for place in places] == endpoints


def test_the_first_failure_ends_all_machines_and_is_the_last_line_of_all(launchers):
    run = launchers("if rank == 1: sys.exit('rank one is broken')\n" + WAIT)
    for status, lines in map(end_of, run.start_two()):
        assert status == 1 and lines[-1] == "rank one is broken"
        assert any("ended with status 1; all ranks of all machines were stopped" in line for line in lines)


@pytest.mark.parametrize("whom, number, status", [(0, signal.SIGINT, 130), (1, signal.SIGTERM, 143)])
def test_a_signal_to_one_launcher_asks_all_ranks_to_end(launchers, tmp_path, whom, number, status):
    run = launchers(
        "def asked(*_): open(f'{folder}/asked{rank}', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, asked)\n" + WAIT
    )
    processes = run.start_two()
    run.await_ranks(0, 1)
    processes[whom].send_signal(number)
    for process in processes:
        got, lines = end_of(process)
        assert got == status and lines[-1].endswith(
            f"(node rank {whom}) was stopped by {'Ctrl-C' if status == 130 else 'SIGTERM'}"
        )
    assert all((tmp_path / f"asked{rank}").exists() for rank in (0, 1))


def test_a_signal_to_every_launcher_leaves_the_ranks_time_to_save(launchers, tmp_path):
    """A cluster that reclaims its machines asks all of them at once."""
    run = launchers(
        "def save(*_): time.sleep(1.5); open(f'{folder}/saved{rank}', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n" + WAIT
    )
    processes = run.start_two()
    run.await_ranks(0, 1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [end_of(process)[0] for process in processes] == [143, 143]
    assert all((tmp_path / f"saved{rank}").exists() for rank in (0, 1))


def test_the_second_signal_to_one_launcher_ends_all_ranks_at_once(launchers, tmp_path):
    run = launchers(
        "def save(*_): time.sleep(50); open(f'{folder}/saved{rank}', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n" + WAIT
    )
    processes = run.start_two()
    run.await_ranks(0, 1)
    began = time.monotonic()
    for _ in range(2):
        processes[1].send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert [end_of(process)[0] for process in processes] == [130, 130]
    assert time.monotonic() - began < 45 and not list(tmp_path.glob("saved*"))


def test_a_signal_to_one_rank_stops_all_machines_and_is_no_failure(launchers):
    run = launchers("time.sleep(rank * 0.5)\nsys.exit(143)\n")
    for status, lines in map(end_of, run.start_two("--restarts", "1")):
        assert status == 143 and "ended after SIGTERM; all ranks of all machines were stopped" in lines[-1]


def test_another_script_on_one_machine_is_named(launchers, tmp_path):
    run = launchers(WAIT)
    run.start()
    wait_until(run.is_listening)
    run.script = tmp_path / "other.py"
    run.script.write_text("")
    status, lines = end_of(run.start())
    assert status == 1 and "the script is other.py there and script.py on the master's machine" in lines[-1]


@pytest.mark.parametrize("whom", [0, 1])
def test_a_machine_that_is_lost_and_returns_gets_its_number_and_all_start_again(launchers, whom):
    run = launchers("if 'PLSC_RESTART' in os.environ: sys.exit()\n" + WAIT)
    processes = list(run.start_two("--restarts", "2"))
    run.await_ranks(0, 1)
    ranks = children_of(processes[whom].pid)
    processes[whom].kill()
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    processes[whom].communicate()
    processes[whom] = run.start("--restarts", "2")
    ends = [end_of(process) for process in processes]
    assert [status for status, _ in ends] == [0, 0]
    for number, (_, lines) in enumerate(ends):
        assert f"has node rank {number} among 2 machines" in lines[-1]
    assert any(f"(node rank {whom}" in line and "was lost" in line for line in ends[1 - whom][1])
    assert any("restart 1 of 2; waiting up to 600 s" in line for line in ends[1 - whom][1])


def test_without_restarts_a_lost_master_ends_the_others(launchers):
    run = launchers(WAIT)
    master, other = run.start_two()
    run.await_ranks(0, 1)
    began = time.monotonic()
    master.kill()
    status, lines = end_of(other)
    assert status == 1 and "(node rank 0, the master) was lost" in lines[-1]
    assert time.monotonic() - began < 20


def test_a_mistake_is_not_repeated(launchers):
    run = launchers(f"if rank == 1: print('your mistake', file=sys.stderr); sys.exit({STATUS_OF_MISTAKE})\n" + WAIT)
    for status, lines in map(end_of, run.start_two("--restarts", "5")):
        text = "\n".join(lines)
        assert status == 1 and lines[-1] == "your mistake" and "plsc: restart" not in text
        assert "stopped; not restarted, because the same error would come again" in text


def test_a_machine_that_does_not_come_is_reported(launchers):
    status, lines = end_of(launchers("").start("--wait", "1"))
    assert status == 1 and "only 1 of 2 machines" in lines[-1] and "came within 1 s" in lines[-1]


# The hub and its connections, in this process.

AGREED = {"--nnodes": 2, "--ranks": 1, "plsc": "1", "train.py (SHA-256)": "0123"}
HELLO = {"name": "machine", "asked_rank": None, "former_rank": None, "agreed": AGREED}
READY = {"attempt": 0, "address": "127.0.0.1", "ports": [1]}


@pytest.fixture
def hub():
    """`hub(...)` starts a hub for two machines and returns its port; it ends with the test."""
    hubs = []

    def make(**options):
        listener = socket.create_server(("127.0.0.1", 0))
        hubs.append(Hub(listener, AGREED, 2, **{"restarts": 0, "patience": 60, **options}))
        hubs[-1].start()
        return listener.getsockname()[1]

    yield make
    for one in hubs:
        one.leave(0)


@pytest.fixture
def link():
    """`link(port, ...)` connects to a hub, with other fields of the hello where they are given."""
    links = []

    def make(port, silence=30.0, **fields):
        links.append(Link("127.0.0.1", port, {**HELLO, **fields}, silence))
        return links[-1]

    yield make
    for one in links:
        one.close()


def answer(link, kind):
    """Returns the next message of this kind."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        message = link.next_message(0.1)
        if message is not None and message["kind"] == kind:
            return message
        assert link.lost is None, link.lost
    raise AssertionError(f"no {kind}")


def start_all(*links):
    """Has all launchers of a hub start their ranks; returns the messages that tell them."""
    for one in links:
        one.send("ready", **READY)
    return [answer(one, "start") for one in links]


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"agreed": {**AGREED, "--ranks": 4}}, "--ranks is 4 there and 1 on the master's machine"),
        ({"agreed": {**AGREED, "--nnodes": 3}}, "--nnodes is 3 there and 2 on"),
        ({"agreed": {**AGREED, "plsc": "2"}}, "plsc is 2 there and 1 on"),
        ({"agreed": {**AGREED, "train.py (SHA-256)": "4567"}}, r"train.py \(SHA-256\) is 4567 there"),
        ({"agreed": {}}, "--nnodes is not given there; start the same version of plsc on every machine"),
        ({"asked_rank": 1}, "node rank 1 is taken by first; give each machine its own --node-rank"),
    ],
)
def test_machines_that_do_not_fit_are_refused_with_one_line_and_the_others_learn_of_it(hub, link, fields, reason):
    port = hub()
    first = link(port, name="first", asked_rank=1)
    first.send("ready", **READY)
    second = link(port, **fields)
    refused = answer(second, "refused")
    assert not refused["retry"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused["reason"])
    assert refused["reason"] in answer(first, "note")["text"]


def test_another_secret_is_refused(hub, link, monkeypatch):
    monkeypatch.setenv(messages.SECRET_VARIABLE, "one")
    port = hub()
    first, second = link(port), link(port)
    start_all(first, second)
    monkeypatch.setenv(messages.SECRET_VARIABLE, "two")
    assert "PLSC_SECRET differs" in answer(link(port), "refused")["reason"]


def test_a_machine_too_many_may_try_again_later(hub, link):
    port = hub()
    first, second = link(port), link(port)
    third = answer(link(port), "refused")
    assert third["retry"] and "all machines are here already" in third["reason"]
    assert sorted(start["node_rank"] for start in start_all(first, second)) == [0, 1]
    assert answer(link(port), "refused")["retry"]


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\n\n\n",
    b"x" * (messages.LONGEST_FROM_MEMBER + 2),
    b"[" * 100_000 + b"\n",
    b'{"kind": "hello"}\n',
    b'{"kind": "signal", "number": 15}\n',
    b'{"kind": ["done"]}\n',
    b"\xff\xfe\n",
    encode("hello", **{**HELLO, "proof": "\ud800", "agreed": AGREED}),
    encode("hello", **{**HELLO, "proof": "", "asked_rank": True}),
]


def test_garbage_on_the_port_disturbs_nobody(hub, link):
    port = hub()
    strangers = []
    for data in GARBAGE:
        strangers.append(socket.create_connection(("127.0.0.1", port)))
        strangers[-1].sendall(data)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    first, second = link(port), link(port)
    start_all(first, second)
    for one in (*strangers, *silent):
        one.close()
    first.send("done")
    second.send("done")
    assert answer(first, "finish") and answer(second, "finish")


def test_a_member_that_sends_garbage_is_lost(hub, link):
    port = hub()
    first, second = link(port, name="first"), link(port, name="second")
    start_all(first, second)
    second.send("signal", number=99)
    assert "second (node rank 1) was lost: it sent what no launcher sends" in answer(first, "stop")["cause"]


def test_a_silent_machine_is_lost_on_both_sides(hub, link, monkeypatch):
    port = hub(silence=1.5)
    first, second = link(port, name="first"), link(port, 1.0, name="second")
    start_all(first, second)
    monkeypatch.setattr(second, "send", lambda *words, **named: None)  # what it sends no longer arrives
    stop = answer(first, "stop")
    assert "second (node rank 1) was lost: nothing was heard from it" in stop["cause"]
    with greeting(encode("hub", protocol=messages.PROTOCOL, nonce="1")) as silent:
        lonely = link(silent, silence=1.0)
        wait_until(lambda: lonely.lost is not None)
    assert lonely.lost == "nothing was heard from it for 1 s"


@contextlib.contextmanager
def greeting(data):
    """Gives a port on which something listens that sends these bytes once, and then nothing."""
    connections = []

    def serve():
        connections.append(listener.accept()[0])
        connections[0].sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()
            for connection in connections:
                connection.close()


def test_the_earliest_failure_is_the_cause_whoever_reports_first(hub, link):
    port = hub()
    first, second = link(port), link(port)
    start_all(first, second)
    first.send("failed", cause="lost its peer", tail=[], ago=0.1, tail_is_reason=True, is_mistake=False)
    second.send("failed", cause="the disk is full", tail=["No space\n"], ago=0.3, tail_is_reason=True, is_mistake=False)
    assert [answer(one, "stop")["cause"] for one in (first, second)] == [
        "the disk is full; all ranks of all machines were stopped"
    ] * 2


def test_machines_are_numbered_by_their_names_and_keep_their_numbers(hub, link):
    port = hub(restarts=1)
    links = {name: link(port, name=name, asked_rank=rank) for name, rank in (("zeta", None), ("alpha", None))}
    for one in links.values():
        one.send("ready", **READY)
    assert {name: answer(one, "start")["node_rank"] for name, one in links.items()} == {"alpha": 0, "zeta": 1}
    links["zeta"].close()
    assert answer(links["alpha"], "stop")["again"]
    links["alpha"].send("ready", **{**READY, "attempt": 1})
    again = link(port, name="zeta")
    again.send("ready", **READY)
    start = answer(again, "start")
    assert (start["node_rank"], start["attempt"]) == (1, 1)


def test_a_port_of_another_program_is_reported():
    refused = pytest.raises(OtherProgramError, match="a program that is not plsc listens there")
    with greeting(b"SSH-2.0-OpenSSH_9.2\r\n") as port, refused:
        Link("127.0.0.1", port, HELLO)


def test_messages_may_come_in_any_pieces():
    data = encode("note", text="ä") + encode("alive")
    lines = Lines(100)
    found = [message for byte in data for message in lines.feed(bytes([byte]))]
    assert found == [{"kind": "note", "text": "ä"}, {"kind": "alive"}]
    with pytest.raises(GarbageError):
        lines.feed(b"x" * 101)


# What the command line and the environment say.

SLURM = {"SLURM_NODEID": "1", "SLURM_NNODES": "2", "SLURM_JOB_ID": "42", "SLURM_STEP_NODELIST": "gpu[03-04]"}


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, None),
        ({"SLURM_NODEID": "1"}, None),
        (SLURM, Cluster("Slurm", 1, 2, "gpu03:20042")),
        ({**SLURM, "SLURM_STEP_NODELIST": "login,gpu7"}, Cluster("Slurm", 1, 2, "login:20042")),
        ({**SLURM, "SLURM_STEP_NODELIST": "r[1-2]c[08,09]-ib,x"}, Cluster("Slurm", 1, 2, "r1c08-ib:20042")),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, Cluster("Slurm", 1, 2, "gpu03:20042")),
        (
            {**SLURM, "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            Cluster("Open MPI", 3, 4),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, Cluster("MPICH", 0, 2)),
        ({"JOB_COMPLETION_INDEX": "5"}, Cluster("a Kubernetes Indexed Job", 5)),
    ],
)
def test_the_environment_of_a_cluster_names_the_machine(variables, expected):
    assert read_cluster(variables) == expected


@pytest.mark.parametrize(
    "variables, reason",
    [
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1,4"}, "Slurm has started 4 launchers on this machine; start one"),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"},
            "has started 8 launchers on this machine; start one on each, with mpirun --npernode 1",
        ),
        ({"JOB_COMPLETION_INDEX": "9" * 5000}, "'9+... in the environment is not a number; unset it"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x999999999)," * 9999}, "Slurm has started 2 launchers"),
        ({"JOB_COMPLETION_INDEX": "x"}, "'x' in the environment is not a number; unset it, and give --node-rank"),
        (
            {**SLURM, "SLURM_NNODES": "x"},
            "SLURM_NNODES='x' in the environment is not a number; unset it, and give --nnodes",
        ),
        ({**SLURM, "SLURM_NODEID": "7"}, r"SLURM_NODEID=7 in .* numbers of 2 machines \(SLURM_NNODES\) are 0 to 1"),
    ],
)
def test_a_cluster_that_is_used_the_wrong_way_is_reported(variables, reason):
    with pytest.raises(ConfigError, match=reason):
        read_cluster(variables)


@pytest.mark.parametrize(
    "options, variables, reason",
    [
        (["--nnodes", "2"], {}, "several machines need --master host:port"),
        (["--nnodes", "auto"], {}, "neither Slurm nor MPI has started plsc"),
        (["--nnodes", "auto"], {"JOB_COMPLETION_INDEX": "0"}, "a Kubernetes Indexed Job does not tell it"),
        (["--master", "a:1"], {}, "--master is for several machines; give their number with --nnodes"),
        (["--nnodes", "2", "--master", "a:1", "--node-rank", "2"], {}, "the numbers of 2 machines are 0 to 1"),
        (["--nnodes", "2", "--master", "127.0.0.1:1", "--interface", "no"], {}, "has no such interface; it has lo"),
        (["--nnodes", "2", "--master", "no.invalid:1", "--wait", "1"], {}, "no.invalid has no IPv4 address here"),
        (["--ranks", "60000"], {}, "--ranks 60000: so many processes need 7.8 TB for Paddle alone"),
    ],
)
def test_options_that_cannot_work_are_one_line(tmp_path, monkeypatch, capsys, options, variables, reason):
    for name in ("SLURM_NODEID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "train.py").write_text("")
    assert main(["run", *options, str(tmp_path / "train.py")]) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "::1:5", "host:1x", "host:²"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="write host:port"):
        parse_address(text)


def test_the_interface_is_that_of_the_route():
    assert parse_address("master.example:29500") == ("master.example", 29500)
    assert (address_towards("127.0.0.1"), interface_of("127.0.0.1"), interface_of("192.0.2.1")) == (
        "127.0.0.1",
        "lo",
        None,
    )


# Machines with a network, a disk, process ids and a host name of their own.


@pytest.fixture
def network(tmp_path):
    """Two machines at one switch."""
    if reason_to_skip():
        pytest.skip(reason_to_skip())
    (tmp_path / "network").mkdir()
    with Network(tmp_path / "network", ["machine-b", "machine-a"]) as made:
        yield made


def start_on(machine, master, *words):
    """Starts the one command of a run on a machine."""
    return machine.start("run", "--nnodes", 2, "--master", f"{master.address}:29500", *words)


def same_on_disks(network, straight):
    """Returns whether the disks hold together, to the bit, the checkpoint of a run on one machine."""
    parts = [path for machine in network.machines for path in machine.disk.glob(f"o/{straight.name}/*.safetensors")]
    for path in parts:
        tensors, others = load_file(path), load_file(straight / path.name)
        if tensors.keys() != others.keys() or any((tensors[name] != others[name]).any() for name in tensors):
            return False
    return {path.name for path in parts} == {path.name for path in straight.glob("*.safetensors")}


TRAINING = ("train_epochs=2", "train_batch_size=4", "with_test=false", "save_period=3", "--dropout=0.2")


def test_two_machines_with_two_ranks_each_end_like_one_with_four(network, glyphs, tmp_path):
    run_ranks("train_glyphs.py", 4, glyphs, tmp_path / "o", *TRAINING)
    words = ("--ranks", 2, HELPERS / "train_glyphs.py", glyphs, network.disk / "o", *TRAINING)
    programs = [start_on(machine, network.machines[0], *words) for machine in network.machines]
    assert [program.wait() for program in programs] == [0, 0]
    assert "plsc: machine-b has node rank 0 among 2 machines, with ranks 0 to 1" in programs[0].text
    assert programs[1].lines == [
        f"plsc: starting 2 ranks of {HELPERS / 'train_glyphs.py'}",
        "plsc: machine-a has node rank 1 among 2 machines, with ranks 2 to 3; rank 0 writes on machine-b",
    ]
    assert same_on_disks(network, tmp_path / "o" / "1")


def test_a_machine_that_is_killed_and_returns_resumes_to_the_bit(network, glyphs, tmp_path):
    run_ranks("train_glyphs.py", 2, glyphs, tmp_path / "o", *TRAINING)
    training = (*TRAINING, "log_period=1", "--pause=0.1")
    words = ("--restarts", 1, HELPERS / "train_glyphs.py", glyphs, network.disk / "o", *training)
    master, other = (start_on(machine, network.machines[0], *words) for machine in network.machines)
    master.wait_for("/o/step_6")
    other.kill()
    began = time.monotonic()
    master.wait_for("machine-a (node rank 1) was lost")
    assert time.monotonic() - began < 30
    other = start_on(network.machines[1], network.machines[0], *words)
    assert [master.wait(), other.wait()] == [0, 0]
    assert "resumed from" in master.text, master.text
    assert same_on_disks(network, tmp_path / "o" / "1")


RANK = """import os, socket, sys, time
rank = os.environ['PADDLE_TRAINER_ID']
assert os.environ['GLOO_SOCKET_IFNAME'] == os.environ['NCCL_SOCKET_IFNAME'] == 'eth7'
print(f'rank {rank} runs', file=sys.stderr, flush=True)
time.sleep(float(sys.argv[1]))
"""


def test_a_cable_that_is_cut_for_ten_seconds_disturbs_nobody(network, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    programs = [start_on(machine, network.machines[0], tmp_path / "rank.py", 12) for machine in network.machines]
    programs[0].wait_for("rank 0 runs")
    network.machines[1].cut_cable()
    time.sleep(10)
    network.machines[1].mend_cable()
    assert [program.wait() for program in programs] == [0, 0]


def test_the_master_s_own_name_may_mean_the_loopback_interface(network, tmp_path):
    """Debian gives it 127.0.1.1; the other machines need an address that they can reach."""
    (tmp_path / "rank.py").write_text(RANK)
    master, other = network.machines
    programs = [
        master.start("run", "--nnodes", 2, "--master", "127.0.1.1:29500", "--node-rank", 0, tmp_path / "rank.py", 0),
        other.start("run", "--nnodes", 2, "--master", f"{master.address}:29500", tmp_path / "rank.py", 0),
    ]
    assert [program.wait() for program in programs] == [0, 0], programs[0].text + programs[1].text
