"""Backbones, which turn images into embeddings. They know nothing about ranks or losses."""

from __future__ import annotations

import paddle

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.models.base_model import BaseModel, build
from plsc.models.glyphnet import GlyphNet
from plsc.models.mobilefacenet import ArcFaceMobileFaceNet, MobileFaceNet
from plsc.models.resnet import DEPTHS, ResNet
from plsc.models.vit import ViT

__all__ = [
    "MODEL_NAMES",
    "BaseModel",
    "GlyphNet",
    "MobileFaceNet",
    "ResNet",
    "ViT",
    "build_backbone",
    "build_model",
    "is_built_in",
]

_RESNETS = {f"ResNet{layers}": layers for layers in DEPTHS}
_OTHERS = {"MobileFaceNet": MobileFaceNet, "ViT": ViT, "GlyphNet": GlyphNet}
# The networks of InsightFace's arcface_torch and of PLSC 2, to the letter, so that their weights fit.
_ARCFACE_EPSILON = 1e-5
_IRESNETS = {f"IResNet{layers}": layers for layers in (18, 34, 50, 100, 200)}
_MOBILE = {"MobileFaceNet_base": ((1, 4, 6, 2), 2), "MobileFaceNet_large": ((2, 8, 12, 4), 4)}
MODEL_NAMES = (*_RESNETS, *_OTHERS, *_IRESNETS, *_MOBILE)


def build_model(name: str, emb_dim: int, image_shape: tuple[int, int, int]) -> BaseModel:
    """Returns a new model.

    Args:
        name: One of `MODEL_NAMES`.
        emb_dim: Size of an embedding, D.
        image_shape: Shape of one image, (C, H, W).

    Raises:
        ConfigError: There is no such model, or the images are too small for it.
    """
    if name in _RESNETS:
        return ResNet(_RESNETS[name], emb_dim, image_shape)
    if name in _OTHERS:
        return _OTHERS[name](emb_dim, image_shape)
    if name in _IRESNETS:
        return ResNet(_IRESNETS[name], emb_dim, image_shape, dropout=0.0, epsilon=_ARCFACE_EPSILON)
    if name in _MOBILE:
        blocks, scale = _MOBILE[name]
        return ArcFaceMobileFaceNet(emb_dim, image_shape, blocks, scale)
    raise ConfigError(f"set_model_name({name!r}): expected one of {', '.join(MODEL_NAMES)}")


def is_built_in(model: paddle.nn.Layer) -> bool:
    """Returns whether a model is one of those of this package, rather than a class of the user."""
    return type(model) in (ResNet, ArcFaceMobileFaceNet, *_OTHERS.values())


def build_backbone(config: Config) -> paddle.nn.Layer:
    """Returns the user's model or the one that `model_name` names, with all its layers made.

    Raises:
        ConfigError: The size of its embeddings is not the one that is set.
    """
    model = config.model or build_model(config.model_name, config.emb_dim, config.image_shape)
    emb_dim = build(model, config.image_shape)
    if emb_dim != config.emb_dim:
        raise ConfigError(
            f"set_emb_size({config.emb_dim}), but {type(model).__name__} returns embeddings of size {emb_dim}; make "
            "them agree"
        )
    return model
