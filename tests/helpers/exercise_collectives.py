"""Calls every function of `plsc.parallel` on real ranks and checks what it returns.

`exercise_collectives.py OUTPUT` writes `<OUTPUT>/<rank>.json` with the names of the checks that passed on this rank.
A check that fails ends the rank with its traceback.
"""

import copy
import importlib
import json
import logging.handlers
import queue
import sys
import time
from pathlib import Path

import numpy as np
import paddle
from paddle.distributed import fleet

from plsc import parallel
from plsc.errors import ConfigError, DataError
from plsc.models.freezing import statistics_of
from plsc.parallel import collectives, meeting_place

RANK, RANKS = parallel.rank(), parallel.world_size()


def raised_by(action):
    """Returns the exception that `action` raises, or None."""
    try:
        action()
    except Exception as problem:
        return problem
    return None


def rows_of(rank, count):
    """Rows that differ between ranks: [count, 2] float32."""
    return (np.arange(2 * count, dtype="float32") + 100 * rank).reshape(count, 2)


def gathers_rows_also_uneven_and_empty_ones():
    for counts in ([2] * RANKS, [3, 1, 2][:RANKS], [0, 2, 1][:RANKS], [1, 0, 0][:RANKS], [0] * RANKS):
        gathered = parallel.all_gather_rows(paddle.to_tensor(rows_of(RANK, counts[RANK])), counts)
        expected = np.concatenate([rows_of(rank, count) for rank, count in enumerate(counts)])
        np.testing.assert_array_equal(gathered.numpy(), expected, err_msg=str(counts))


def gathers_arrays_of_any_length_in_pieces():
    for piece in (8, 1 << 20):
        collectives._PIECE_BYTES = piece
        for counts in ([2] * RANKS, [7, 1, 2][:RANKS], [0, 5, 1][:RANKS], [0] * RANKS):
            own = rows_of(RANK, counts[RANK]) if counts[RANK] else np.empty((0, 0), "float64")
            found = parallel.all_gather_arrays(own, "a test")
            for rank, array in enumerate(found):
                assert len(array) == counts[rank]
                if any(counts):
                    np.testing.assert_array_equal(array, rows_of(rank, counts[rank]))
                    assert array.dtype == "float32" or RANKS == 1


def gathers_objects_in_rank_order():
    values = parallel.all_gather_object({"rank": RANK, "text": "ä" * RANK}, "it")
    assert values == [{"rank": rank, "text": "ä" * rank} for rank in range(RANKS)]
    assert parallel.all_gather_object(None, "it") == [None] * RANKS


def sums_tensors_in_place():
    tensor = paddle.to_tensor(rows_of(RANK, 2))
    assert parallel.all_reduce_sum(tensor) is tensor
    np.testing.assert_array_equal(tensor.numpy(), sum(rows_of(rank, 2) for rank in range(RANKS)))


def starts_collectives_and_waits_for_them():
    own = rows_of(RANK, 2)
    summed, gathered = (
        parallel.start_all_reduce_sum(paddle.to_tensor(own)),
        parallel.start_all_gather(paddle.to_tensor(own)),
    )
    every = np.stack([rows_of(rank, 2) for rank in range(RANKS)])
    assert isinstance(summed, parallel.Pending) and isinstance(gathered, parallel.Pending)
    np.testing.assert_array_equal(summed.wait().numpy(), every.sum(axis=0))
    np.testing.assert_array_equal(gathered.wait().numpy(), every)
    turned = parallel.start_all_gather(paddle.to_tensor(own).T)  # its memory is not contiguous
    np.testing.assert_array_equal(turned.wait().numpy(), every.transpose(0, 2, 1))


def tells_all_ranks_when_one_of_them_is_affected():
    last = RANKS - 1
    assert parallel.any_rank(last == RANK, "it") is True
    assert parallel.any_rank(False, "it") is False and parallel.any_rank(True, "it") is True


def raises_the_error_of_one_rank_on_all():
    def act():
        if RANK == RANKS - 1:
            raise DataError(f"label.txt:3: rank {RANK} cannot read it")
        return RANK

    problem = raised_by(lambda: parallel.together(act, "it"))
    assert type(problem) is DataError and str(problem) == f"label.txt:3: rank {RANKS - 1} cannot read it"
    assert parallel.together(lambda: RANK, "it") == RANK

    def refuse():
        raise ConfigError(f"rank {RANK}")

    assert str(raised_by(lambda: parallel.together(refuse, "it"))) == "rank 0"  # the first of several


def acts_on_rank_0_alone():
    done = []
    assert parallel.from_rank_0(lambda: done.append(RANK) or f"by {RANK}", "it") == "by 0"
    assert done == ([0] if RANK == 0 else [])

    def refuse():
        raise ConfigError("rank 0 has no such folder")

    problem = raised_by(lambda: parallel.from_rank_0(refuse, "it"))
    assert type(problem) is ConfigError and str(problem) == "rank 0 has no such folder"


def waits_for_all_ranks_at_a_meeting(output):
    (output / f"arrived_{RANK}").touch()
    parallel.meet("it")
    assert len(list(output.glob("arrived_*"))) == RANKS


def waits_for_a_rank_that_works_for_longer_than_for_one_that_is_silent():
    last = RANKS - 1
    importlib.import_module("plsc.parallel.action")._SIGN_SECONDS = 0.1
    meeting_place._REMINDER_SECONDS, records = 0.2, queue.SimpleQueue()
    shown = logging.handlers.QueueHandler(records)
    logging.getLogger("plsc").addHandler(shown)
    with parallel.action(0.5):
        parallel.meet("the work")
        if last == RANK and RANKS > 1:
            with parallel.working():
                logging.getLogger("plsc").warning("the disk\nis slow")
                time.sleep(2)
        elif RANK == 0 and RANKS > 1:
            while parallel.silence_of_others() > 0.4:
                time.sleep(0.01)
        parallel.meet("the end of the work")
    logging.getLogger("plsc").removeHandler(shown)
    if RANK == 0 and RANKS > 1:
        lines = [records.get().getMessage() for _ in range(records.qsize())]
        assert any(f"the end of the work; rank {last} says: the disk is slow" in line for line in lines), lines
    assert (parallel.silence_of_others() < 10) == (RANK == 0 and RANKS > 1)


def gives_every_rank_the_statistics_of_rank_0():
    norm = paddle.nn.BatchNorm1D(3)
    norm._mean.set_value(paddle.full([3], 1.0 + RANK))
    norm.weight.set_value(paddle.full([3], 5.0 + RANK))
    parallel.broadcast_statistics(statistics_of(norm))
    assert norm._mean.numpy().tolist() == [1.0] * 3
    assert norm.weight.numpy().tolist() == [5.0 + RANK] * 3, "trained parameters stay as they are"


def gradients_of(model, wrapper, images, without_sync=False):
    """The gradients after a backward pass that leaves those of earlier passes in place."""
    if without_sync:
        with parallel.without_gradient_sync(wrapper):
            wrapper(images).sum().backward()
    else:
        wrapper(images).sum().backward()
    return model.weight.grad.numpy()[:, 0]


def averages_gradients_over_the_ranks():
    model = paddle.nn.Linear(2, 1)
    model.weight.set_value(paddle.full([2, 1], 7.0 + RANK))
    wrapper = parallel.distributed_model(model, find_unused_parameters=False)
    assert (wrapper is model) == (RANKS == 1)
    assert model.weight.numpy().tolist() == [[7.0], [7.0]], "every rank begins with the weights of rank 0"
    images = [paddle.full([1, 2], 1.0 + rank) for rank in range(RANKS)]
    mean = float(np.mean([1.0 + rank for rank in range(RANKS)]))
    np.testing.assert_allclose(gradients_of(model, wrapper, images[RANK]), [mean, mean], rtol=1e-6)
    model.clear_gradients()
    # Accumulation: the first batch adds to this rank's gradients only, the second one averages their sum.
    own = gradients_of(model, wrapper, images[RANK], without_sync=True)
    np.testing.assert_allclose(own, [1.0 + RANK] * 2, rtol=1e-6)
    np.testing.assert_allclose(gradients_of(model, wrapper, images[RANK]), [2 * mean] * 2, rtol=1e-6)
    model.clear_gradients()


def wraps_a_model_once_for_each_choice_of_trained_parameters():
    model = paddle.nn.Linear(2, 1)
    wrapper = parallel.distributed_model(model, find_unused_parameters=False)
    model.weight.set_value(paddle.full([2, 1], 3.0 + RANK))
    assert parallel.distributed_model(model, find_unused_parameters=False) is wrapper
    expected = [[3.0], [3.0]] if RANKS > 1 else [[3.0 + RANK]] * 2
    assert model.weight.numpy().tolist() == expected, "a second training begins with the weights of rank 0 too"
    images = paddle.full([1, 2], 1.0 + RANK)
    mean = float(np.mean([1.0 + rank for rank in range(RANKS)]))
    wrapper(images)  # without a backward pass, as in a step that is skipped
    for frozen in (True, False, True):
        model.bias.stop_gradient = frozen
        now = parallel.distributed_model(model, find_unused_parameters=False)
        assert RANKS == 1 or (now is wrapper) == (not frozen)
        np.testing.assert_allclose(gradients_of(model, now, images), [mean, mean], rtol=1e-6)
        assert frozen == (model.bias.grad is None)
        assert parallel.distributed_model(model, find_unused_parameters=False) is now
        for parameter in model.parameters():
            parameter.clear_gradient(False)
        now(images)


def waits_for_no_gradient_of_unused_layers():
    class HalfUsed(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.used, self.unused = paddle.nn.Linear(2, 1), paddle.nn.Linear(2, 1)

        def forward(self, images):
            return self.used(images)

    model = HalfUsed()
    wrapper = parallel.distributed_model(model, find_unused_parameters=True)
    wrapper(paddle.full([1, 2], 1.0 + RANK)).sum().backward()
    mean = float(np.mean([1.0 + rank for rank in range(RANKS)]))
    np.testing.assert_allclose(model.used.weight.grad.numpy()[:, 0], [mean, mean], rtol=1e-6)


def trained_state(model, wrapper):
    """The weights and statistics after three steps on images that differ between ranks."""
    optimizer = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
    generator = np.random.default_rng(RANK)
    for _ in range(3):
        images = paddle.to_tensor(generator.normal(size=(5, 3, 8, 8)).astype("float32"))
        wrapper(images).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def trains_to_the_bit_as_paddle_does_without_fleet():
    paddle.seed(0)
    of_paddle = paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 8, 3), paddle.nn.BatchNorm2D(8), paddle.nn.Flatten(), paddle.nn.Linear(288, 4)
    )
    of_fleet = copy.deepcopy(of_paddle)
    expected = trained_state(of_paddle, paddle.DataParallel(of_paddle) if RANKS > 1 else of_paddle)
    found = trained_state(of_fleet, parallel.distributed_model(of_fleet, find_unused_parameters=False))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def averages_gradients_as_the_strategy_says():
    strategy = fleet.DistributedStrategy()
    strategy.fuse_grad_size_in_MB, strategy.last_comm_group_size_MB, strategy.find_unused_parameters = 16, 0.5, True
    strategy = parallel.check_strategy("set_strategy", strategy)
    model = paddle.nn.Linear(2, 1)
    wrapper = parallel.distributed_model(model, False, strategy)
    problem = raised_by(lambda: parallel.distributed_model(model, False))
    assert parallel.distributed_model(model, False, strategy) is wrapper
    if RANKS == 1:
        assert wrapper is model and problem is None
        return
    assert (wrapper.comm_buffer_size, wrapper.last_comm_buffer_size) == (16 << 20, 1 << 19)
    assert wrapper.find_unused_parameters
    assert (
        type(problem) is ConfigError and "fuse_grad_size_in_MB=16" in str(problem) and "copy.deepcopy" in str(problem)
    )
    other = parallel.distributed_model(paddle.nn.Linear(2, 1), False)
    assert (other.comm_buffer_size, other.last_comm_buffer_size) == (25 << 20, 1 << 20), "a strategy is of one training"


def gives_every_rank_the_weights_of_a_frozen_model():
    model = paddle.nn.Linear(2, 1)
    for parameter in model.parameters():
        parameter.stop_gradient = True
    model.weight.set_value(paddle.full([2, 1], 3.0 + RANK))
    for _ in range(2):
        wrapper = parallel.distributed_model(model, find_unused_parameters=False)
        assert wrapper is model
    assert model.weight.numpy().tolist() == [[3.0 + (RANK if RANKS == 1 else 0)]] * 2
    with parallel.without_gradient_sync(wrapper):
        wrapper(paddle.ones([1, 2]))


CHECKS = (
    gathers_rows_also_uneven_and_empty_ones,
    gathers_arrays_of_any_length_in_pieces,
    gathers_objects_in_rank_order,
    sums_tensors_in_place,
    starts_collectives_and_waits_for_them,
    tells_all_ranks_when_one_of_them_is_affected,
    raises_the_error_of_one_rank_on_all,
    acts_on_rank_0_alone,
    waits_for_a_rank_that_works_for_longer_than_for_one_that_is_silent,
    gives_every_rank_the_statistics_of_rank_0,
    averages_gradients_over_the_ranks,
    wraps_a_model_once_for_each_choice_of_trained_parameters,
    waits_for_no_gradient_of_unused_layers,
    trains_to_the_bit_as_paddle_does_without_fleet,
    averages_gradients_as_the_strategy_says,
    gives_every_rank_the_weights_of_a_frozen_model,
)


def main(output):
    parallel.initialise()
    parallel.initialise()  # joining a second time changes nothing
    waits_for_all_ranks_at_a_meeting(output)
    for check in CHECKS:
        check()
    found = {"rank": RANK, "ranks": RANKS, "passed": [check.__name__ for check in CHECKS]}
    (output / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
