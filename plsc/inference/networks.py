"""What embeds a batch of images: a network that is being trained, or an exported one."""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path
from typing import Optional, Protocol

import numpy as np
import paddle

from plsc import parallel
from plsc.checkpoint import AVERAGE, BACKBONE, load_backbone, open_checkpoint
from plsc.config import Config
from plsc.data.pixels import IMAGE_RECORD
from plsc.errors import ConfigError
from plsc.inference.export_folder import Export, open_export
from plsc.inference.program import faster_run
from plsc.inference.runtime import Run
from plsc.layers.convolution import fast_convolutions
from plsc.models import MODEL_NAMES, build, build_model, is_built_in
from plsc.models.base_model import check_rows
from plsc.models.freezing import statistics_of
from plsc.models.modes import evaluating

_MANY = 1024  # images for which it pays to translate a network: that takes 1 to 6 s of CPU time.
_modes = threading.Lock()  # Networks of several threads may share layers, whose mode is set for each batch.


class Network(Protocol):
    """A function from batches of images to embeddings.

    Attributes:
        image_shape: Shape of one image, (C, H, W).
        emb_dim: Size of an embedding, D.
        model: The sha256 of the names and values of the trained network, also of the one that an export was made from;
            None for an export of an earlier version of plsc.
        export: The sha256 of the files of an export; None for a trained network.
    """

    image_shape: tuple[int, int, int]
    emb_dim: int

    @property
    def model(self) -> Optional[str]:
        """The sha256 of the names and values of the trained network; None where an export does not record it."""

    @property
    def export(self) -> Optional[str]:
        """The sha256 of the files of an export; None for a trained network."""

    def expect(self, count: int) -> None:
        """Prepares for embedding `count` images with the weights that the network has now."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Returns the embeddings [b, D] float32 of normalised images [b, C, H, W], b above 0."""


class TrainedNetwork:
    """A `Network` of a backbone that can be trained; it embeds in evaluation mode.

    All ranks create one together, and take over the running statistics of rank 0.

    Args:
        backbone: The backbone.
        config: Its `image_shape` and `emb_dim` are used.
        stays: Whether its weights stay as they are, so that it pays to translate it for many images.
    """

    export = None

    def __init__(self, backbone: paddle.nn.Layer, config: Config, stays: bool = False) -> None:
        self._backbone, self._stays = backbone, stays and is_built_in(backbone)
        self._run: Optional[Run] = None
        self.image_shape, self.emb_dim = config.image_shape, config.emb_dim
        parallel.broadcast_statistics(statistics_of(backbone))

    @functools.cached_property
    def model(self) -> str:
        """The sha256 of names and values, as they are when the property is first read."""
        return digest_of(self._backbone)

    @functools.cached_property
    def _faster_run(self) -> Optional[Run]:
        return faster_run(self._backbone, self.image_shape)

    def expect(self, count: int) -> None:
        """Prepares for embedding `count` images; see `Network.expect`."""
        self._run = self._faster_run if self._stays and count >= _MANY else None

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds a batch; see `Network.embed`."""
        if self._run is not None:
            return self._run(images)
        with _modes:
            return embed_batch(self._backbone, images)


class ExportedNetwork:
    """A `Network` that is loaded from the folder of an export.

    Args:
        folder: Folder of the export.

    Attributes:
        record: What the folder holds.
        images: What the export records about the images; see `Config.with_images_of`.

    Raises:
        ConfigError: The folder holds no export, or it cannot be run here.
    """

    def __init__(self, folder: Path) -> None:
        self.record = open_export(folder)
        self.model, self.export, self.images = self.record.network, self.record.digest, self.record.images
        self.image_shape, self.emb_dim = self.record.image_shape, self.record.emb_dim

    def expect(self, count: int) -> None:
        """Does nothing: an export is ready."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds a batch; see `Network.embed`."""
        return self.record.run(images)


def open_trained(folder: Path, weights: str = "average") -> Export:
    """Loads the network of a checkpoint as if it were an export in float32.

    Args:
        folder: The folder of the checkpoint, or `zoo:NAME`.
        weights: 'average' or 'plain'; see `load_backbone`.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ConfigError: Its model is not a built-in one.
    """
    source = open_checkpoint(folder, partial=True)
    meta, name = source.meta, source.meta["model"]
    if name not in MODEL_NAMES:
        raise ConfigError(
            f"{folder}: is a checkpoint of the custom model {name!r} and not an export; run plsc export --checkpoint "
            f"{folder} --model-from train.py:{name} --output net, and name net"
        )
    backbone = build_model(name, meta["emb_dim"], tuple(meta["image_shape"]))
    build(backbone, tuple(meta["image_shape"]))
    load_backbone(source, backbone, weights)
    files = [BACKBONE, AVERAGE] if weights == "average" and AVERAGE in source.files else [BACKBONE]

    def run(images: np.ndarray) -> np.ndarray:
        with _modes:
            return embed_batch(backbone, images)

    return Export(
        images={key: meta[key] for key in ("image_shape", *IMAGE_RECORD) if key in meta},
        emb_dim=meta["emb_dim"],
        precision="float32",
        digests=[source.files[name].sha256 for name in files],
        run=run,
        network=digest_of(backbone),
        class_names=meta.get("class_names", ()),
        checkpoint=folder,
    )


def digest_of(backbone: paddle.nn.Layer) -> str:
    """Returns the sha256 of the names and values of a network."""
    found = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value.numpy()).data)
    return found.hexdigest()


@paddle.no_grad()
def embed_batch(backbone: paddle.nn.Layer, images: np.ndarray) -> np.ndarray:
    """Embeds a batch in evaluation mode, normalised images [b, C, H, W] -> embeddings [b, D] float32.

    Raises:
        ConfigError: The backbone does not return one embedding for each image.
    """
    with fast_convolutions(), evaluating(backbone):
        embedding = backbone(paddle.to_tensor(np.ascontiguousarray(images)))
    check_rows(backbone, embedding, len(images))
    return embedding.astype("float32").numpy()
