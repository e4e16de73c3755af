"""Ranks and collectives, on real processes: see tests/helpers/exercise_collectives.py for what each rank checks."""

import json

import exercise_collectives
import pytest

from plsc import parallel

pytestmark = pytest.mark.core


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_collective_gives_every_rank_what_it_promises(ranks, tmp_path, number):
    ranks("exercise_collectives.py", number, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(number)]
    checks = [check.__name__ for check in exercise_collectives.CHECKS]
    assert found == [{"rank": rank, "ranks": number, "passed": checks} for rank in range(number)]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, [0, 1, False]),
        ({"PADDLE_TRAINER_ID": "5"}, [0, 1, False]),  # an id without a launcher's count of ranks means nothing
        ({"PADDLE_TRAINER_ID": "5", "PADDLE_TRAINERS_NUM": "7", "PLSC_RESTART": "1"}, [5, 7, True]),
    ],
)
def test_ranks_and_restarts_are_those_of_the_launcher(monkeypatch, variables, expected):
    for name in ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "PLSC_RESTART"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [parallel.rank(), parallel.world_size(), parallel.restarted()] == expected
