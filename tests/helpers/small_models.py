"""Built-in networks with few blocks, for speed: deeper ones consist of more of the same blocks."""

from unittest import mock

from plsc.models import build_model, mobilefacenet
from plsc.models.vit import ViT

ONCE_EACH = tuple((expansion, channels, 1, stride) for expansion, channels, _, stride in mobilefacenet.BOTTLENECKS)


def small_model(name, emb_dim, shape):
    """Builds a model by name: a ViT of two blocks, a MobileFaceNet with one block of each kind, others as they are."""
    if name == "ViT":
        return ViT(emb_dim, shape, blocks=2)
    with mock.patch.object(mobilefacenet, "BOTTLENECKS", ONCE_EACH):
        return build_model(name, emb_dim, shape)
