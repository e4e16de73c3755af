"""Where the ranks compute, and what they talk through, by the devices that Paddle finds."""

import os

import paddle
import pytest

from plsc.errors import ConfigError
from plsc.parallel import rank, start

NAMES = ("PADDLE_DISTRI_BACKEND", "FLAGS_selected_gpus", "PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID")


def choose_backend(monkeypatch, gpus, *values):
    """The backend after a start where Paddle finds `gpus` GPUs (None for a build that can use none)."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: gpus is not None)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: gpus or 0)
    for name, value in zip(NAMES, values):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    start._choose_backend()
    return os.environ.get("PADDLE_DISTRI_BACKEND")


@pytest.mark.parametrize(
    ("gpus", "backend", "selected", "ranks", "expected"),
    [
        (None, None, "0", "2", "gloo"),  # a build for CPUs
        (0, None, "0", "2", "gloo"),  # a build for GPUs on a machine without one
        (0, "auto", "0", "2", "gloo"),
        (0, None, None, None, "gloo"),  # one process, without a launcher
        (0, "bkcl", "0", "2", "bkcl"),  # devices of other kinds are the user's choice
        (2, None, "1", "2", None),  # Paddle itself chooses nccl
        (2, None, None, None, None),
        (2, "nccl", "1", "2", "nccl"),
        (2, "gloo", "5", "8", "gloo"),  # any number of ranks can share the CPUs
        (4, None, "3", "2", None),  # two ranks on GPUs that the user chose
        (1, None, "0", "8", None),  # each rank sees one GPU of its own
    ],
)
def test_the_backend_follows_the_devices_that_are_found(monkeypatch, gpus, backend, selected, ranks, expected):
    assert choose_backend(monkeypatch, gpus, backend, selected, ranks, "1") == expected


@pytest.mark.parametrize(
    ("gpus", "backend", "selected", "words"),
    [
        (2, None, "2", r"rank 2: FLAGS_selected_gpus is '2', but Paddle finds 2 GPU\(s\).*start at most 2 rank\(s\)"),
        (2, "nccl", "7,0", "FLAGS_selected_gpus is '7'"),
        (2, None, "", "FLAGS_selected_gpus is ''"),
        (2, None, "cuda", "FLAGS_selected_gpus is 'cuda'"),
        (0, "nccl", "0", "PADDLE_DISTRI_BACKEND is nccl, but Paddle finds no GPU on this machine"),
    ],
)
def test_a_gpu_that_is_missing_is_named_in_one_line(monkeypatch, gpus, backend, selected, words):
    with pytest.raises(ConfigError, match=words) as problem:
        choose_backend(monkeypatch, gpus, backend, selected, "4", "2")
    assert "\n" not in str(problem.value)


def test_a_script_that_joins_the_ranks_in_an_older_way_is_refused(monkeypatch):
    monkeypatch.setattr(start.fleet, "init", lambda **options: None)
    with pytest.raises(ConfigError, match="leave the call out, because plsc joins the ranks, or set PADDLE_DISTRI_BAC"):
        start.initialise_fleet(start.Averaging())


@pytest.mark.parametrize(
    ("number", "ranks", "name"),
    [("x", "2", "_ID"), ("2", "2", "_ID"), ("-1", "2", "_ID"), ("0", "0", "S_NUM"), ("0", "9" * 5000, "S_NUM")],
)
def test_a_rank_that_is_none_is_refused_in_one_line(number, ranks, name, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINER_ID", number)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", ranks)
    with pytest.raises(ConfigError, match=f"^PADDLE_TRAINER{name}=.* in the environment is not an integer"):
        rank()
