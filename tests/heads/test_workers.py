import time

import paddle
import pytest

from plsc.heads.workers import Workers

pytestmark = pytest.mark.core


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    return Workers()


def test_stretches_are_contiguous_and_in_order(workers):
    assert workers.map(list, 7) == [[0, 1], [2, 3], [4, 5, 6]]
    assert workers.map(list, 2) == [[0], [1]]
    assert workers.map(list, 0) == [[]]


def test_an_error_in_a_thread_surfaces(workers):
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda stretch: 1 // (1 - stretch[0]), 2)


def test_stretches_run_at_the_same_time(workers):
    met = []

    def meet(stretch):
        met.append(stretch[0])
        deadline = time.monotonic() + 60
        while len(met) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        return len(met)

    assert workers.map(meet, 3) == [3, 3, 3]


def test_threads_do_not_inherit_no_grad_from_the_caller(workers):
    # This is why the walk sets it in each thread itself.
    with paddle.no_grad():
        assert all(workers.map(lambda stretch: paddle.is_grad_enabled(), 3))
