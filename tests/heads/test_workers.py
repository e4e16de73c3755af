import time

import paddle
import pytest

from plsc.heads.workers import Workers

pytestmark = pytest.mark.core


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    return Workers()


def test_shares_are_contiguous_and_in_order(workers):
    assert workers.map(list, 7) == [[0, 1], [2, 3], [4, 5, 6]]
    assert workers.map(list, 2) == [[0], [1]]
    assert workers.map(list, 0) == [[]]


def test_an_error_in_a_thread_surfaces(workers):
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda share: 1 // (1 - share[0]), 2)


def test_shares_run_at_the_same_time(workers):
    met = []

    def meet(share):
        met.append(share[0])
        deadline = time.monotonic() + 20
        while len(met) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        return len(met)

    assert workers.map(meet, 3) == [3, 3, 3]


def test_no_gradient_mode_of_the_caller_is_not_the_threads(workers):
    # Why the walk sets it in each thread itself.
    with paddle.no_grad():
        assert all(workers.map(lambda share: paddle.is_grad_enabled(), 3))
