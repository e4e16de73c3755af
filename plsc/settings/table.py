"""The table of all settings: the name, setter, check and help of each. Its field in `Config` has its default."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plsc import config
from plsc.config import Config
from plsc.errors import ConfigError
from plsc.settings import checks


@dataclass(frozen=True)
class Setting:
    """One setting of a training.

    Attributes:
        name: The name that `--set` and YAML files use. A field of `Config` has the same name unless `fields` says
            otherwise.
        check: Takes the name of the setter and its arguments. Returns the value of the field, or a tuple of one value
            per field. Raises ConfigError for what cannot work.
        help: What the setting is, as the end of a sentence that begins with "Sets".
        more: What docs/settings.md adds to that, in Markdown.
        setter: The method of `Entry`; `set_<name>` when empty.
        fields: The fields of `Config` that the setter fills; the one called `name` when empty.
        has_text: Whether `--set` and YAML files can give the setting, because it is made of numbers and strings.
        takes_list: Whether the first argument may be a list, so that a list in a text is that argument alone.
    """

    name: str
    check: Callable[..., Any]
    help: str
    more: str = ""
    setter: str = ""
    fields: tuple[str, ...] = ()
    has_text: bool = True
    takes_list: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "setter", self.setter or f"set_{self.name}")
        object.__setattr__(self, "fields", self.fields or (self.name,))

    @property
    def parameters(self) -> list[str]:
        """The names of the setter's parameters."""
        return list(inspect.signature(self.check).parameters)[1:]

    @property
    def texts(self) -> list[str]:
        """The parameters whose values are texts, whatever else YAML would make of them."""
        parameters = inspect.signature(self.check).parameters
        return [name for name in self.parameters if re.search(r"\bstr\b", str(parameters[name].annotation))]

    @property
    def default(self) -> Any:
        """The default of the first of the fields."""
        return getattr(Config(), self.fields[0])

    def values(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Checks the arguments of the setter.

        Returns:
            The value of each field, by its name.

        Raises:
            ConfigError: A value cannot work.
        """
        found = self.check(self.setter, *arguments, **named)
        return dict(zip(self.fields, found)) if len(self.fields) > 1 else {self.fields[0]: found}

    def spread(self, value: Any) -> dict[str, Any]:
        """Checks one value of a text: the only argument, a list of the arguments, or a mapping of them by name.

        Returns:
            The value of each field, by its name.

        Raises:
            ConfigError: The value cannot work, or the setter has no such arguments.
        """
        several = len(self.parameters) > 1
        named = value if several and isinstance(value, dict) else {}
        are_arguments = several and isinstance(value, list) and not self.takes_list
        given = value if are_arguments else [] if named is value else [value]
        try:
            inspect.signature(self.check).bind(self.setter, *given, **named)
        except TypeError as problem:
            raise ConfigError(f"{self.setter}: {problem}; its arguments are {', '.join(self.parameters)}") from None
        return self.values(*given, **named)


def _integer(minimum: int, maximum: int = config.LARGEST_COUNT) -> Callable[[str, Any], int]:
    return lambda setter, n: config.check_int(setter, n, minimum, maximum)


def _number(low: float, high: float = math.inf, above: bool = False) -> Callable[[str, Any], float]:
    return lambda setter, x: config.check_float(setter, x, low, high, above)


def _string(allow_empty: bool = False) -> Callable[[str, Any], str]:
    def check(setter: str, text: str) -> str:
        return config.check_str(setter, text, allow_empty)

    return check


GROUPS: dict[str, tuple[Setting, ...]] = {
    "Data": (
        Setting(
            "dataset_dir",
            checks.dataset_dir,
            "the folder of the training images and the test sets",
            "see [your data](data.md); test sets lie next to the images. Data on HDFS or in an object store has an "
            "address, such as `hdfs://host:port/path`: see [remote storage](data.md#data-on-remote-storage). A list "
            "trains on [several data sets](data.md#several-data-sets) together, with `heads` that are `merged` or "
            "`separate`, and `weights` for each set. `exclude` is a list of images to "
            "[leave out](data.md#leaving-images-out)",
            fields=("dataset_dir", "heads", "set_weights", "exclude"),
            takes_list=True,
        ),
        Setting(
            "data_format",
            checks.data_format,
            "how the data set folder holds its training images",
            "`jpeg`, `folder`, `base64`, `recordio`, `tar`, `parquet`, or `auto`, which goes by the names of the "
            "files: see [your data](data.md). `shuffle` of files that hold many images: `window`, `files` or `full`",
            fields=("data_format", "shuffle"),
        ),
        Setting(
            "data_cache",
            checks.data_cache,
            "the folder of this machine that keeps the files of remote data, and how large it may become",
            "the size is written as `'200GB'`, `'1.5TiB'`, or in bytes: see "
            "[remote storage](data.md#data-on-remote-storage)",
        ),
        Setting(
            "sampler",
            checks.sampler,
            "how the images of an epoch are drawn",
            "`uniform` takes each image once, `balanced` all classes equally often, and `pxk` fills a batch with "
            "`images_per_class` (4) images of each of its classes: see [your data](data.md#how-images-are-drawn)",
            fields=("sampler", "images_per_class"),
        ),
        Setting(
            "num_classes",
            checks.num_classes,
            "the number of classes",
            "labels are in `[0, n)`; `auto` counts the classes of the data set: names, or the largest label plus one",
            setter="set_class_num",
        ),
        Setting(
            "class_names",
            checks.class_names,
            "the names of the classes, in the order of their numbers",
            "a list, or a text file with one name on each line; None takes those of the data, if it has any. They are "
            "kept in checkpoints and exports, for [`plsc classify`](use.md#which-class-is-this)",
        ),
        Setting(
            "skip_damaged",
            _integer(0, config.MOST_DAMAGED),
            "how many damaged images training skips",
            "more end the run; 0 ends it at the first. The run lists them in `damaged.txt`: see "
            "[damaged images](data.md#damaged-images)",
        ),
        Setting(
            "train_image_num",
            _integer(1, config.LARGEST_TOTAL),
            "the number of training images, for readers that cannot tell it",
            "warm-up in epochs needs it. Without it the steps are counted in the first epoch. The built-in readers "
            "count their images",
        ),
        Setting(
            "image_shape",
            config.check_image_shape,
            "the shape of the images, (channels, height, width)",
            "images have 1 or 3 channels, and sides of 16 to 4096",
        ),
        Setting(
            "image_ground",
            config.check_colour,
            "the colour behind transparent pixels, (red, green, blue)",
            "each from 0 to 255: see [images](pixels.md)",
        ),
        Setting(
            "max_image_pixels",
            _integer(1, config.LARGEST_PIXELS),
            "the most pixels that an image file may have",
            "a larger image is an error, found by its header: see [images](pixels.md#large-images)",
        ),
        Setting(
            "pixel_rule",
            _integer(1, 2),
            "the rule that turns image files into pixels",
            "2, or 1 for that of runs before the setting existed: see [images](pixels.md#rules)",
        ),
        Setting(
            "augmentation",
            checks.augmentation,
            "how training images are changed at random",
            "angles are in degrees, shifts are fractions of the side. `mirror` also averages test embeddings over the "
            "mirror image. Seven effects, such as `blur`, take a probability or a pair (probability, strength): see "
            "[random changes](data.md#random-changes-to-images)",
        ),
        Setting("train_batch_size", _integer(1), "the number of images that a rank takes in each batch"),
        Setting(
            "test_batch_size",
            _integer(1),
            "the number of images that a rank embeds at a time in tests and in `predict`",
        ),
        Setting(
            "num_workers",
            _integer(0, config.MOST_THREADS),
            "the number of threads per rank that decode images",
            "0 decodes in the training thread",
        ),
    ),
    "Model and head": (
        Setting(
            "model_name",
            checks.model_name,
            "the built-in model to train",
            "ResNet18, 34, 50, 100, 101, 152 or 200, MobileFaceNet, GlyphNet (for small images of characters), ViT "
            "(the size of ViT-Small; train it with AdamW: [optimizer](#an-optimizer-of-your-own)), or a network with "
            "[published weights](finetune.md): IResNet18, 34, 50, 100 or 200, MobileFaceNet_base, MobileFaceNet_large",
            fields=("model_name", "model"),
        ),
        Setting(
            "model",
            checks.model,
            "a custom model, which is trained in place",
            "a `BaseModel` or any `paddle.nn.Layer`: see [custom models](custom.md#models) and "
            "[scripts of Paddle 1.x](fluid.md)",
            has_text=False,
        ),
        Setting("emb_dim", _integer(1, config.LARGEST_EMBEDDING), "the size of the embedding", setter="set_emb_size"),
        Setting(
            "loss_type",
            checks.loss_type,
            "the loss, by its name or as a margin object",
            "softmax, arcface, cosface, sphereface, combined, adaface, magface, curricularface. The prefix `dist_` "
            "shards the class centres over the ranks: see [the head](head.md)",
            fields=("loss_type", "margin_object"),
        ),
        Setting(
            "margin",
            checks.margin,
            "the margin of the labelled class",
            "None is the default of the loss: 0.5 rad for arcface and curricularface, cosine 0.35 for cosface and 0.4 "
            "for adaface, factor 1.35 for sphereface, (1, 0.3, 0.2) for combined",
        ),
        Setting("scale", _number(0, above=True), "the factor on the cosines"),
        Setting(
            "class_margins",
            checks.class_margins,
            "a margin for each class, in place of the one of the loss",
            "`ldam` gives the rarest class the margin of the loss, and classes with n images a smaller one, as "
            "n^(-1/4). Or a number for each class, as a list or a file: see "
            "[the head](head.md#rare-classes-and-wrong-labels)",
            takes_list=True,
        ),
        Setting(
            "class_weights",
            checks.class_weights,
            "the weight of each class in the loss",
            "`balanced` weighs by the effective number of images, with `beta` (0.9999). Or a number for each class, as "
            "a list or a file: see [the head](head.md#rare-classes-and-wrong-labels)",
            takes_list=True,
        ),
        Setting(
            "label_smoothing",
            checks.label_smoothing,
            "the share of the label's probability that is asked for from all classes alike",
            "at least 0 and below 1: see [the head](head.md#rare-classes-and-wrong-labels)",
        ),
        Setting(
            "interclass_filter",
            _number(0, 1),
            "the cosine above which another class leaves the softmax of an image",
            "above 0 and at most 1, such as 0.4; 0 leaves all in: see "
            "[the head](head.md#rare-classes-and-wrong-labels)",
        ),
        Setting(
            "sample_ratio",
            _number(0, 1, above=True),
            "the share of a rank's class centres that take part in a step",
            "see [the head](head.md#sampling-classes)",
        ),
        Setting(
            "sub_centers",
            _integer(1, config.MOST_SUB_CENTERS),
            "the number of rows (sub-centres) of each class, of which the nearest to an image counts",
            "for noisy data, with every loss but softmax: see [the head](head.md#sub-centres)",
        ),
        Setting(
            "head_chunk",
            _integer(0),
            "the number of class centres that the head computes at a time",
            "0 chooses it. It changes only the speed",
        ),
        Setting(
            "head_dtype",
            checks.head_dtype,
            "the type in which the class centres and their momentum are kept",
            "`bfloat16` halves the memory and the checkpoints of the class centres: see "
            "[the head](head.md#class-centres-in-16-bits)",
        ),
        Setting(
            "distfc_attr",
            checks.distfc_attr,
            "the `paddle.ParamAttr` of the class centres and of the bias of softmax",
            fields=("param_attr", "bias_attr"),
            has_text=False,
        ),
    ),
    "Optimisation": (
        Setting("train_epochs", _integer(1), "the number of epochs"),
        Setting(
            "lr",
            _number(0, above=True),
            "the learning rate for a global batch of 1024",
            "it is scaled by global batch / 1024",
        ),
        Setting("warmup_epochs", _integer(0), "the number of epochs over which the learning rate warms up linearly"),
        Setting(
            "lr_steps",
            config.check_step_boundaries,
            "the steps at which the learning rate decays",
            setter="set_step_boundaries",
        ),
        Setting(
            "lr_decay_factor",
            _number(0, 1, above=True),
            "the factor on the learning rate at each step boundary",
        ),
        Setting(
            "schedule",
            checks.schedule,
            "how the learning rate moves after the warm-up",
            "`step` decays at the step boundaries; `cosine` and `poly` fall until the end of the training, `poly` with "
            "`(1 - t) ** power`; `plateau` decays after `patience` epochs in which the mean score of the tests "
            "(`metric='loss'`: the loss) has not improved. None falls below `floor` times the rate. `warmup_steps` "
            "replaces `warmup_epochs`: see [fine-tuning](finetune.md#which-optimizer-and-schedule)",
        ),
        Setting(
            "trainable",
            checks.trainable,
            "which parts of the network are trained, and from which epoch on",
            "`all`, `head` (the class centres alone), or patterns of parameter names; `{0: 'head', 2: 'all'}` "
            "unfreezes at an epoch: see [fine-tuning](finetune.md#how-do-i-train-only-the-head-first)",
        ),
        Setting(
            "rate_factors",
            checks.rate_factors,
            "factors on the learning rate, by pattern of parameter names",
            "the last pattern that fits counts; `head` names the class centres: see "
            "[fine-tuning](finetune.md#how-do-i-train-only-the-head-first)",
        ),
        Setting(
            "optimizer",
            checks.optimizer,
            "a custom optimizer",
            "None is Momentum 0.9 with L2 decay 5e-4: see [below](#an-optimizer-of-your-own)",
            has_text=False,
        ),
        Setting(
            "gradient_accumulation",
            _integer(1),
            "the number of batches in a step",
            "see [below](#gradient-accumulation)",
        ),
        Setting(
            "recompute",
            config.check_bool,
            "whether activations are computed again in the backward pass, instead of being kept",
            "it saves memory, and costs time: see [memory](performance.md#less-memory-for-activations)",
        ),
        Setting(
            "ema",
            checks.ema,
            "the decay of an average of the network's weights, which tests, exports and predictions then use",
            "such as 0.9999; 0 keeps no average: see [the average of weights](finetune.md#the-average-of-weights)",
        ),
        Setting(
            "gradient_clip",
            _number(0),
            "the largest norm of a step's gradients",
            "the norm is that over the backbone and all shards of the head; 0 does not clip",
        ),
        Setting(
            "mixed_precision",
            checks.mixed_precision,
            "whether to train in mixed precision, and how the loss is scaled",
            "see [mixed precision](mixed_precision.md)",
        ),
        Setting(
            "max_skipped_steps",
            _integer(1),
            "after how many skipped steps in a row training stops",
            "a step is skipped when its loss, its embeddings or its gradients are not finite",
        ),
        Setting(
            "rank_timeout",
            _number(0, above=True),
            "for how many minutes a rank waits for the others",
            "every half minute a line in the log says which rank is waited for, and for what: see "
            "[late ranks](troubleshooting.md#a-rank-is-late-or-fails)",
        ),
        Setting(
            "strategy",
            checks.strategy,
            "how Paddle's fleet averages the gradients of several ranks",
            "a `fleet.DistributedStrategy`; None fuses up to 25 MB of gradients: see "
            "[below](#a-strategy-of-paddles-fleet)",
            has_text=False,
        ),
        Setting(
            "seed",
            _integer(0, config.LARGEST_SEED),
            "the seed of the weights, the shuffling, the augmentation and dropout",
        ),
    ),
    "Tests": (
        Setting(
            "val_targets",
            _string(allow_empty=True),
            "the test sets in the data set folder",
            "their names, separated by commas. `a` is `a.bin`, pairs `a.txt`, or a folder `a`: see "
            "[testing](use.md#test-it)",
        ),
        Setting("with_test", config.check_bool, "whether to test after each epoch"),
        Setting("test_fars", config.check_rates, "the false accept rates (FAR) that tests report", "each at most 0.5"),
        Setting(
            "identification",
            checks.identification,
            "a gallery, and the probes that tests look up in it",
            "None looks nothing up",
        ),
        Setting(
            "test_embeddings_dir",
            _string(allow_empty=True),
            "the folder where `test()` keeps its embeddings",
            "a later test of the same images and network uses them again",
        ),
    ),
    "Logs": (
        Setting(
            "log_period", _integer(1), "the number of steps between two log lines", "shorter epochs have a line each"
        ),
        Setting(
            "calc_acc", config.check_bool, "whether to report acc1 and acc5 of the training batches, over all classes"
        ),
        Setting(
            "scalars",
            checks.scalars,
            "a viewer that the numbers of `metrics.jsonl` are also written for",
            "`tensorboard` or `visualdl`; to `<model_save_dir>/scalars` by default: see "
            "[viewers](report.md#in-tensorboard-or-visualdl)",
        ),
    ),
    "Checkpoints": (
        Setting(
            "model_save_dir",
            checks.model_save_dir,
            "the folder that receives one checkpoint per epoch",
            "None or '' saves nothing",
        ),
        Setting(
            "save_period",
            _integer(0),
            "after how many steps to save to `step_<n>` as well",
            "0 saves at the end of each epoch only",
        ),
        Setting(
            "keep_checkpoints",
            _integer(0),
            "how many of the newest checkpoints of a run to keep",
            "the one with the best test is kept as well; 0 keeps all",
        ),
        Setting(
            "background_save",
            config.check_bool,
            "whether training continues while a checkpoint is written",
            "it is written from a copy in host memory",
        ),
        Setting(
            "resume",
            config.check_bool,
            "whether to resume from the newest good checkpoint in the model save folder",
            "see [checkpoints](checkpoints.md)",
        ),
        Setting(
            "checkpoint_dir",
            checks.checkpoint_dir,
            "the checkpoint that is loaded before training or testing",
            "such as `./output/0`, or `zoo:glyphs`, which [comes with plsc](use.md#a-network-that-comes-with-plsc); '' "
            "loads none. `weights` are `average`, where the checkpoint has "
            "[one](finetune.md#the-average-of-weights), or `plain`",
            fields=("checkpoint_dir", "checkpoint_weights"),
        ),
        Setting(
            "pretrained",
            checks.pretrained,
            "a file of weights that another program has saved, for training to begin with",
            "it is a file of PyTorch, Paddle, safetensors or ONNX: see [fine-tuning](finetune.md)",
            fields=("pretrained",),
        ),
        Setting(
            "teacher",
            checks.teacher,
            "a trained network that training imitates",
            "the folder of an export, of a checkpoint or of embeddings, or a layer of Paddle; `kind` is `cosine` or "
            "`relation`, and `head=False` leaves out the loss of the head: see "
            "[fine-tuning](finetune.md#how-do-i-make-it-small)",
            fields=("teacher",),
        ),
        Setting(
            "head_init",
            checks.head_init,
            "which class centres training takes from the checkpoint of `set_checkpoint_dir`",
            "`checkpoint` takes the whole head, `keep-common` the classes that both have by number, `by-name` by name, "
            "`from-embeddings` also begins the others at their images, `fresh` takes the backbone only",
        ),
        Setting(
            "export_dir",
            _string(allow_empty=True),
            "the folder of an export that `test` and `predict` use instead of a trained model",
        ),
    ),
    "HDFS": (
        Setting(
            "hdfs_info",
            checks.hdfs_info,
            "the HDFS folders that checkpoints are uploaded to and downloaded from",
            "see [HDFS](hdfs.md)",
            fields=("hdfs",),
            has_text=False,
        ),
        Setting(
            "hdfs_upload",
            checks.hdfs_upload,
            "when checkpoints are uploaded to HDFS",
            "`end`, `epoch` or `step`; a failed transfer is tried again for `retry_seconds`",
        ),
        Setting(
            "hdfs_client",
            checks.hdfs_client,
            "a client of the `hdfs` package to connect with",
            "for a token",
            has_text=False,
        ),
    ),
}
SETTINGS: dict[str, Setting] = {setting.name: setting for group in GROUPS.values() for setting in group}
