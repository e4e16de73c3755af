"""Makes a model from one function, and tensors to run it on."""

import numpy as np
import paddle

from plsc.models.base_model import BaseModel


class FunctionModel(BaseModel):
    """A model whose `build_network` is `network(input, is_train)`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def build_network(self, input, label, is_train):
        return self.network(input, is_train)


def random_array(*shape, seed=0, positive=False):
    """Returns normal random numbers, or uniform ones in [0.5, 1.5)."""
    rng = np.random.default_rng(seed)
    return rng.random(shape) + 0.5 if positive else rng.normal(size=shape)


def to_tensors(*numbers):
    """Returns a float32 tensor for each argument."""
    tensors = [paddle.to_tensor(np.asarray(one, "float32")) for one in numbers]
    return tensors[0] if len(tensors) == 1 else tensors
