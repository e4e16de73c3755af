"""Copies of the state, from tensors in host memory and, as far as that can be tried here, on a device."""

import tracemalloc

import numpy as np
import paddle
import pytest

from plsc.checkpoint import host_array, snapshot
from plsc.checkpoint.tensor_file import Stream, write_tensors
from plsc.machine.bfloat16 import BFLOAT16, floats_of_bfloat16

pytestmark = pytest.mark.core


def tensors():
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(1000, 7)).astype("float32"),
        "vector": rng.integers(0, 9, 11),
        "number": np.float32(3.5),
        "flags": np.array([True, False]),
        "double": rng.normal(size=(2, 3, 4)),
    }
    made = {name: paddle.to_tensor(array) for name, array in arrays.items()}
    return {**made, "low": made["matrix"].astype("bfloat16")}


@pytest.fixture
def on_a_device(monkeypatch):
    """Has all tensors treated as if they were on a GPU, and copied about a hundred rows at a time."""
    monkeypatch.setattr(snapshot, "_is_on_host", lambda tensor: False)
    monkeypatch.setattr(snapshot, "_PART_BYTES", 2800)


def test_tensors_of_a_device_are_copied_in_parts(on_a_device, tmp_path):
    found = {name: host_array(tensor) for name, tensor in tensors().items()}
    assert all(isinstance(one, Stream) for one in found.values())
    assert [len(part) for part in found["matrix"].parts] == [100] * 10
    for name, copy in snapshot.Snapshot().take(found).items():
        expected = tensors()[name].numpy()
        expected = expected.view(BFLOAT16) if name == "low" else expected
        assert copy.dtype == expected.dtype and copy.shape == expected.shape
        np.testing.assert_array_equal(copy, expected)
    arrays = {name: tensor.numpy() for name, tensor in tensors().items()}
    plain = write_tensors(tmp_path / "plain", {**arrays, "low": arrays["low"].view(BFLOAT16)})
    assert write_tensors(tmp_path / "stream", found) == plain


def test_host_tensors_are_shared_also_in_bfloat16():
    tensor = paddle.ones([3])
    array = host_array(tensor)
    tensor.add_(paddle.ones([3]))
    assert array.tolist() == [2.0] * 3
    low = paddle.to_tensor([1.5, 2.5]).astype("bfloat16")
    shared = host_array(low)
    copies = snapshot.Snapshot().take({"low": shared})
    assert copies["low"].dtype == BFLOAT16 and floats_of_bfloat16(copies["low"]).tolist() == [1.5, 2.5]
    paddle.assign(paddle.to_tensor([0.5, 1.0]).astype("bfloat16"), low)
    assert floats_of_bfloat16(shared).tolist() == [0.5, 1.0]


class OnDevice:
    """A float32 tensor as a GPU would hold it: its values reach the host only as copies."""

    dtype = paddle.float32

    def __init__(self, array):
        self._array, self.shape, self.place = array, list(array.shape), self

    def is_cpu_place(self):
        return False

    def detach(self):
        return self

    def astype(self, dtype):
        return self

    def __getitem__(self, rows):
        return OnDevice(self._array[rows])

    def numpy(self):
        return self._array.copy()


def test_a_snapshot_of_a_device_takes_little_more_memory_than_the_state(monkeypatch):
    monkeypatch.setattr(snapshot, "_PART_BYTES", 1 << 20, raising=False)
    state = {str(number): OnDevice(np.ones((1 << 20, 1), "float32")) for number in range(4)}  # 4 MB each
    tracemalloc.start()
    try:
        copies = snapshot.Snapshot().take({name: host_array(tensor) for name, tensor in state.items()})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(copies) == 4 and peak < (16 + 3) << 20
