"""The device on which an exported network runs: what this machine has counts, not what Paddle was built for."""

import paddle
import pytest
from paddle import inference

from plsc.inference import runtime

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    "device, expected",
    [("cpu", ("disable_gpu",)), ("gpu:0", ("enable_use_gpu", 256, 0)), ("gpu:3", ("enable_use_gpu", 256, 3))],
)
def test_the_device_of_this_process_is_used(monkeypatch, tmp_path, device, expected):
    """A build for GPUs on a machine without one reports "cpu"."""
    calls = []

    class Stopped(Exception):
        pass

    def stop(config):
        raise Stopped

    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device, "get_device", lambda: device)
    monkeypatch.setattr(
        inference.Config, "enable_use_gpu", lambda config, *values: calls.append(("enable_use_gpu", *values))
    )
    monkeypatch.setattr(inference.Config, "disable_gpu", lambda config: calls.append(("disable_gpu",)))
    monkeypatch.setattr(inference, "create_predictor", stop)
    for name in ("net.pdmodel", "net.pdiparams"):
        (tmp_path / name).touch()
    with pytest.raises(Stopped):
        runtime.load_paddle(tmp_path / "net.pdmodel", tmp_path / "net.pdiparams")
    assert calls == [expected]
