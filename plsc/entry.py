"""`Entry`, the facade: its setters fill a `Config`, its actions hand the config to the engine."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import parallel
from plsc import settings as all_settings
from plsc.config import Config, check_bool, check_int
from plsc.data.readers import check_reader
from plsc.engine.callbacks import Callback
from plsc.engine.trainer import train
from plsc.errors import ConfigError
from plsc.evaluation import trained
from plsc.heads import Margin
from plsc.inference.classes import Answer
from plsc.machine import random_state
from plsc.machine.quiet_import import end_quietly
from plsc.machine.streams import open_closed_streams
from plsc.machine.uncaught import shorten_errors
from plsc.optim import OptimizerOrFactory
from plsc.storage.address import is_address

logger = logging.getLogger("plsc")


_ends_at_actions = False


class _ActionReachedError(BaseException):
    """A script has come to an action. It is no `Exception`, so that the script does not handle it."""


@contextlib.contextmanager
def ends_at_actions() -> Iterator[None]:
    """Leaves the `with` block at the first action of any `Entry`, for those who want a script's definitions alone."""
    global _ends_at_actions
    _ends_at_actions = True
    try:
        with contextlib.suppress(_ActionReachedError):
            yield
    finally:
        _ends_at_actions = False


class NoSuchNameError(ConfigError, AttributeError):
    """A method or attribute that `Entry` does not have."""


class Entry:
    """A classifier with very many classes, to be trained, tested and used.

    Setters check their argument at once, return None, and may be called in any order before an action. A setting that
    cannot work raises `ConfigError`, with one line that names the setter, the value and what is allowed.

    Args:
        settings: Settings that win over the setters, by the names of docs/settings.md, as `--set` and `--config` do.

    Raises:
        ConfigError: One of the settings cannot work.

    Example:
        >>> from plsc import Entry
        >>> entry = Entry()
        >>> entry.set_class_num(1000)
        >>> entry.set_dataset_dir("./glyphs")
        >>> entry.train()  # doctest: +SKIP
    """

    def __init__(self, *, settings: Optional[Mapping[str, Any]] = None) -> None:
        open_closed_streams()
        end_quietly()
        shorten_errors(parallel.report_end)
        self._config = Config()
        self._backbone: Optional[paddle.nn.Layer] = None
        self._last_checkpoint: Optional[str] = None
        self._model_seed: Optional[int] = None  # Paddle's seed when the model was set; None once it has been trained
        self._overridden: dict[str, bool] = {}  # lines for the log, and whether they are there already
        for source, given in all_settings.from_environment().items():
            all_settings.override_all(self._config, given, source)
        all_settings.override_all(self._config, {} if settings is None else settings, "settings")

    @property
    def train_batch_size(self) -> int:
        """The number of images that a rank takes in each batch."""
        return self._config.train_batch_size

    @train_batch_size.setter
    def train_batch_size(self, n: int) -> None:
        self.set_train_batch_size(n)

    @property
    def test_batch_size(self) -> int:
        """The number of images that a rank embeds at a time in tests and in `predict`."""
        return self._config.test_batch_size

    @test_batch_size.setter
    def test_batch_size(self, n: int) -> None:
        self.set_test_batch_size(n)

    @property
    def train_reader(self) -> Any:
        """Batches of `(image, label)` that replace the data set folder: see docs/custom.md for what is accepted."""
        return self._config.train_reader

    @train_reader.setter
    def train_reader(self, reader: Any) -> None:
        self._config.train_reader = None if reader is None else check_reader("train_reader", reader)

    @property
    def test_reader(self) -> Any:
        """Batches of `(image, label)`, or the result of `plsc.utils.jpeg_reader.test`, that replace the test sets."""
        return self._config.test_reader

    @test_reader.setter
    def test_reader(self, reader: Any) -> None:
        self._config.test_reader = None if reader is None else check_reader("test_reader", reader)

    @property
    def predict_reader(self) -> Any:
        """Batches of images, or of `(image, anything)`, for `predict`."""
        return self._config.predict_reader

    @predict_reader.setter
    def predict_reader(self, reader: Any) -> None:
        self._config.predict_reader = None if reader is None else check_reader("predict_reader", reader)

    def __setattr__(self, name: str, value: Any) -> None:
        # A misspelt reader would otherwise be kept and never read.
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            setter = all_settings.nearest_setter(name) or "a setter"
            raise ConfigError(
                f"Entry.{name} cannot be assigned; assign train_reader, test_reader, predict_reader, train_batch_size "
                f"or test_batch_size, or call {setter}"
            )
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Explains a name that does not exist; Python calls this method for no other.

        Raises:
            NoSuchNameError: Always.
        """
        own = [one for one in dir(type(self)) if not one.startswith("_")]
        alike = difflib.get_close_matches(name, own, 1, cutoff=0.8)
        setter = all_settings.nearest_setter(name) if name.startswith("set_") else None
        meant = setter or (alike[0] if alike else None)
        hint = f"did you mean {meant}?" if meant else "help(plsc.Entry) lists what it has"
        raise NoSuchNameError(f"Entry has no {name}; {hint}")

    def set_dataset_dir(
        self,
        directory: Union[str, Sequence[str]],
        heads: str = "merged",
        weights: Optional[Sequence[float]] = None,
        exclude: Optional[str] = None,
    ) -> None:
        """Sets the folder of the training images and the test sets.

        docs/data.md lists what it may hold. A file of many images can be named itself; test sets then lie next to it.

        Args:
            directory: The folder or the file; the address of data on HDFS or in an object store, such as
                `hdfs://host:port/path`, whose files `set_data_cache` keeps on this machine; or a list of several data
                sets, each of which is one of these, to train on all of them.
            heads: With several sets, 'merged' trains one head over all classes, of which those with the same name are
                the same class; 'separate' trains a head for each set.
            weights: With several sets, how much an image of each counts, such as [1, 0.5]: the images of merged sets
                are drawn this many times in an epoch, and the losses of separate heads are multiplied by it. None is 1
                for all of them.
            exclude: A text file that names images to leave out of training, one on each line, by their names in the
                data, such as paths relative to the folder; docs/data.md has the others. With several sets, the title of
                the set and a slash come before the name. `plsc data check`, `plsc data split` and `set_skip_damaged`
                write such lists. Classes keep their numbers.
        """
        self._set("dataset_dir", directory, heads=heads, weights=weights, exclude=exclude)

    def set_data_cache(self, directory: Optional[str], size: Union[str, int, None] = None) -> None:
        """Sets the folder of this machine that keeps the files of remote data, and how large it may become.

        The ranks of a machine share it, and so may several runs. Other files in it are left alone. See docs/data.md.

        Args:
            directory: The folder, which is made if it is missing; None for no cache.
            size: The most that plsc keeps there: '200GB', '1.5TiB', or a number of bytes. Base64 files that do not fit
                are fetched ahead of their use and removed after it; other data that does not fit is read in place.
        """
        self._set("data_cache", directory, size=size)

    def set_data_format(self, data_format: str, shuffle: Optional[str] = None) -> None:
        """Sets how the data set folder holds its training images.

        Args:
            data_format: 'jpeg' is `label.txt` and image files, 'folder' a folder for each class, 'base64' the output of
                tools/process_base64_files.py, 'recordio' a `train.rec` or another file of MXNet, 'tar' the tars of
                WebDataset, 'parquet' tables with a column of images. 'auto', the default, goes by the names of the
                files.
            shuffle: How files that hold many images are shuffled. 'window' reads blocks of 4 MB and mixes the images of
                16 blocks; 'files', for base64 data, does so within 4 files at a time, and is the default where the
                files do not fit into the data cache; 'full' draws images from all files of the rank. Otherwise the
                default is 'full' for RecordIO, and 'window' for the others.
        """
        self._set("data_format", data_format, shuffle=shuffle)

    def set_sampler(self, sampler: str, images_per_class: Optional[int] = None) -> None:
        """Sets how the images of an epoch are drawn.

        An epoch has the same number of steps with each sampler. See docs/data.md.

        Args:
            sampler: 'uniform', the default, takes each image once. 'balanced' takes all classes equally often. 'pxk'
                does so too, and fills the batch of all ranks with P classes and K images of each.
            images_per_class: K of 'pxk', 4 by default. It must divide the batch of all ranks.
        """
        self._set("sampler", sampler, images_per_class=images_per_class)

    def set_class_num(self, n: Union[int, str]) -> None:
        """Sets the number of classes.

        Args:
            n: Labels are in [0, n). 'auto' counts the classes of the data set: names, or the largest label plus one.
        """
        self._set("num_classes", n)

    def set_class_names(self, names: Union[str, Sequence[str], None]) -> None:
        """Sets the names of the classes, in the order of their numbers.

        Checkpoints and exports keep them for `plsc classify`.

        Args:
            names: The name of each class, or a UTF-8 text file with one name on each line. None, the default, takes
                those of the data, if it has any.
        """
        self._set("class_names", names)

    def set_skip_damaged(self, n: int) -> None:
        """Sets how many damaged images training skips.

        The next good image in the order of its rank replaces an image that cannot be read or decoded. The log names the
        damaged image, and so does `damaged.txt` in the model save folder, a list for `set_dataset_dir(exclude=...)`.
        More than `n` different ones, counted over all ranks and since the beginning of the run, end training. 0 ends
        it at the first.
        """
        self._set("skip_damaged", n)

    def set_train_image_num(self, n: int) -> None:
        """Sets the number of training images, for readers that cannot tell it.

        Only a warm-up in epochs needs it. Without it the steps are counted in the first epoch. The built-in readers
        count their images.
        """
        self._set("train_image_num", n)

    def set_image_shape(self, shape: Sequence[int]) -> None:
        """Sets the shape of the images, (channels, height, width).

        Images have 1 or 3 channels and sides of 16 to 4096.
        """
        self._set("image_shape", shape)

    def set_image_ground(self, colour: Sequence[int]) -> None:
        """Sets the colour behind transparent pixels, (red, green, blue).

        Each is from 0 to 255; white is the default. See docs/pixels.md.
        """
        self._set("image_ground", colour)

    def set_max_image_pixels(self, n: int) -> None:
        """Sets the most pixels that an image file may have.

        A larger image is an error. Its size is read from the header, before the image takes memory.
        """
        self._set("max_image_pixels", n)

    def set_pixel_rule(self, n: int) -> None:
        """Sets the rule that turns image files into pixels.

        Args:
            n: 2, the default, shows the network what a viewer shows. 1 is the rule of runs before this setting existed,
                which ignores orientation, transparency and colour profiles. A resumed run, and a test, a prediction or
                an export of a checkpoint, keeps the rule of its training. See docs/pixels.md.
        """
        self._set("pixel_rule", n)

    def set_augmentation(
        self,
        mirror: bool = True,
        rotate: float = 0,
        translate: float = 0,
        *,
        crop: Union[float, Sequence[float]] = 0,
        color_jitter: Union[float, Sequence[float]] = 0,
        grayscale: Union[float, Sequence[float]] = 0,
        blur: Union[float, Sequence[float]] = 0,
        low_resolution: Union[float, Sequence[float]] = 0,
        jpeg: Union[float, Sequence[float]] = 0,
        erasing: Union[float, Sequence[float]] = 0,
    ) -> None:
        """Sets how training images are changed at random.

        Each argument from `crop` on is the probability of an effect, or a pair (probability, strength): `blur=0.2`, or
        `blur=(0.2, 3)`. docs/data.md shows the effects. The images of a `train_reader` are changed only after a call of
        this setter, and must then be uint8.

        Args:
            mirror: Whether to mirror half of the images, and to average embeddings over the mirror image in tests.
            rotate: The largest angle, in degrees.
            translate: The largest shift, as a fraction of the side.
            crop: Keeps a part of the image, and scales it to the size of the image. The strength is the smallest share
                of the area that is kept, by default 0.6.
            color_jitter: Multiplies brightness, contrast and saturation by factors from 1 - strength to 1 + strength,
                by default 0.4.
            grayscale: Takes the colour away. The strength is the share that goes, by default 1.
            blur: Blurs the image. The strength is the largest standard deviation in pixels, by default 2.
            low_resolution: Reduces the image and enlarges it again. The strength is the smallest scale, by default 0.2.
            jpeg: Compresses the image. The strength is the lowest quality, by default 30.
            erasing: Replaces a rectangle by noise. The strength is its largest share of the area, by default 0.2.
        """
        self._set(
            "augmentation",
            mirror,
            rotate=rotate,
            translate=translate,
            crop=crop,
            color_jitter=color_jitter,
            grayscale=grayscale,
            blur=blur,
            low_resolution=low_resolution,
            jpeg=jpeg,
            erasing=erasing,
        )

    def set_train_batch_size(self, n: int) -> None:
        """Sets the number of images that a rank takes in each batch."""
        self._set("train_batch_size", n)

    def set_test_batch_size(self, n: int) -> None:
        """Sets the number of images that a rank embeds at a time in tests and in `predict`."""
        self._set("test_batch_size", n)

    def set_num_workers(self, n: int) -> None:
        """Sets the number of threads per rank that decode images.

        0 decodes in the training thread.
        """
        self._set("num_workers", n)

    def set_model_name(self, name: str) -> None:
        """Sets the built-in model to train.

        It replaces a model of `set_model`.
        """
        self._set("model_name", name)

    def set_model(self, model: paddle.nn.Layer) -> None:
        """Sets a custom model, which is trained in place.

        A second `train` starts from the weights of the first.

        Args:
            model: A `BaseModel`, or any Paddle layer that turns images [B, C, H, W] into embeddings [B, D]. Parameters
                with `stop_gradient` are not trained. Layers in evaluation mode stay in it.
        """
        self._set("model", model)
        self._model_seed = random_state.initial_seed()

    def set_emb_size(self, n: int) -> None:
        """Sets the size of the embedding."""
        self._set("emb_dim", n)

    def set_loss_type(self, loss: Union[str, Margin]) -> None:
        """Sets the loss, by its name or as a margin object.

        Args:
            loss: 'softmax', 'arcface', 'cosface', 'sphereface', 'combined', 'adaface', 'magface' or 'curricularface'.
                The prefix 'dist_' shards the class centres over the ranks. A margin object, such as `MagFace(l_m=0.4)`
                or a custom `plsc.heads.Margin`, is sharded.
        """
        self._set("loss_type", loss)

    def set_margin(self, m: Union[float, Sequence[float], None]) -> None:
        """Sets the margin of the labelled class.

        Args:
            m: Radians for arcface (default 0.5) and curricularface (0.5), a cosine for cosface (0.35) and adaface
                (0.4), a factor on the angle for sphereface (1.35), and (m1, m2, m3) for combined (1, 0.3, 0.2). None,
                the default, is the default of the loss.
        """
        self._set("margin", m)

    def set_scale(self, s: float) -> None:
        """Sets the factor on the cosines."""
        self._set("scale", s)

    def set_class_margins(self, margins: Union[str, Sequence[float], np.ndarray, None]) -> None:
        """Sets a margin for each class, in place of the one of the loss.

        It is for arcface, cosface, adaface and curricularface. See docs/head.md.

        Args:
            margins: 'ldam' gives the rarest class of the data the margin of `set_margin` (or of the loss), and classes
                with n images a smaller one, as n^(-1/4). Or a number for each class, as a list, an array, a `.npy` file
                or a text file with one number on each line: radians for arcface and curricularface, cosines for cosface
                and adaface. None, the default, is one margin for all.
        """
        self._set("class_margins", margins)

    def set_class_weights(
        self, weights: Union[str, Sequence[float], np.ndarray, None], beta: Optional[float] = None
    ) -> None:
        """Sets the weight of each class in the loss.

        The loss of a step is the sum of weight x loss over the images of all ranks, divided by the sum of the weights,
        so that only the ratios of the weights count. See docs/head.md.

        Args:
            weights: 'balanced' weighs a class with n images in the data by (1 - beta) / (1 - beta^n). Or a number for
                each class, at least 0, as a list, an array, a `.npy` file or a text file with one number on each line.
                None, the default, weighs all images the same.
            beta: In [0, 1), for 'balanced'; None is 0.9999. Weights are nearly in proportion to 1 / n for n far below
                1 / (1 - beta), and the same for n far above.
        """
        self._set("class_weights", weights, beta=beta)

    def set_label_smoothing(self, e: float) -> None:
        """Sets the share of the label's probability that is asked for from all classes alike.

        Args:
            e: At least 0 and below 1; 0, the default, does not smooth. The label is asked for 1 - e + e / K, and every
                other class for e / K, where K is the number of classes that take part in the step.
        """
        self._set("label_smoothing", e)

    def set_interclass_filter(self, threshold: float) -> None:
        """Sets the cosine above which another class leaves the softmax of an image.

        Such a class probably is the same identity, which the data wrongly splits.

        Args:
            threshold: A cosine above 0 and at most 1; 0, the default, leaves all classes in.
        """
        self._set("interclass_filter", threshold)

    def set_sample_ratio(self, r: float) -> None:
        """Sets the share of a rank's class centres that take part in a step.

        The classes of the batch always take part; the others are drawn at random. Class centres that do not take part
        are neither read nor written: with Momentum and SGD they do not decay, and their momentum does not change.

        Args:
            r: A number above 0; 1, the default, takes all class centres.
        """
        self._set("sample_ratio", r)

    def set_sub_centers(self, k: int) -> None:
        """Sets the number of rows (sub-centres) of each class, of which the nearest to an image counts.

        Wrong and hard images of a class then gather at rows of their own instead of pulling at the main one (Deng et
        al., "Sub-center ArcFace", ECCV 2020). The head takes k times the memory, and about k times the time. It works
        with every loss but softmax. `plsc merge-sub-centers` leaves one row for each class after training.

        Args:
            k: An integer from 1, the default, to 32. The paper uses 3.
        """
        self._set("sub_centers", k)

    def set_head_chunk(self, rows: int) -> None:
        """Sets the number of class centres that the head computes at a time.

        It changes only the speed. 0, the default, chooses the number by the batch, the embedding and the cache.
        """
        self._set("head_chunk", rows)

    def set_head_dtype(self, dtype: str) -> None:
        """Sets the type in which the class centres and their momentum are kept.

        With 'bfloat16' they take half the memory, and so do their checkpoints. Everything is still computed in float32,
        a chunk of class centres at a time, and what moves is rounded at random, so that small updates are not lost.

        Args:
            dtype: 'float32', the default, or 'bfloat16'.
        """
        self._set("head_dtype", dtype)

    def set_distfc_attr(self, param_attr: Any = None, bias_attr: Any = None) -> None:
        """Sets the `paddle.ParamAttr` of the class centres and of the bias of softmax.

        Args:
            param_attr: Initializer, learning rate and regularizer of the class centres.
            bias_attr: The same of the bias of softmax; other losses have no bias.
        """
        self._set("distfc_attr", param_attr=param_attr, bias_attr=bias_attr)

    def set_train_epochs(self, n: int) -> None:
        """Sets the number of epochs."""
        self._set("train_epochs", n)

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate for a global batch of 1024.

        It is scaled by global batch / 1024.
        """
        self._set("lr", lr)

    def set_warmup_epochs(self, n: int) -> None:
        """Sets the number of epochs over which the learning rate warms up linearly."""
        self._set("warmup_epochs", n)

    def set_step_boundaries(self, boundaries: Sequence[int]) -> None:
        """Sets the steps at which the learning rate decays."""
        self._set("lr_steps", boundaries)

    def set_lr_decay_factor(self, f: float) -> None:
        """Sets the factor on the learning rate at each step boundary."""
        self._set("lr_decay_factor", f)

    def set_schedule(
        self,
        name: str,
        power: float = 2.0,
        floor: float = 0.0,
        warmup_steps: int = 0,
        patience: int = 3,
        metric: str = "test",
    ) -> None:
        """Sets how the learning rate moves after the warm-up.

        Args:
            name: 'step', the default, multiplies the rate with the decay factor at each step boundary. 'cosine' lowers
                it along half a cosine until the end of the training, and 'poly' along `(1 - t) ** power`, where t grows
                from 0 to 1. 'plateau' multiplies it with the decay factor when a metric no longer improves.
            power: Exponent of 'poly'.
            floor: Share of the full rate at which 'cosine' and 'poly' end, and below which 'step' and 'plateau' do not
                fall, from 0 to 1.
            warmup_steps: Number of steps over which the rate warms up linearly, instead of `set_warmup_epochs`.
            patience: Number of epochs in a row without a better metric that 'plateau' accepts; it decays after one
                more. Better means by a factor of 0.0001.
            metric: What 'plateau' follows: 'test', the mean accuracy or rank-1 rate of the epoch's test sets, or
                'loss', the mean loss of the epoch.
        """
        self._set(
            "schedule",
            name,
            power=power,
            floor=floor,
            warmup_steps=warmup_steps,
            patience=patience,
            metric=metric,
        )

    def set_trainable(self, what: Union[str, Sequence[str], Mapping[int, Union[str, Sequence[str]]]]) -> None:
        """Sets which parts of the network are trained, and from which epoch on.

        What is frozen costs no gradient, no memory of the optimizer and no traffic between ranks. A frozen layer is in
        evaluation mode, so BatchNorm's statistics stay as they are. What a custom model freezes itself stays frozen.

        Args:
            what: 'all', the default; 'head', which trains the class centres alone; or patterns of parameter names, one
                or a list, such as 'blocks.7.*': the names are those of the model's `state_dict()`, `*` stands for any
                characters, and the head is trained with them. A mapping gives these by epoch, from 0: {0: 'head', 2:
                'all'} trains the head for two epochs, and then everything. A later stage may only unfreeze.

        Example:
            >>> from plsc import Entry
            >>> entry = Entry()
            >>> entry.set_model_name("ResNet18")
            >>> entry.set_trainable({0: "head", 1: ["blocks.7.*", "norm.*", "fc.*", "features*"]})
        """
        self._set("trainable", what)

    def set_rate_factors(self, factors: Optional[Mapping[str, float]]) -> None:
        """Sets factors on the learning rate, by pattern of parameter names.

        Args:
            factors: Patterns as in `set_trainable`, and the factor of each, above 0. Where several patterns fit a name,
                the last one counts. 'head' names the class centres. The factor multiplies the learning rate of a
                `paddle.ParamAttr` or of a parameter group. None and {} are no factors.

        Example:
            >>> from plsc import Entry
            >>> Entry().set_rate_factors({"*": 0.1, "fc.*": 0.5, "head": 1.0})
        """
        self._set("rate_factors", factors)

    def set_optimizer(self, optimizer: OptimizerOrFactory) -> None:
        """Sets a custom optimizer.

        It replaces Momentum, and its learning rate and schedule are used as they are; a schedule advances by one per
        step, and ReduceOnPlateau by one per epoch. Paddle builds no optimizer without parameters, which only the engine
        knows. Give either a function of the parameters, or an optimizer whose parameters are the placeholder
        `plsc.optim.deferred()`. An optimizer keeps its parameter groups.

        Example:
            >>> import paddle
            >>> from plsc import Entry, optim
            >>> entry = Entry()
            >>> entry.set_optimizer(lambda parameters: paddle.optimizer.Adam(1e-3, parameters=parameters))
            >>> entry.set_optimizer(paddle.optimizer.AdamW(1e-3, parameters=optim.deferred(), weight_decay=0.01))
        """
        self._set("optimizer", optimizer)

    def set_gradient_accumulation(self, n: int) -> None:
        """Sets the number of batches in a step.

        A step gets the gradients of one batch `n` times as large, in the memory of a small one. Learning rates are
        scaled by the larger batch, and a step is one update. BatchNorm normalises with each small batch, and running
        statistics move with each.
        """
        self._set("gradient_accumulation", n)

    def set_recompute(self, recompute: bool) -> None:
        """Sets whether activations are computed again in the backward pass, instead of being kept.

        Losses and weights are the same to the bit, in less memory and more time. The built-in networks can do it, and
        custom models that call a `paddle.nn.Sequential`, whose layers are what is computed again.
        """
        self._set("recompute", recompute)

    def set_ema(self, decay: float) -> None:
        """Sets the decay of an average of the network's weights, which tests, exports and predictions then use.

        After each step the average moves towards the new weights by the share `1 - decay`; in the first steps it moves
        faster. It takes as much memory as the weights. Class centres are not averaged.

        Args:
            decay: A number below 1, such as 0.9999; 0, the default, keeps no average.
        """
        self._set("ema", decay)

    def set_gradient_clip(self, norm: float) -> None:
        """Sets the largest norm of a step's gradients.

        Gradients whose norm over the backbone and all shards of the head is larger are scaled down to it. To know the
        norm before a row moves, the head is walked once more, which costs two more matrix products of its size.

        Args:
            norm: The largest norm; 0, the default, does not clip.
        """
        self._set("gradient_clip", norm)

    def set_mixed_precision(
        self,
        use_fp16: bool,
        init_loss_scaling: float = 1.0,
        incr_every_n_steps: int = 2000,
        decr_every_n_nan_or_inf: int = 2,
        incr_ratio: float = 2.0,
        decr_ratio: float = 0.5,
        use_dynamic_loss_scaling: bool = True,
        amp_lists: Any = None,
        dtype: str = "float16",
        simulate: bool = False,
    ) -> None:
        """Sets whether to train in mixed precision, and how the loss is scaled.

        Args:
            use_fp16: Whether to train in mixed precision.
            init_loss_scaling: The first factor on the gradients.
            incr_every_n_steps: After how many finite steps in a row the factor is multiplied by `incr_ratio`.
            decr_every_n_nan_or_inf: After how many overflowing steps in a row it is multiplied by `decr_ratio`.
            incr_ratio: A number above 1.
            decr_ratio: A number below 1.
            use_dynamic_loss_scaling: False keeps the factor at `init_loss_scaling`; the four arguments above are unused
                then.
            amp_lists: A `plsc.amp.AutoMixedPrecisionLists` (or Paddle's) with operators to add or to leave out.
            dtype: 'float16', or 'bfloat16', which needs no loss scaling.
            simulate: Whether to round where a GPU would, on a CPU, where Paddle computes in float32 only.
        """
        self._set(
            "mixed_precision",
            use_fp16,
            init_loss_scaling=init_loss_scaling,
            incr_every_n_steps=incr_every_n_steps,
            decr_every_n_nan_or_inf=decr_every_n_nan_or_inf,
            incr_ratio=incr_ratio,
            decr_ratio=decr_ratio,
            use_dynamic_loss_scaling=use_dynamic_loss_scaling,
            amp_lists=amp_lists,
            dtype=dtype,
            simulate=simulate,
        )

    def set_max_skipped_steps(self, n: int) -> None:
        """Sets after how many skipped steps in a row training stops.

        A step is skipped when its loss, its embeddings or its gradients are not finite.
        """
        self._set("max_skipped_steps", n)

    def set_strategy(self, strategy: paddle.distributed.fleet.DistributedStrategy) -> None:
        """Sets how Paddle's fleet averages the gradients of several ranks.

        Three fields of the strategy have an effect: `fuse_grad_size_in_MB` and `last_comm_group_size_MB`, the sizes up
        to which gradients are averaged together, and `find_unused_parameters`, which a custom model always has. All
        others must be at their defaults. The message about a field that is not names the setter that does its work,
        such as `set_mixed_precision` for `amp`. With one rank there is nothing to average.

        Example:
            >>> from paddle.distributed import fleet
            >>> from plsc import Entry
            >>> strategy = fleet.DistributedStrategy()
            >>> strategy.fuse_grad_size_in_MB = 16
            >>> entry = Entry()
            >>> entry.set_strategy(strategy)
        """
        self._set("strategy", strategy)

    def set_seed(self, n: int) -> None:
        """Sets the seed of the weights, the shuffling, the augmentation and dropout.

        The weights that a custom model draws when it is made follow `paddle.seed`, to be called before.
        """
        self._set("seed", n)

    def set_val_targets(self, targets: str) -> None:
        """Sets the test sets in the data set folder.

        Args:
            targets: Names separated by commas; '' names none. Each is `<name>.bin`, a pairs file `<name>.txt`, or a
                folder `<name>` of `<identity>/<image>`: see docs/use.md.
        """
        self._set("val_targets", targets)

    def set_with_test(self, with_test: bool) -> None:
        """Sets whether to test after each epoch."""
        self._set("with_test", with_test)

    def set_test_fars(self, fars: Sequence[float]) -> None:
        """Sets the false accept rates (FAR) that tests report.

        They are `at_far` of the results. Rates that the number of pairs is too small for are left out.
        """
        self._set("test_fars", fars)

    def set_identification(self, gallery: Optional[str], probes: Optional[str] = None) -> None:
        """Sets a gallery, and the probes that tests look up in it.

        Args:
            gallery: A folder `<identity>/<image>`, or a list of images and identities. The embeddings of an identity
                are averaged. None, the default, looks nothing up.
            probes: The same, of the images to look up. Probes whose identity is not in the gallery are strangers.
        """
        self._set("identification", gallery, probes=probes)

    def set_test_embeddings_dir(self, directory: str) -> None:
        """Sets the folder where `test()` keeps its embeddings.

        A later test of the same images and network uses them again. '' keeps none.
        """
        self._set("test_embeddings_dir", directory)

    def set_log_period(self, n: int) -> None:
        """Sets the number of steps between two log lines."""
        self._set("log_period", n)

    def set_calc_acc(self, calc_acc: bool) -> None:
        """Sets whether to report acc1 and acc5 of the training batches, over all classes."""
        self._set("calc_acc", calc_acc)

    def set_scalars(self, kind: Optional[str], directory: Optional[str] = None) -> None:
        """Sets a viewer that the numbers of `metrics.jsonl` are also written for.

        Args:
            kind: 'tensorboard' (needs tensorboardX) or 'visualdl'; None for no viewer.
            directory: The folder that receives them; None for `scalars` in the model save folder.
        """
        self._set("scalars", kind, directory=directory)

    def set_model_save_dir(self, directory: Optional[str]) -> None:
        """Sets the folder that receives one checkpoint per epoch.

        None or '' saves nothing.
        """
        self._set("model_save_dir", directory)

    def set_save_period(self, steps: int) -> None:
        """Sets after how many steps to save to `step_<n>` as well.

        0 saves at the end of each epoch only.
        """
        self._set("save_period", steps)

    def set_keep_checkpoints(self, n: int) -> None:
        """Sets how many of the newest checkpoints of a run to keep.

        The one with the best test is kept as well; the others of the run are removed. 0 keeps all.
        """
        self._set("keep_checkpoints", n)

    def set_background_save(self, background: bool) -> None:
        """Sets whether training continues while a checkpoint is written.

        The checkpoint is then written from a copy in host memory. False pauses training and copies nothing.
        """
        self._set("background_save", background)

    def set_rank_timeout(self, minutes: float) -> None:
        """Sets for how many minutes a rank waits for the others.

        A rank may be late with its data, a test, or its part of a checkpoint or a download. Every half minute a line
        in the log says which rank is waited for, and for what. When the time is over, all ranks end.
        """
        self._set("rank_timeout", minutes)

    def set_resume(self, resume: bool) -> None:
        """Sets whether to resume from the newest good checkpoint in the model save folder.

        Training resumes exactly, or starts from the beginning when there is no checkpoint. With
        `set_hdfs_info(..., fs_dir_for_save)` a newer one is downloaded from there first, for instance on a new machine.
        With the same number of ranks, a run on CPUs ends with the weights, to the bit, of one that was never stopped.
        """
        self._set("resume", resume)

    def set_checkpoint_dir(self, directory: str, weights: str = "average") -> None:
        """Sets the checkpoint that is loaded before training or testing.

        Args:
            directory: The folder of the checkpoint, such as `./output/0`; '' loads none.
            weights: 'average' takes the average of the network's weights, if the checkpoint has one because of
                `set_ema`. 'plain' takes the weights that its training would resume with.
        """
        self._set("checkpoint_dir", directory, weights=weights)

    def set_pretrained(self, source: Union[str, os.PathLike], std: float = 127.5, order: str = "rgb") -> None:
        """Sets a file of weights that another program has saved, for training to begin with.

        The model must be the network that they belong to, such as IResNet50 for a ResNet of InsightFace's
        arcface_torch. The class centres are new. Nothing in the file is run.

        Args:
            source: A file of PyTorch (.pt, .pth), Paddle (.pdparams), safetensors or ONNX; '' begins at random weights.
            std: What the pixels of the images, less 127.5, were divided by when the weights were trained.
            order: Order of the channels of those images, 'rgb' or 'bgr'.
        """
        self._set("pretrained", source, std=std, order=order)

    def set_teacher(
        self,
        source: Union[str, os.PathLike, paddle.nn.Layer, None],
        weight: float = 30.0,
        kind: str = "cosine",
        head: bool = True,
    ) -> None:
        """Sets a trained network that training imitates.

        A small model learns so from a large one. Each step adds `weight` times the teacher's loss to that of the head.

        Args:
            source: The folder of an export or of a checkpoint, or a layer of Paddle, which embed the images of each
                batch; or the folder of embeddings that `predict` wrote of the training images. None is no teacher.
            weight: The factor on the teacher's loss, which is small next to that of the head. Begin with 30, and with
                300 for 'relation'.
            kind: 'cosine' asks each embedding to point where the teacher's does, and needs embeddings of one size.
                'relation' asks the cosines between the images of a batch to be those of the teacher.
            head: Whether the head's loss counts too. With False, the head is neither computed nor changed.
        """
        self._set("teacher", source, weight=weight, kind=kind, head=head)

    def set_head_init(self, init: str) -> None:
        """Sets which class centres training takes from the checkpoint of `set_checkpoint_dir`.

        Args:
            init: 'checkpoint' takes the head, and refuses another number of classes or another loss. 'keep-common'
                takes the classes that both have, by their number, whatever the loss, and initialises the others.
                'by-name' does the same by the names of the classes, whatever their numbers. 'from-embeddings' also
                begins the other classes at the mean embeddings of up to 16 of their images. 'fresh' takes the backbone
                only.
        """
        self._set("head_init", init)

    def set_export_dir(self, directory: str) -> None:
        """Sets the folder of an export that `test` and `predict` use instead of a trained model.

        '' uses the trained model.
        """
        self._set("export_dir", directory)

    def set_hdfs_info(
        self,
        fs_name: Optional[str],
        fs_ugi: Optional[str],
        fs_dir_for_save: Optional[str] = None,
        fs_checkpoint_dir: Optional[str] = None,
        auth: Optional[str] = None,
        keytab: Optional[str] = None,
    ) -> None:
        """Sets the HDFS folders that checkpoints are uploaded to and downloaded from.

        See docs/hdfs.md, and docs/object_stores.md for `s3://` and others.

        Args:
            fs_name: `s3://bucket/folder` or another object store; for HDFS, `hdfs://namenode:port`,
                `hdfs://nameservice`, `webhdfs://...` or `http(s)://...`; several NameNodes are separated by `;` or `,`.
                Without `fs_ugi` also an alias of HdfsCLI's configuration file.
            fs_ugi: `name,password`; None for `HADOOP_USER_NAME` or the user of this process. The password is sent only
                to gateways that ask for it over https, and is shown nowhere.
            fs_dir_for_save: The HDFS folder that receives the checkpoints of `set_model_save_dir`. While one training
                uploads there, another one with that folder ends at its start.
            fs_checkpoint_dir: An HDFS folder with one checkpoint, or with several, of which the newest is used. It is
                downloaded to the folder of `set_checkpoint_dir` before training or testing.
            auth: 'kerberos' shows the user's Kerberos ticket; `fs_ugi` is None then. By default a ticket is shown if
                the core-site.xml in `HADOOP_CONF_DIR` says that the cluster has Kerberos.
            keytab: Path of a keytab, on each machine. Tickets come from it for as long as training runs.
        """
        folders = {"fs_dir_for_save": fs_dir_for_save, "fs_checkpoint_dir": fs_checkpoint_dir}
        self._set("hdfs_info", fs_name, fs_ugi, **folders, auth=auth, keytab=keytab)

    def set_hdfs_upload(self, when: str, retry_seconds: float = 300) -> None:
        """Sets when checkpoints are uploaded to HDFS.

        They go to `fs_dir_for_save` in the background.

        Args:
            when: 'end' uploads the checkpoints that are kept when training ends, 'epoch' also that of each epoch as
                soon as it is saved, 'step' also those of `set_save_period`.
            retry_seconds: How long a transfer that makes no progress is tried again.
        """
        self._set("hdfs_upload", when, retry_seconds=retry_seconds)

    def set_hdfs_client(self, client: Any) -> None:
        """Sets a client of the `hdfs` package to connect with.

        It replaces the client made from the address, for instance for a token. `set_hdfs_info` still names the folders;
        its `fs_ugi` must be None, and its `fs_name` appears only in messages.

        Example:
            >>> from hdfs import TokenClient  # doctest: +SKIP
            >>> entry.set_hdfs_client(TokenClient("https://namenode:9871", token))  # doctest: +SKIP
            >>> entry.set_hdfs_info(None, None, "checkpoints")  # doctest: +SKIP
        """
        self._set("hdfs_client", client)

    def add_callback(self, callback: Callback) -> None:
        """Adds an object that takes part in training: see `plsc.Callback`, and docs/custom.md for an example."""
        if not isinstance(callback, Callback):
            raise ConfigError(f"add_callback({callback!r}): expected an instance of a subclass of plsc.Callback")
        self._config.callbacks += (callback,)

    def train(self) -> dict[str, Any]:
        """Trains all epochs. Every rank calls it.

        Returns:
            `steps`, `epochs`, `loss` (the mean of the last finished epoch, or of the steps so far if a callback ended
            the first one early), `images_per_second` (over all ranks, loading included), `skipped_steps`, `checkpoint`
            (the last saved folder or None), `test` (the last test's result or None), `stopped` (why a callback ended
            training early, or None). It is the same on every rank, except for rounding of the rate.

        Raises:
            PlscError: Settings, data or a checkpoint cannot be used. Uncaught, it ends the program with its one line
                and exit status 1.
        """
        with self._action():
            config = self._prepare()
            self._log_unused_seed()
            result, self._backbone, self._config.pixel_rule = train(config)
            self._last_checkpoint = result["checkpoint"]
        return result

    def test(self) -> dict[str, dict[str, Any]]:
        """Tests the export, or the model of the last `train`, or else that of the checkpoint folder, on the test sets.

        Returns:
            `{set name: {'accuracy', 'std', 'tar@1e-3', 'xnorm', 'auc', 'eer', 'at_far', ...}}`, the same on every rank:
            see `plsc.metrics.verification_metrics`. With `set_identification` also `{'identification': {'rank@1',
            ...}}`: see `plsc.metrics.identification_metrics`.

        Raises:
            PlscError: There is nothing to test, or the data or the checkpoint cannot be used.
        """
        with self._action():
            return trained.evaluate(self._prepare(), self._backbone)

    def predict(
        self,
        source: Union[str, Path, None] = None,
        output: Union[str, Path, None] = None,
        flip: bool = False,
        parquet: bool = False,
        skip_damaged: bool = False,
    ) -> np.ndarray:
        """Embeds images with the export, or the model of the last `train`, or else that of the checkpoint folder.

        Args:
            source: A folder of images, a label file, or a list of base64 parts (or a folder with one), or the address
                of one in a store: see docs/use.md. None embeds the images of `predict_reader`.
            output: The folder that receives `embeddings.npy`, `images.tsv` and `manifest.json`, written by rank 0. An
                interrupted call resumes where it stopped when it is repeated; a complete one does nothing.
            flip: Whether to average the embeddings of an image and its mirror image.
            parquet: Whether to write `embeddings.parquet` as well.
            skip_damaged: Whether an image of the source that cannot be read or decoded gets zeros and a warning,
                instead of ending the work.

        Returns:
            [N, D] float32, the same on every rank, in the order of the source (folders: sorted by path) or of the
            reader. When the readers of the ranks give different images, those of rank 0 come first. With `output` the
            array is mapped from the file.

        Raises:
            PlscError: There is nothing to embed or no model, or one of them cannot be used.
        """
        wanted = trained.Prediction(source, output, flip=flip, parquet=parquet, skip_damaged=skip_damaged)
        with self._action(source):
            return trained.predict(wanted, self._prepare(), self._backbone)

    def classify(self, source: Union[str, Path], top: int = 5, skip_damaged: bool = False) -> list[list[Answer]]:
        """Names the classes that images most probably show, of those that the network was trained on.

        The network is that of the export, or of the last `train`, or else of the checkpoint folder. The class centres
        are those of the export (made with `with_classes`), or of the checkpoint.

        Args:
            source: An image, a folder of images or a list of them, as `predict` takes it.
            top: Number of answers for each image.
            skip_damaged: Whether an image that cannot be read or decoded gets no answers and a warning, instead of
                ending the work.

        Returns:
            For each image its answers (`number`, `name`, `cosine`), the best first; the same on every rank, in the
            order of the embeddings that `predict` returns.

        Raises:
            PlscError: There is no model or no file with its class centres, or one of them or an image cannot be used.
        """
        check_int("classify: top", top, 1)
        check_bool("classify: skip_damaged", skip_damaged)
        if not isinstance(source, (str, Path)) or source == "":
            raise ConfigError(f"classify: source={source!r}: expected a path")
        with self._action(source):
            classes_from = "" if self._config.export_dir else self._checkpoint_with_classes("classify()")
            return trained.classify(
                self._prepare(), source, top, self._backbone, classes_from, skip_damaged=skip_damaged
            )

    def convert_for_prediction(
        self,
        format: str = "paddle",
        precision: str = "float32",
        calibration: Union[str, Path, None] = None,
        force: bool = False,
        with_classes: bool = False,
    ) -> Path:
        """Exports the model of the last `train`, or else that of the checkpoint folder, into the model save folder.

        Args:
            format: 'paddle' for Paddle's inference library, or 'onnx'. The batch may have any size in both.
            precision: 'float32', or for ONNX also 'float16' or 'int8'. The log reports how far embeddings move.
            calibration: Images like those to embed, in a form that `predict` takes. int8 needs them. The export is
                compared with the model on up to 256 of them, or else on noise.
            force: Whether an export whose embeddings differ too much from the model's is written, with a warning.
            with_classes: Whether the export also holds the class centres of the checkpoint, or of the one that the last
                `train` saved, for `Predictor.classify`.

        Returns:
            The folder, for `plsc.Predictor`. Its other files are left alone.

        Raises:
            PlscError: There is no model, the format does not support that precision, the export does not agree with
                the model, or the folder cannot be written.
        """
        with self._action(calibration):
            return trained.convert(
                self._prepare(),
                self._backbone,
                format,
                precision=precision,
                calibration=calibration,
                force=force,
                classes_from=self._checkpoint_with_classes("convert_for_prediction(with_classes=True)")
                if check_bool("with_classes", with_classes)
                else None,
            )

    def _set(self, name: str, *arguments: Any, **named: Any) -> None:
        """Does the work of every setter."""
        winner = all_settings.change(self._config, name, *arguments, **named)
        if winner is not None:
            setter = all_settings.SETTINGS[name].setter
            self._overridden.setdefault(f"{winner} overrides {_call(setter, arguments, named)} in the script", False)

    def _action(self, *sources: object) -> contextlib.AbstractContextManager[None]:
        """Returns a context that fails on all ranks when it fails on one.

        Args:
            sources: What the action reads in addition to what the settings name.
        """
        self._config.inputs = tuple(str(source) for source in sources if is_address(source))
        if _ends_at_actions:
            raise _ActionReachedError
        parallel.initialise()
        return parallel.action(self._config.patience)

    def _prepare(self) -> Config:
        """Returns a checked copy of the settings. Logs once what won over the script."""
        shorten_errors(parallel.report_end)
        news = [line for line, is_logged in self._overridden.items() if not is_logged]
        self._overridden = dict.fromkeys(self._overridden, True)
        return trained.prepare(self._config, news)

    def _checkpoint_with_classes(self, action: str) -> str:
        """Returns the checkpoint that holds the class centres of the model that `action` uses.

        Raises:
            ConfigError: There is none.
        """
        found = self._config.checkpoint_dir if self._backbone is None else self._last_checkpoint
        if not found:
            raise ConfigError(
                f"{action}: no checkpoint holds the class centres; train with set_model_save_dir, or name a checkpoint "
                "with set_checkpoint_dir"
            )
        return found

    def _log_unused_seed(self) -> None:
        """Logs that `set_seed` comes too late for the first weights of a custom model, once for each model."""
        model, seed, drawn_with, self._model_seed = self._config.model, self._config.seed, self._model_seed, None
        if model is not None and model.parameters() and seed and drawn_with not in (None, seed):
            logger.info(
                "set_seed(%d) does not reach the first weights of %s, which was made before; call paddle.seed(%d) "
                "before you make it",
                seed,
                type(model).__name__,
                seed,
            )


def _call(setter: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """Returns a call of a setter as the script may have written it: without what is the default."""
    parameters = inspect.signature(getattr(Entry, setter)).parameters
    given = [_shown(value) for value in arguments]
    given += [f"{name}={_shown(value)}" for name, value in named.items() if value != parameters[name].default]
    return f"{setter}({', '.join(given)})"


def _shown(value: Any) -> str:
    plain = isinstance(value, (bool, int, float, str, list, tuple, type(None), np.number))
    return repr(value) if plain else f"{type(value).__name__}(...)"
