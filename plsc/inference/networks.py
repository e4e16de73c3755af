"""What embeds a batch of images: the network that is trained, or an export of one."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Optional, Protocol

import numpy as np
import paddle

from plsc import parallel
from plsc.config import Config
from plsc.inference import runtime


class Network(Protocol):
    """Embeds batches.

    Attributes:
        image_shape: (C, H, W).
        emb_dim: D.
        model: the sha256 of the names and values of a network that can be trained; None of an export.
        export: the sha256 of the files of an export; None of a network that can be trained.
    """

    image_shape: tuple[int, int, int]
    emb_dim: int

    @property
    def model(self) -> Optional[str]:
        """See above."""

    @property
    def export(self) -> Optional[str]:
        """See above."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeddings [b, D] float32 of normalised images [b, C, H, W], b above 0."""


class Backbone:
    """A `Network` that can be trained; its embeddings are those of its evaluation mode.

    All ranks make one together: they get rank 0's statistics.
    """

    export = None

    def __init__(self, backbone: paddle.nn.Layer, config: Config) -> None:
        self._backbone = backbone
        self.image_shape, self.emb_dim = config.image_shape, config.emb_dim
        parallel.broadcast_statistics(backbone)

    @functools.cached_property
    def model(self) -> str:
        """Of the state as it is when it is first asked for."""
        found = hashlib.sha256()
        for name, value in sorted(self._backbone.state_dict().items()):
            found.update(f"{name} {value.dtype} {value.shape}\n".encode())
            found.update(np.ascontiguousarray(value.numpy()).data)
        return found.hexdigest()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See `Network`."""
        return embed_batch(self._backbone, images)


class Exported:
    """A `Network` out of the folder of an export.

    Raises:
        ConfigError: there is no export, or it cannot be run here.
    """

    model = None

    def __init__(self, folder: Path) -> None:
        export = runtime.open_export(folder)
        self.image_shape, self.emb_dim, self._run = export.image_shape, export.emb_dim, export.run
        self.export = hashlib.sha256("".join(export.digests).encode()).hexdigest()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See `Network`."""
        return self._run(images)


@paddle.no_grad()
def embed_batch(backbone: paddle.nn.Layer, images: np.ndarray) -> np.ndarray:
    """Embeddings [b, D] float32 of normalised images [b, C, H, W], in evaluation mode."""
    was_training = backbone.training
    backbone.eval()
    embedding = backbone(paddle.to_tensor(np.ascontiguousarray(images)))
    if was_training:
        backbone.train()
    return embedding.astype("float32").numpy()
