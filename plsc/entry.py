"""`Entry`, the facade: setters fill a Config, actions hand it to the engine."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import checkpoint, parallel, settings
from plsc.amp import as_lists
from plsc.config import (
    LOSS_TYPES,
    Config,
    Hdfs,
    HdfsUpload,
    MixedPrecision,
    Scalars,
    check_bool,
    check_choice,
    check_float,
    check_image_shape,
    check_int,
    check_rates,
    check_step_boundaries,
    check_str,
)
from plsc.data.base64_source import SHUFFLES
from plsc.data.readers import check_reader
from plsc.data.sources import DATA_FORMATS
from plsc.data.transforms import Augmentation
from plsc.engine.callbacks import Callback
from plsc.engine.download import fetch_checkpoint
from plsc.engine.scalars import KINDS, check_package
from plsc.engine.trainer import train
from plsc.errors import ConfigError, PlscError
from plsc.evaluation.build import build_evaluator, reader_loader
from plsc.evaluation.embedder import Embedder, open_together
from plsc.evaluation.log import log_test
from plsc.heads import Margin
from plsc.inference.export import export
from plsc.inference.networks import ExportedNetwork, Network, TrainedNetwork
from plsc.machine.logs import set_up_logging
from plsc.models import MODEL_NAMES, build_backbone
from plsc.optim import OptimizerOrFactory
from plsc.search.embeddings import check_parquet, write_parquet
from plsc.storage.address import check_hdfs_address


class Entry:
    """Trains and tests a classifier with very many classes.

    Setters check their argument at once, return None, and may be called in any order before an action. A setting that
    cannot work raises `ConfigError`, with one line that names the setter, the value and what is allowed.

    Example:
        >>> from plsc import Entry
        >>> entry = Entry()
        >>> entry.set_class_num(1000)
        >>> entry.set_dataset_dir("./glyphs")
        >>> entry.train()  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._config = Config()
        self._backbone: Optional[paddle.nn.Layer] = None
        _word_errors()
        self._config.locked = frozenset(settings.apply(self))  # of the command line

    @property
    def train_batch_size(self) -> int:
        """Images a step, per rank."""
        return self._config.train_batch_size

    @train_batch_size.setter
    def train_batch_size(self, n: int) -> None:
        self.set_train_batch_size(n)

    @property
    def test_batch_size(self) -> int:
        """Images a forward pass of the test, per rank."""
        return self._config.test_batch_size

    @test_batch_size.setter
    def test_batch_size(self, n: int) -> None:
        self.set_test_batch_size(n)

    @property
    def train_reader(self) -> Any:
        """Batches of `(image, label)` instead of a data set folder: see docs/custom.md for what is taken."""
        return self._config.train_reader

    @train_reader.setter
    def train_reader(self, reader: Any) -> None:
        self._config.train_reader = None if reader is None else check_reader("train_reader", reader)

    @property
    def test_reader(self) -> Any:
        """Batches of `(image, label)` to test on, or what `plsc.utils.jpeg_reader.test` returns, instead of `.bin` sets."""
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
            raise ConfigError(
                f"Entry.{name} cannot be assigned; assign train_reader, test_reader, predict_reader, train_batch_size or "
                "test_batch_size, or call a setter"
            )
        super().__setattr__(name, value)

    def set_val_targets(self, targets: str) -> None:
        """Test sets in the data set folder: comma separated names, '' for none.

        Each is `<name>.bin`, or a pairs file `<name>.txt`, or a folder `<name>` of `<identity>/<image>`: see docs/use.md.
        """
        self._config.val_targets = check_str("set_val_targets", targets, allow_empty=True)

    def set_test_fars(self, fars: Sequence[float]) -> None:
        """Rates of false accepts that tests report: at_far of their results; those the pairs cannot tell are left out."""
        self._config.test_fars = check_rates("set_test_fars", fars)

    def set_identification(self, gallery: Optional[str], probes: Optional[str] = None) -> None:
        """Test also how often images are found in a gallery; None does not.

        Args:
            gallery: a folder `<identity>/<image>`, or a list of images and identities; all of an identity are averaged.
            probes: the same, of the images to find; those of identities that are not in the gallery are strangers.
        """
        if gallery is None:
            self._config.identification = None
            return
        self._config.identification = (
            check_str("set_identification: gallery", gallery),
            check_str("set_identification: probes", probes),
        )

    def set_test_embeddings_dir(self, directory: str) -> None:
        """Folder where `test()` keeps embeddings, and finds them again if images and network are the same; '' keeps none."""
        self._config.test_embeddings_dir = check_str("set_test_embeddings_dir", directory, allow_empty=True)

    def set_train_batch_size(self, n: int) -> None:
        """Images a step, per rank."""
        self._config.train_batch_size = check_int("set_train_batch_size", n, 1)

    def set_test_batch_size(self, n: int) -> None:
        """Images a forward pass of the test, per rank."""
        self._config.test_batch_size = check_int("set_test_batch_size", n, 1)

    def set_log_period(self, n: int) -> None:
        """Steps between two log lines."""
        self._config.log_period = check_int("set_log_period", n, 1)

    def set_lr(self, lr: float) -> None:
        """Learning rate for a global batch of 1024; scaled by global batch / 1024."""
        self._config.lr = check_float("set_lr", lr, 0, above=True)

    def set_lr_decay_factor(self, f: float) -> None:
        """Factor on the learning rate at each step boundary."""
        self._config.lr_decay_factor = check_float("set_lr_decay_factor", f, 0, 1, above=True)

    def set_step_boundaries(self, boundaries: Sequence[int]) -> None:
        """Steps at which the learning rate decays."""
        self._config.lr_steps = check_step_boundaries("set_step_boundaries", boundaries)

    def set_warmup_epochs(self, n: int) -> None:
        """Epochs of linear warm-up to the learning rate."""
        self._config.warmup_epochs = check_int("set_warmup_epochs", n, 0)

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
        """Mixed precision with loss scaling.

        Args:
            use_fp16: train in mixed precision.
            init_loss_scaling: first factor on the gradients.
            incr_every_n_steps: finite steps in a row after which it grows `incr_ratio` times.
            decr_every_n_nan_or_inf: steps in a row that overflowed after which it shrinks `decr_ratio` times.
            incr_ratio: above 1.
            decr_ratio: below 1.
            use_dynamic_loss_scaling: False keeps the factor at `init_loss_scaling`; the four above have no use then.
            amp_lists: a `plsc.amp.AutoMixedPrecisionLists` (or Paddle's) with operators to add or to leave out.
            dtype: 'float16', or 'bfloat16', which needs no loss scaling.
            simulate: on a CPU, where Paddle computes in float32 only, round where a GPU would.
        """
        name = "set_mixed_precision"
        as_lists(amp_lists)
        self._config.mixed_precision = MixedPrecision(
            check_bool(f"{name}: use_fp16", use_fp16),
            check_float(f"{name}: init_loss_scaling", init_loss_scaling, 0, above=True),
            check_int(f"{name}: incr_every_n_steps", incr_every_n_steps, 1),
            check_int(f"{name}: decr_every_n_nan_or_inf", decr_every_n_nan_or_inf, 1),
            check_float(f"{name}: incr_ratio", incr_ratio, 1, above=True),
            check_float(f"{name}: decr_ratio", decr_ratio, 0, 1, above=True),
            check_bool(f"{name}: use_dynamic_loss_scaling", use_dynamic_loss_scaling),
            amp_lists,
            check_choice(f"{name}: dtype", dtype, ("float16", "bfloat16")),
            check_bool(f"{name}: simulate", simulate),
        )

    def set_gradient_clip(self, norm: float) -> None:
        """Shrink a step's gradients to this norm over the backbone and all shards of the head, when theirs is larger; 0 never.

        The head's rows are walked once more to know their norm before they move: two more products of four.
        """
        self._config.gradient_clip = check_float("set_gradient_clip", norm, 0)

    def set_gradient_accumulation(self, n: int) -> None:
        """Take `n` batches a step: the gradients of one batch `n` times as large, in the memory of a small one.

        Rates are scaled by the larger batch, and a step is one update. BatchNorm normalises, and running statistics move,
        with each small batch.
        """
        self._config.gradient_accumulation = check_int("set_gradient_accumulation", n, 1)

    def set_hdfs_info(
        self,
        fs_name: Optional[str],
        fs_ugi: Optional[str],
        fs_dir_for_save: Optional[str] = None,
        fs_checkpoint_dir: Optional[str] = None,
    ) -> None:
        """Where the run's checkpoints are uploaded to, and where its first weights come from; see docs/hdfs.md.

        Args:
            fs_name: `hdfs://namenode:port`, `webhdfs://...`, `http(s)://...`; several NameNodes separated by `;` or `,`.
                Without `fs_ugi` also an alias of HdfsCLI's configuration file.
            fs_ugi: `name,password`; None for `HADOOP_USER_NAME` or this process's user. The password is given to gateways
                that ask for it over https only, and is shown nowhere.
            fs_dir_for_save: HDFS folder that receives the checkpoints of `set_model_save_dir`.
            fs_checkpoint_dir: HDFS folder of one checkpoint, or of several, of which the newest is taken; it is downloaded
                to the folder of `set_checkpoint_dir` before training or testing.
        """
        for name, value in (("fs_dir_for_save", fs_dir_for_save), ("fs_checkpoint_dir", fs_checkpoint_dir)):
            if value is not None:
                check_str(f"set_hdfs_info: {name}", value)
                if "://" in value:
                    raise ConfigError(f"set_hdfs_info: {name}={value!r}: give the folder alone; its address is fs_name")
        if fs_ugi is not None and (not isinstance(fs_ugi, str) or not fs_ugi.split(",", 1)[0] or "," not in fs_ugi):
            # The value holds a password: it is not shown.
            raise ConfigError("set_hdfs_info: fs_ugi must be a string of the form 'name,password', or None")
        if fs_name is not None:
            check_hdfs_address(fs_name, is_alias=fs_ugi is None)
        self._config.hdfs = Hdfs(fs_name, fs_ugi, fs_dir_for_save, fs_checkpoint_dir)

    def set_hdfs_client(self, client: Any) -> None:
        """A client of the `hdfs` package to use instead of one made from the address: for Kerberos or a token.

        `set_hdfs_info` still names the folders; its `fs_ugi` must be None, and its `fs_name` is just what messages say.

        Example:
            >>> from hdfs.ext.kerberos import KerberosClient  # doctest: +SKIP
            >>> entry.set_hdfs_client(KerberosClient("https://namenode:9871"))  # doctest: +SKIP
            >>> entry.set_hdfs_info(None, None, "checkpoints")  # doctest: +SKIP
        """
        if not all(callable(getattr(client, name, None)) for name in ("status", "list", "read", "write", "rename")):
            raise ConfigError(
                f"set_hdfs_client({type(client).__name__}): expected a client of the hdfs package, such as hdfs.TokenClient(...)"
            )
        self._config.hdfs_client = client

    def set_hdfs_upload(self, when: str, retry_seconds: float = 300) -> None:
        """When checkpoints go to `fs_dir_for_save`, in the background.

        Args:
            when: 'end' uploads those that are kept when training ends, 'epoch' also each epoch's as soon as it is saved,
                'step' those of `set_save_period` too.
            retry_seconds: how long a transfer that does not come on is tried again.
        """
        self._config.hdfs_upload = HdfsUpload(
            check_choice("set_hdfs_upload", when, ("end", "epoch", "step")),
            check_float("set_hdfs_upload: retry_seconds", retry_seconds, 0),
        )

    def set_model_save_dir(self, directory: Optional[str]) -> None:
        """Folder that receives one checkpoint an epoch; None or '' saves nothing."""
        self._config.model_save_dir = (
            "" if directory is None else check_str("set_model_save_dir", directory, allow_empty=True)
        )

    def set_checkpoint_dir(self, directory: str) -> None:
        """Checkpoint loaded before training or testing, such as `./output/0`; '' loads none."""
        self._config.checkpoint_dir = check_str("set_checkpoint_dir", directory, allow_empty=True)

    def set_export_dir(self, directory: str) -> None:
        """Folder of an export that `test` and `predict` use instead of a trained model; '' uses that."""
        self._config.export_dir = check_str("set_export_dir", directory, allow_empty=True)

    def set_calc_acc(self, calc_acc: bool) -> None:
        """Reports acc1 and acc5 of the training batches, over all classes."""
        self._config.calc_acc = check_bool("set_calc_acc", calc_acc)

    def set_dataset_dir(self, directory: str) -> None:
        """Folder with label.txt and the images, or base64 data, and the verification sets."""
        self._config.dataset_dir = check_str("set_dataset_dir", directory)

    def set_data_format(self, data_format: str, shuffle: Optional[str] = None) -> None:
        """How the data set folder holds its training images.

        Args:
            data_format: 'jpeg' is `label.txt` and image files, 'base64' what tools/process_base64_files.py makes, 'auto'
                (the default) that if its manifest is there.
            shuffle: of base64 data. 'window', the default, reads blocks of 4 MB and mixes the lines of 16; 'full' draws
                lines from all over the rank's files.
        """
        check_choice("set_data_format", data_format, DATA_FORMATS)
        if shuffle is not None:
            check_choice("set_data_format: shuffle", shuffle, SHUFFLES)
            if data_format == "jpeg":
                raise ConfigError(
                    f"set_data_format('jpeg', shuffle={shuffle!r}): shuffle is for base64 data; leave it out, image files "
                    "are shuffled in full"
                )
        self._config.data_format, self._config.shuffle = data_format, shuffle

    def set_train_image_num(self, n: int) -> None:
        """Images in the training set, for readers that cannot tell; the built-in ones count by themselves."""
        self._config.train_image_num = check_int("set_train_image_num", n, 1)

    def set_class_num(self, n: int) -> None:
        """Number of classes; labels are in [0, n)."""
        self._config.num_classes = check_int("set_class_num", n, 1)

    def set_emb_size(self, n: int) -> None:
        """Size of the embedding."""
        self._config.emb_dim = check_int("set_emb_size", n, 1)

    def set_model(self, model: paddle.nn.Layer) -> None:
        """A model of the user's own; it is trained in place. A second `train` goes on from its weights.

        Args:
            model: a `BaseModel`, or any Paddle layer that turns images [B, C, H, W] into embeddings [B, D]. Parameters with
                `stop_gradient` stay as they are.
        """
        if not isinstance(model, paddle.nn.Layer):
            shown = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
            raise ConfigError(
                f"set_model({shown}): expected an instance of a subclass of plsc.BaseModel, or of paddle.nn.Layer"
            )
        self._config.model = model

    def set_model_name(self, name: str) -> None:
        """One of the built-in models."""
        self._config.model_name = check_choice("set_model_name", name, MODEL_NAMES)
        self._config.model = None

    def set_train_epochs(self, n: int) -> None:
        """Passes over the training set."""
        self._config.train_epochs = check_int("set_train_epochs", n, 1)

    def set_loss_type(self, loss: Union[str, Margin]) -> None:
        """The loss: softmax, arcface, cosface, sphereface, combined, adaface, magface, curricularface, or a margin object.

        With the prefix `dist_` the class centres are sharded over the ranks. An object, such as `MagFace(l_m=0.4)` or a
        margin of your own (see `plsc.heads.margins`), is sharded.
        """
        if isinstance(loss, Margin):
            self._config.loss_type, self._config.margin_object = f"dist_{type(loss).__name__.lower()}", loss
        else:
            self._config.loss_type = check_choice("set_loss_type", loss, LOSS_TYPES)
            self._config.margin_object = None

    def set_margin(self, m: Union[float, Sequence[float]]) -> None:
        """Margin of the labelled class.

        Args:
            m: radians for arcface (default 0.5) and curricularface (0.5), cosine for cosface (0.35) and adaface (0.4), a
                factor on the angle for sphereface (1.35), and (m1, m2, m3) for combined (1, 0.3, 0.2).
        """
        if isinstance(m, (list, tuple)):
            if len(m) != 3:
                raise ConfigError(f"set_margin({m!r}): expected one number, or three for the combined margin")
            m1, m2, m3 = m
            self._config.margin = (
                check_float("set_margin: m1", m1, 0, 10, above=True),
                check_float("set_margin: m2", m2, 0, 3.14),
                check_float("set_margin: m3", m3, 0, 3.14),
            )
        else:
            self._config.margin = check_float("set_margin", m, 0, 3.14)

    def set_scale(self, s: float) -> None:
        """Factor on the cosines."""
        self._config.scale = check_float("set_scale", s, 0, above=True)

    def set_image_shape(self, shape: Sequence[int]) -> None:
        """(channels, height, width) of the training images."""
        self._config.image_shape = check_image_shape("set_image_shape", shape)

    def set_optimizer(self, optimizer: OptimizerOrFactory) -> None:
        """An optimizer of the user's own instead of Momentum; its learning rate and schedule are used as they are.

        Paddle builds no optimizer without parameters, and only the engine knows them. Give either a function of the
        parameters, or an optimizer that holds the place with `plsc.optim.deferred()`; a schedule advances by one a step.

        Example:
            >>> import paddle
            >>> from plsc import Entry, optim
            >>> entry = Entry()
            >>> entry.set_optimizer(lambda parameters: paddle.optimizer.Adam(1e-3, parameters=parameters))
            >>> entry.set_optimizer(paddle.optimizer.AdamW(1e-3, parameters=optim.deferred(), weight_decay=0.01))
        """
        if not isinstance(optimizer, paddle.optimizer.Optimizer) and not callable(optimizer):
            raise ConfigError(
                f"set_optimizer({optimizer!r}): expected a paddle.optimizer.Optimizer, or a function that makes one from the parameters"
            )
        self._config.optimizer = optimizer

    def set_with_test(self, with_test: bool) -> None:
        """Test on the verification sets after each epoch."""
        self._config.with_test = check_bool("set_with_test", with_test)

    def set_distfc_attr(self, param_attr: Any = None, bias_attr: Any = None) -> None:
        """`paddle.ParamAttr` (initializer, learning rate, regularizer) of the class centres and of softmax's bias."""
        for name, attr in (("param_attr", param_attr), ("bias_attr", bias_attr)):
            if attr is not None and not isinstance(attr, paddle.ParamAttr):
                raise ConfigError(f"set_distfc_attr: {name}={attr!r}: expected a paddle.ParamAttr")
        self._config.param_attr, self._config.bias_attr = param_attr, bias_attr

    def set_seed(self, n: int) -> None:
        """Seed of the weights, the shuffling, the augmentation and dropout."""
        self._config.seed = check_int("set_seed", n, 0)

    def set_num_workers(self, n: int) -> None:
        """Threads that decode images, per rank; 0 decodes in the training thread."""
        self._config.num_workers = check_int("set_num_workers", n, 0)

    def set_scalars(self, kind: Optional[str], directory: Optional[str] = None) -> None:
        """Also write the numbers of `metrics.jsonl` for a viewer; None does not.

        Args:
            kind: 'tensorboard' (needs tensorboardX) or 'visualdl'.
            directory: folder that receives them; None for `scalars` in the model save folder.
        """
        if kind is not None:
            check_package(check_choice("set_scalars", kind, tuple(KINDS)))
        if directory is not None and "://" in check_str("set_scalars: directory", directory):
            raise ConfigError(f"set_scalars: directory={directory!r}: expected a folder of this machine")
        self._config.scalars = None if kind is None else Scalars(kind, directory)

    def set_save_period(self, steps: int) -> None:
        """Also save to `step_<n>` every `steps` steps; 0 saves at the end of epochs only."""
        self._config.save_period = check_int("set_save_period", steps, 0)

    def set_keep_checkpoints(self, n: int) -> None:
        """Keep the newest n checkpoints of a run and the one with the best test; remove its others; 0 keeps all."""
        self._config.keep_checkpoints = check_int("set_keep_checkpoints", n, 0)

    def set_background_save(self, background: bool) -> None:
        """Write checkpoints while training goes on, from a copy in host memory; False stops for it and copies nothing."""
        self._config.background_save = check_bool("set_background_save", background)

    def set_head_init(self, init: str) -> None:
        """What becomes of the head when training starts from `set_checkpoint_dir`.

        Args:
            init: 'checkpoint' takes it, and refuses another class count or loss; 'keep-common' takes the classes both have, by
                their number, whatever the loss, and starts the others afresh; 'fresh' takes the backbone only.
        """
        self._config.head_init = check_choice("set_head_init", init, ("checkpoint", "keep-common", "fresh"))

    def set_sample_ratio(self, r: float) -> None:
        """Share of this rank's class centres that take part in a step; 1 takes all.

        The classes of the batch always take part, the rest is drawn at random. The other centres are neither read nor
        written: with Momentum and SGD they do not decay and their momentum stands still.
        """
        self._config.sample_ratio = check_float("set_sample_ratio", r, 0, 1, above=True)

    def set_head_chunk(self, rows: int) -> None:
        """Class centres the head computes at a time; 0 chooses by batch, embedding and cache. Only speed depends on it."""
        self._config.head_chunk = check_int("set_head_chunk", rows, 0)

    def set_max_skipped_steps(self, n: int) -> None:
        """Stop after n steps in a row that were skipped because their loss or their embeddings were not finite."""
        self._config.max_skipped_steps = check_int("set_max_skipped_steps", n, 1)

    def set_resume(self, resume: bool) -> None:
        """Go on from the newest good checkpoint in the model save folder, exactly; from the beginning when there is none.

        With `set_hdfs_info(..., fs_dir_for_save)` a newer one is downloaded from there first, as on a machine that is new.

        With the same number of ranks a run on CPUs gives the weights, to the bit, of one that was never stopped.
        """
        self._config.resume = check_bool("set_resume", resume)

    def set_augmentation(self, mirror: bool = True, rotate: float = 0, translate: float = 0) -> None:
        """Random changes of the training images.

        Args:
            mirror: mirror half of the images, and average embeddings over the mirror image in tests.
            rotate: largest angle, degrees.
            translate: largest shift, as a fraction of the side.
        """
        self._config.augmentation = Augmentation(
            check_bool("set_augmentation: mirror", mirror),
            check_float("set_augmentation: rotate", rotate, 0, 180),
            check_float("set_augmentation: translate", translate, 0, 1),
        )

    def add_callback(self, callback: Callback) -> None:
        """Has an object take part in training: see `plsc.Callback`, and docs/custom.md for an example."""
        if not isinstance(callback, Callback):
            raise ConfigError(f"add_callback({callback!r}): expected an instance of a subclass of plsc.Callback")
        self._config.callbacks += (callback,)

    def train(self) -> dict[str, Any]:
        """Trains all epochs; every rank calls it.

        Returns:
            `steps`, `epochs`, `loss` (mean of the last epoch), `images_per_second` (over all ranks, with loading),
            `skipped_steps`, `checkpoint` (the last saved folder or None), `test` (the last test's result or None),
            `stopped` (why a callback ended it early, or None). The same on every rank but for rounding of the rate.

        Raises:
            PlscError: settings, data or a checkpoint that cannot be used; uncaught, it ends the program with its one
                line and exit status 1.
        """
        result, self._backbone = train(self._prepare())
        return result

    def test(self) -> dict[str, dict[str, Any]]:
        """Tests the export, or the model of the last `train`, or else of the checkpoint folder, on the test sets.

        Returns:
            `{set name: {'accuracy', 'std', 'tar@1e-3', 'xnorm', 'auc', 'eer', 'at_far', ...}}`, the same on every rank: see
            `plsc.metrics.verification_metrics`; and of `set_identification` `{'identification': {'rank@1', ...}}`: see
            `plsc.metrics.identification_metrics`.

        Raises:
            PlscError: there is nothing to test, or the data or the checkpoint cannot be used.
        """
        network, config = self._network("test")
        kept = Path(config.test_embeddings_dir) if config.test_embeddings_dir else None
        results = build_evaluator(config, kept)(network)
        log_test(results, config.test_fars)
        return results

    def predict(
        self,
        source: Union[str, Path, None] = None,
        output: Union[str, Path, None] = None,
        flip: bool = False,
        parquet: bool = False,
        skip_damaged: bool = False,
    ) -> np.ndarray:
        """Embeds images with the export, or the model of the last `train`, or else of the checkpoint folder.

        Args:
            source: a folder of images, a label file, or a list of base64 parts (or a folder with one): see docs/use.md. None
                embeds what `predict_reader` gives.
            output: folder that receives `embeddings.npy`, `images.tsv` and `manifest.json`, written by rank 0. Called again
                after an interruption it goes on where it was; with all done it does nothing.
            flip: average the embeddings of an image and its mirror image.
            parquet: also write `embeddings.parquet`.
            skip_damaged: an image of the source that cannot be read or decoded gets zeros and a warning, instead of ending
                the work.

        Returns:
            [N, D] float32, the same on every rank, in the order of the source (folders: sorted by path) or of the reader;
            when every rank's reader gives images of its own, those of rank 0 come first. With `output` it is mapped from
            the file.

        Raises:
            PlscError: there is nothing to embed or no model, or one of them cannot be used.
        """
        for name, value in (("source", source), ("output", output)):
            if not isinstance(value, (str, Path, type(None))) or value == "":
                raise ConfigError(f"predict: {name}={value!r}: expected a path")
        for name, flag in (("flip", flip), ("parquet", parquet), ("skip_damaged", skip_damaged)):
            check_bool(f"predict: {name}", flag)
        for name, given, needed, there in (
            ("parquet", parquet, "output", output),
            ("output", output is not None, "source", source),
            ("skip_damaged", skip_damaged, "source", source),
        ):
            if given and there is None:
                raise ConfigError(f"predict: {name} is of use with {needed} only; name it, or leave {name} out")
        network, config = self._network("predict")
        embedder = Embedder(network, config, flip, progress=True, skip_damaged=skip_damaged)
        if source is None:
            if config.predict_reader is None:
                raise ConfigError("predict(): nothing to embed; name a source, or assign predict_reader")
            loader = reader_loader("predict_reader", config.predict_reader, config, num_classes=None)
            return embedder.embed_reader(loader)[0]
        images = open_together(Path(source))
        if output is None:
            return embedder.embed(images)
        if parquet:
            parallel.from_rank_0(lambda: check_parquet(Path(output)))
        vectors = embedder.keep(images, Path(output))
        if parquet:
            parallel.from_rank_0(lambda: write_parquet(Path(output)))
        return vectors

    def _network(self, action: str) -> tuple[Network, Config]:
        """The export or the trained model, and a checked copy of the settings with its sizes; `action` is named in errors."""
        config = self._prepare()
        if not config.export_dir:
            return TrainedNetwork(self._trained_backbone(action, config), config), config
        network = parallel.together(lambda: ExportedNetwork(Path(config.export_dir)))
        return network, dataclasses.replace(config, image_shape=network.image_shape, emb_dim=network.emb_dim)

    def convert_for_prediction(
        self, format: str = "paddle", precision: str = "float32", calibration: Union[str, Path, None] = None
    ) -> Path:
        """Exports the model of the last `train`, or else of the checkpoint folder, into the model save folder.

        Args:
            format: 'paddle' for Paddle's inference library, or 'onnx'; the batch may have any size in both.
            precision: 'float32'; or 'float16' or 'int8', of ONNX. The log says how far embeddings move.
            calibration: images like those to embed, as `predict` takes them; int8 needs them, and the export is compared
                with the model on up to 256 of them, or else on noise.

        Returns:
            The folder, for `plsc.Predictor`; files it did not write stay as they are.

        Raises:
            PlscError: there is no model, the format does not come in that precision, or the folder cannot be written.
        """
        config = self._prepare()
        backbone = self._trained_backbone("convert_for_prediction", config)
        if not config.model_save_dir:
            raise ConfigError("convert_for_prediction(): set_model_save_dir is empty; name the folder to export to")
        if not isinstance(calibration, (str, Path, type(None))):
            raise ConfigError(f"convert_for_prediction: calibration={type(calibration).__name__}: expected a path")
        images = None if calibration is None else Path(calibration)
        folder = export(backbone, Path(config.model_save_dir), config.image_shape, format, precision, images)
        logging.getLogger("plsc").info("exported to %s", folder)
        return folder

    def _trained_backbone(self, action: str, config: Config) -> paddle.nn.Layer:
        if self._backbone is not None:
            return self._backbone
        if not config.checkpoint_dir:
            raise ConfigError(
                f"{action}(): there is no trained model; call train() first, or set_checkpoint_dir('output/<epoch>')"
            )
        fetch_checkpoint(config)
        backbone = build_backbone(config)
        checkpoint.load_backbone(checkpoint.open_checkpoint(Path(config.checkpoint_dir), partial=True), backbone)
        return backbone

    def _prepare(self) -> Config:
        """A checked copy of the settings, with logging set up."""
        _word_errors()
        set_up_logging(parallel.rank())
        self._config.check_combination()
        parallel.initialise()
        return dataclasses.replace(self._config)


def _word_errors() -> None:
    """Makes an uncaught PlscError end the program with its one line; every other error keeps its traceback."""
    if getattr(sys.excepthook, "plsc", False):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: Optional[TracebackType]) -> None:
        if issubclass(kind, PlscError):
            print(f"plsc: error: {error}", file=sys.stderr, flush=True)
        else:
            previous(kind, error, traceback)

    hook.plsc = True  # type: ignore[attr-defined]
    sys.excepthook = hook
