"""Makes from the settings what a training or a test works with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

import paddle

from plsc import parallel
from plsc.config import Config
from plsc.data.loader import ImageLoader
from plsc.data.pair_sets import of_verification
from plsc.data.readers import ReaderLoader
from plsc.data.sources import open_images
from plsc.data.test_sets import EvaluationSet, find_sets, read_gallery
from plsc.data.verification import VerificationSet
from plsc.errors import ConfigError
from plsc.evaluation.evaluator import Evaluator
from plsc.heads import ClassifierHead, build_head
from plsc.models import build_model
from plsc.models.base_model import build


def build_loader(config: Config) -> Union[ImageLoader, ReaderLoader]:
    """The user's reader, or the images of the data set folder."""
    if config.train_reader is not None:
        return ReaderLoader(
            "train_reader",
            config.train_reader,
            config.image_shape,
            config.num_classes,
            config.train_image_num,
            config.train_batch_size,
            config.seed,
            parallel.rank(),
            parallel.world_size(),
        )
    rank, world_size = parallel.rank(), parallel.world_size()
    return ImageLoader(
        open_images(config.dataset_dir, config.num_classes, rank, world_size, config.data_format, config.shuffle),
        config.image_shape,
        config.train_batch_size,
        config.augmentation,
        config.seed,
        config.num_workers,
        rank,
        world_size,
    )


def build_evaluator(config: Config, kept_dir: Optional[Path] = None) -> Evaluator:
    """On `test_reader`, or else on the sets named by `val_targets`; and on the gallery and probes of `set_identification`.

    Args:
        kept_dir: see `Evaluator`.
    """
    sets, reader = [], None
    if config.test_reader is None:
        sets = find_sets(config.dataset_dir, config.val_targets, config.image_shape)
    else:
        sets, reader = given_test(config)
    if config.identification is not None:
        if reader is not None:
            raise ConfigError("set_identification, but test_reader gives the images of the test; leave one of them out")
        sets.append(read_gallery(*map(Path, config.identification)))
    if not sets and reader is None:
        raise ConfigError(
            "set_val_targets(''), so there is nothing to test on; name a set, or call set_with_test(False)"
        )
    pairs_dir = Path(config.model_save_dir) if config.model_save_dir else None
    return Evaluator(sets, reader, config, pairs_dir, kept_dir)


def given_test(config: Config) -> tuple[list[EvaluationSet], Optional[ReaderLoader]]:
    """`test_reader`: the sets that `plsc.utils.jpeg_reader.test` returns, or a reader of labelled images."""
    given = config.test_reader
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], (list, tuple)):
        sets = list(given[0])
        if sets and all(isinstance(one, VerificationSet) for one in sets):
            return [of_verification(one) for one in sets], None
    return [], reader_loader("test_reader", given, config, num_classes=1 << 62)


def reader_loader(name: str, reader: Any, config: Config, num_classes: Optional[int]) -> ReaderLoader:
    """A reader that is passed over once, in its own order."""
    return ReaderLoader(
        name,
        reader,
        config.image_shape,
        num_classes,
        None,
        config.test_batch_size,
        rank=parallel.rank(),
        world_size=parallel.world_size(),
    )


def build_backbone(config: Config) -> paddle.nn.Layer:
    """The user's model or the named one, with all its layers made and its embedding size checked."""
    model = config.model or build_model(config.model_name, config.emb_dim, config.image_shape)
    emb_dim = build(model, config.image_shape)
    if emb_dim != config.emb_dim:
        raise ConfigError(
            f"set_emb_size({config.emb_dim}), but {type(model).__name__} returns embeddings of {emb_dim}; make them agree"
        )
    return model


def build_classifier(config: Config) -> ClassifierHead:
    """This rank's class centres, fresh."""
    return build_head(
        config.loss_type,
        config.num_classes,
        config.emb_dim,
        config.margin_object or config.margin_of_loss(),
        scale=config.scale,
        sample_ratio=config.sample_ratio,
        seed=config.seed,
        param_attr=config.param_attr,
        bias_attr=config.bias_attr,
        chunk=config.head_chunk,
        compute_dtype=config.mixed_precision.dtype if config.mixed_precision.use_fp16 else "float32",
        simulate=config.mixed_precision.simulate,
    )
