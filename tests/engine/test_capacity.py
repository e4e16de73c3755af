"""What is refused because it cannot fit into the memory of this machine."""

import paddle
import pytest

from plsc import Entry, parallel
from plsc.config import Config
from plsc.engine import capacity
from plsc.errors import ConfigError, TrainingError
from plsc.machine import memory

GB = 10**9


@pytest.mark.parametrize(
    "classes, ranks, here, settings, needed",
    [
        (10**6, 1, None, {}, 2 * 4 * 512 * 10**6),
        (10**6, 1, None, {"loss_type": "softmax"}, 2 * 4 * 513 * 10**6),
        (10**6, 1, None, {"loss_type": "softmax", "bias_attr": False}, 2 * 4 * 512 * 10**6),
        (10**6, 1, None, {"optimizer": lambda parameters: None}, 4 * 512 * 10**6),
        (10**6, 4, "4", {}, 2 * 4 * 512 * 10**6),  # four ranks share the classes and the machine
        (10**6, 4, "2", {}, 2 * 4 * 512 * 10**6 // 2),
        (10**6, 4, None, {}, 2 * 4 * 512 * 10**6 // 4),  # nobody knows how many ranks are here
        (10**6, 2, "2", {"loss_type": "arcface"}, 2 * 4 * 512 * 10**6 * 2),
    ],
)
def test_only_what_surely_does_not_fit_is_refused(monkeypatch, classes, ranks, here, settings, needed):
    config = Config(num_classes=classes, **{"emb_dim": 512, **settings})
    monkeypatch.setattr(parallel, "world_size", lambda: ranks)
    monkeypatch.setattr(parallel, "together", lambda action, what: action())
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", here or "")
    monkeypatch.setattr(capacity, "memory_limit", lambda: needed)
    capacity.check_head_fits(config)
    monkeypatch.setattr(capacity, "memory_limit", lambda: needed - 1)
    with pytest.raises(ConfigError, match=rf"set_class_num\({classes}\): the class centres.*at most .* classes"):
        capacity.check_head_fits(config)
    monkeypatch.setattr(capacity, "memory_limit", lambda: None)
    capacity.check_head_fits(config)
    monkeypatch.setattr(capacity, "memory_limit", lambda: 1)
    monkeypatch.setattr(parallel, "on_cpu", lambda: False)
    capacity.check_head_fits(config)


@pytest.mark.parametrize(
    "loss, advice", [("dist_arcface", "at least [0-9,]+ such machines"), ("softmax", "choose 'dist_softmax'")]
)
def test_two_billion_classes_are_refused_before_anything_is_allocated(loss, advice):
    ins = Entry()
    ins.set_class_num(2 * 10**9)
    ins.set_loss_type(loss)
    ins.set_model(paddle.nn.Flatten())
    ins.set_model_save_dir(None)
    ins.train_reader = [[]]
    with pytest.raises(ConfigError, match=f"set_class_num.2000000000.*{advice}"):
        ins.train()


def test_a_machine_reports_its_memory_and_a_control_group_its_limit(monkeypatch):
    assert memory.memory_limit() > GB
    numbers = {"/sys/fs/cgroup/memory.max": 2 * GB, "/sys/fs/cgroup/memory.swap.max": GB}
    monkeypatch.setattr(memory, "_number", numbers.get)
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 * GB)
    monkeypatch.setattr(memory, "_field", lambda path, name: {"SwapTotal": GB}[name])
    assert memory.memory_limit() == memory.usable_memory() == 3 * GB
    numbers.pop("/sys/fs/cgroup/memory.swap.max")  # which has no limit, as "max" says
    assert (memory.memory_limit(), memory.usable_memory()) == (9 * GB, 8 * GB)
    numbers["/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"] = 4 * GB
    assert memory.memory_limit() == 4 * GB


@pytest.mark.parametrize(
    "error, words",
    [
        (
            MemoryError("Unable to allocate 72.8 TiB for an array"),
            r"is not enough \(Unable to allocate 72.8 TiB for an",
        ),
        (
            MemoryError("ResourceExhausted:\n  Out of memory error on GPU 0.\n  more"),
            r"\(Out of memory error on GPU 0.\)",
        ),
        (MemoryError(), "is not enough; use less"),
    ],
)
def test_a_lack_of_memory_is_one_line(error, words):
    with pytest.raises(TrainingError, match=words) as caught, memory.out_of_memory_as("use less"):
        raise error
    assert "\n" not in str(caught.value)
