"""`Config`, which holds every setting and its default, and the checks of values and of their combinations.

What else there is to know about a setting (its name, setter, check and help) stands in `plsc.settings.table`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

import numpy as np

from plsc.data.augmentation import Augmentation
from plsc.data.pixels import MOST_PIXELS, NEWEST_RULE, PILLOW_RULE, WHITE, PixelRule
from plsc.data.place import Place
from plsc.errors import ConfigError, shown
from plsc.metrics.roc import FARS
from plsc.storage.address import split_address
from plsc.storage.kerberos import Kerberos
from plsc.storage.login import Login

# The default margin of each loss. None means that the loss has no margin to set.
DEFAULT_MARGINS: dict[str, Any] = {
    "softmax": None,
    "arcface": 0.5,
    "cosface": 0.35,
    "sphereface": 1.35,
    "combined": (1.0, 0.3, 0.2),
    "adaface": 0.4,
    "magface": None,
    "curricularface": 0.5,
}
LOSS_TYPES = (*DEFAULT_MARGINS, *(f"dist_{kind}" for kind in DEFAULT_MARGINS))

# The largest values that settings take. What lies above them is a mistake, and would overflow somewhere.
LARGEST_COUNT = 10**9
LARGEST_BYTES = 10**18  # of a cache
LARGEST_TOTAL = 10**12  # of classes, images and steps
LARGEST_EMBEDDING = 1 << 16
LARGEST_SIDE = 4096
LARGEST_PIXELS = 178_956_970  # of an image; Pillow refuses larger ones
LARGEST_SEED = 2**63 - 1
MOST_THREADS = 1024
MOST_SUB_CENTERS = 32
MOST_NAMES = 5_000_000
MOST_DAMAGED = 10_000  # images, which checkpoints name, with reasons
DAMAGED_LIST = "damaged.txt"  # in the folder of a run
LARGEST_WEIGHT = 1000  # of a data set
LARGEST_CLASS_WEIGHT = 1e6
INITS_BY_NAME = ("by-name", "from-embeddings")  # of the head; they match classes by their names
LARGEST_FACTOR = 1000  # on a learning rate
MOST_PATTERNS = 10_000  # of parameter names


@dataclass(frozen=True)
class MixedPrecision:
    """The arguments of `set_mixed_precision`."""

    use_fp16: bool = False
    init_loss_scaling: float = 1.0
    incr_every_n_steps: int = 2000
    decr_every_n_nan_or_inf: int = 2
    incr_ratio: float = 2.0
    decr_ratio: float = 0.5
    use_dynamic_loss_scaling: bool = True
    amp_lists: Any = None
    dtype: str = "float16"
    simulate: bool = False

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled. bfloat16 has the range of float32 and needs no loss scaling."""
        return self.use_fp16 and self.dtype == "float16"


@dataclass(frozen=True)
class Hdfs:
    """The arguments of `set_hdfs_info`. The credentials stay out of every repr."""

    fs_name: Optional[str]
    fs_ugi: Optional[str] = field(repr=False)
    fs_dir_for_save: Optional[str] = None
    fs_checkpoint_dir: Optional[str] = None
    auth: Optional[str] = None
    keytab: Optional[str] = None

    @property
    def kerberos(self) -> Optional[Kerberos]:
        """Where Kerberos tickets come from; None leaves that to Hadoop's own configuration files."""
        return None if self.auth is None else Kerberos(self.keytab)


@dataclass(frozen=True)
class HdfsUpload:
    """The arguments of `set_hdfs_upload`."""

    when: str = "end"
    retry_seconds: float = 300.0


@dataclass(frozen=True)
class DataCache:
    """The arguments of `set_data_cache`: the directory, and its size in bytes."""

    directory: str
    size: int


_DEFAULT_CACHE_BYTES = 100 * 10**9


def default_cache() -> DataCache:
    """Returns the cache of what commands read from stores, without `set_data_cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return DataCache(os.path.join(caches, "plsc", "data"), _DEFAULT_CACHE_BYTES)


@dataclass(frozen=True)
class Scalars:
    """The arguments of `set_scalars`."""

    kind: str
    directory: Optional[str] = None


CHANNEL_ORDERS = ("rgb", "bgr")


SCHEDULES = ("step", "cosine", "poly", "plateau")
METRICS = ("test", "loss")

CHECKPOINT_WEIGHTS = ("average", "plain")


@dataclass(frozen=True)
class Schedule:
    """The arguments of `set_schedule`."""

    name: str = "step"
    power: float = 2.0
    floor: float = 0.0
    warmup_steps: int = 0
    patience: int = 3
    metric: str = "test"


@dataclass(frozen=True)
class Trainable:
    """The argument of `set_trainable`.

    Attributes:
        text: It in words, for messages and records, such as 'head; from epoch 2 all'.
        stages: From which epoch on parameters with names of which patterns are trained; no patterns are the head alone.
    """

    text: str = "all"
    stages: tuple[tuple[int, tuple[str, ...]], ...] = field(default=((0, ("*",)),), repr=False)


@dataclass(frozen=True)
class Pixels:
    """The images that a network was trained on elsewhere: what must be made up for, since plsc gives it others.

    Attributes:
        std: What pixels, less 127.5, were divided by; 127.5 in arcface_torch and PLSC 2.
        order: Order of the channels, 'rgb' or 'bgr'.
    """

    _set_by: ClassVar[str] = ""

    std: float = 127.5
    order: str = "rgb"

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", check_float(f"{self._set_by}std", self.std, 1e-3, 1e6))
        check_choice(f"{self._set_by}order", self.order, CHANNEL_ORDERS)


@dataclass(frozen=True)
class Pretrained(Pixels):
    """The arguments of `set_pretrained`: a file of weights, and the pixels that they were trained on.

    Attributes:
        source: The file.
    """

    _set_by: ClassVar[str] = "set_pretrained: "

    source: str = ""


@dataclass(frozen=True)
class ByClass:
    """A number for each class: the argument of `set_class_weights` or of `set_class_margins`.

    Attributes:
        rule: How the numbers follow from the number of images of each class, 'balanced' or 'ldam'; 'given' where the
            user gives the numbers.
        beta: That of 'balanced'.
        digest: Digest of given numbers.
        values: The numbers, float32 [classes]; None until training has counted the images of each class.
    """

    rule: str
    beta: float = 0.0
    digest: str = ""
    values: Optional[np.ndarray] = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Returns it in words, for messages and records."""
        return f"{self.rule}, beta {self.beta:g}" if self.rule == "balanced" else f"{self.rule} {self.digest}".strip()

    @property
    def argument(self) -> str:
        """What the user has written, for messages."""
        return "[...]" if self.rule == "given" else repr(self.rule)


BALANCED_BETA = 0.9999
MARGINS_BY_CLASS = ("arcface", "cosface", "adaface", "curricularface")  # the losses with one margin that is added
LESSONS = ("cosine", "relation")


@dataclass(frozen=True)
class Teaching:
    """The arguments of `set_teacher`.

    Attributes:
        source: Folder of an export, of a checkpoint or of embeddings, or a layer of Paddle.
        weight: The factor on the teacher's loss.
        kind: What the teacher asks, one of `LESSONS`.
        head: Whether the head's loss counts too; if not, the head is left as it is.
    """

    source: Any
    weight: float = 30.0
    kind: str = "cosine"
    head: bool = True

    def __str__(self) -> str:
        """Returns how the teacher counts, for messages and records."""
        return f"{self.kind}, weight {self.weight:g}, {'with' if self.head else 'without'} the head"


@dataclass
class Config:
    """The settings of one `Entry`, which its setters fill. docs/settings.md says what each of them means."""

    train_batch_size: int = 128
    test_batch_size: int = 120
    dataset_dir: Union[str, tuple[str, ...]] = "./train_data"  # a tuple of several sets
    heads: str = "merged"
    set_weights: Optional[tuple[float, ...]] = None
    separate_heads: tuple[tuple[str, int], ...] = ()  # title and classes of each; training finds them in the data
    data_shuffle: Optional[str] = None  # the one in use; training finds it in the data
    data_digest: Optional[str] = None  # of the images and labels; training finds it in the data
    exclude: Optional[str] = None
    data_format: str = "auto"
    shuffle: Optional[str] = None
    sampler: str = "uniform"
    images_per_class: Optional[int] = None  # in a batch, for the sampler 'pxk'
    data_cache: Optional[DataCache] = None
    inputs: tuple[str, ...] = ()  # addresses that an action reads in addition to the data set
    class_names: Optional[tuple[str, ...]] = None
    skip_damaged: int = 0
    train_image_num: Optional[int] = None
    train_epochs: int = 120
    warmup_epochs: int = 0
    lr: float = 0.1
    lr_steps: tuple[int, ...] = (100000, 160000, 220000)
    lr_decay_factor: float = 0.1
    schedule: Schedule = Schedule()
    trainable: Trainable = Trainable()
    rate_factors: tuple[tuple[str, float], ...] = ()  # pattern of names, and factor
    val_targets: str = "lfw"
    test_fars: tuple[float, ...] = FARS
    identification: Optional[tuple[str, str]] = None
    test_embeddings_dir: str = ""
    with_test: bool = True
    model_name: str = "ResNet50"
    checkpoint_dir: str = ""
    checkpoint_weights: str = "average"
    pretrained: Optional[Pretrained] = None
    teacher: Optional[Teaching] = None
    teacher_digest: Optional[str] = None  # training finds it in the teacher
    export_dir: str = ""
    model_save_dir: str = "./output"
    loss_type: str = "dist_arcface"
    num_classes: int = 85742  # 0 until training has counted the classes of the data, for 'auto'
    image_shape: tuple[int, int, int] = (3, 112, 112)
    image_ground: tuple[int, int, int] = WHITE
    max_image_pixels: int = MOST_PIXELS
    pixel_rule: int = NEWEST_RULE
    margin: Any = None
    scale: float = 64.0
    emb_dim: int = 512
    log_period: int = 200
    calc_acc: bool = False
    save_period: int = 0
    keep_checkpoints: int = 0
    background_save: bool = True
    head_init: str = "checkpoint"
    class_margins: Optional[ByClass] = None
    class_weights: Optional[ByClass] = None
    label_smoothing: float = 0.0
    interclass_filter: float = 0.0
    sample_ratio: float = 1.0
    sub_centers: int = 1
    head_chunk: int = 0
    head_dtype: str = "float32"
    ema: float = 0.0
    gradient_clip: float = 0.0
    gradient_accumulation: int = 1
    recompute: bool = False
    max_skipped_steps: int = 20
    rank_timeout: float = 30.0
    resume: bool = False
    seed: int = 0
    num_workers: int = 2
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixed_precision: MixedPrecision = field(default_factory=MixedPrecision)
    hdfs: Optional[Hdfs] = None
    hdfs_upload: HdfsUpload = field(default_factory=HdfsUpload)
    scalars: Optional[Scalars] = None
    # Objects of the user, whose names `OBJECTS` lists.
    margin_object: Any = None
    model: Any = None
    optimizer: Any = None
    strategy: Any = None
    param_attr: Any = None
    bias_attr: Any = None
    train_reader: Any = None
    test_reader: Any = None
    predict_reader: Any = None
    callbacks: tuple[Any, ...] = ()
    hdfs_client: Any = None
    # The settings that win over the setters of a script, by name, as the user wrote them: {"lr": "--set lr=0.05"}.
    overrides: dict[str, str] = field(default_factory=dict)
    # The fields that a setter or an override has set.
    given: frozenset[str] = frozenset()

    # What training finds in the data and in the teacher, which nobody sets.
    FOUND: ClassVar = ("separate_heads", "data_shuffle", "data_digest", "teacher_digest")
    OBJECTS: ClassVar = (
        "class_names",  # too many for a record of settings
        "margin_object",
        "model",
        "optimizer",
        "strategy",
        "param_attr",
        "bias_attr",
        "train_reader",
        "test_reader",
        "predict_reader",
        "callbacks",
        "hdfs_client",
    )

    @property
    def batch_per_rank(self) -> int:
        """The number of samples that a rank contributes to one step of the optimizer."""
        return self.train_batch_size * self.gradient_accumulation

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The paths of the training data."""
        return (self.dataset_dir,) if isinstance(self.dataset_dir, str) else self.dataset_dir

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds its own share of the class centres, rather than all of them."""
        return self.loss_type.startswith("dist_")

    @property
    def drawing(self) -> str:
        """How images are drawn, for messages and records."""
        return f"{self.sampler}, {self.images_per_class} of a class" if self.images_per_class else self.sampler

    @property
    def rates_of(self) -> str:
        """The factors on the learning rate, for messages and records; 'none' without any."""
        return ", ".join(f"{pattern} {factor:g}" for pattern, factor in self.rate_factors) or "none"

    @property
    def counts_classes(self) -> bool:
        """Whether the head must know how many images each class has."""
        return any(one is not None and one.rule != "given" for one in (self.class_weights, self.class_margins))

    @property
    def loss_terms(self) -> str:
        """Changes of the loss other than its type and margin, for messages and records; 'none' without any."""
        parts = {
            "class margins": self.class_margins,
            "class weights": self.class_weights,
            "label smoothing": f"{self.label_smoothing:g}" if self.label_smoothing else None,
            "inter-class filter": f"{self.interclass_filter:g}" if self.interclass_filter else None,
        }
        return "; ".join(f"{name} {value}" for name, value in parts.items() if value is not None) or "none"

    @property
    def margin_and_scale(self) -> str:
        """The margin and the scale of the loss, for messages and records; 'none' where no cosines are compared."""
        if self.margin_object is None and kind_of(self.loss_type) == "softmax":
            return "none"
        if self.margin_object is None:
            margin = str(self.margin_of_loss())
        else:
            values = ", ".join(f"{name}={value!r}" for name, value in plain_attributes(self.margin_object).items())
            margin = f"{type(self.margin_object).__name__}({values})"
        return f"{margin} with scale {self.scale:g}"

    @property
    def remote_data(self) -> dict[str, Place]:
        """Where the data sets are that are not on this machine, and where their files go, by their addresses."""
        addresses = {path: split_address("set_dataset_dir", path) for path in self.data_sets}
        remote = {path: address for path, address in addresses.items() if address is not None}
        if remote and self.data_cache is None:
            said = self._said("dataset_dir", f"set_dataset_dir({next(iter(remote))!r})")
            raise ConfigError(
                f"{said} is not a folder of this machine; name one that keeps its files, and how large it may become, "
                "with set_data_cache(directory, '200GB')"
            )
        return {path: self.place_of(path) for path in remote}

    def place_of(self, path: str) -> Place:
        """Returns where an address is, and where its files go.

        Without `set_data_cache` they go to a folder of the user, of 100 GB. Without `set_hdfs_info` the environment
        says who connects.

        Raises:
            ConfigError: plsc cannot read such an address.
        """
        address = split_address("address", path)
        assert address is not None
        cache = self.data_cache or default_cache()
        return Place(address, Path(cache.directory), cache.size, self.login)

    @property
    def addresses(self) -> list[str]:
        """The addresses of what is read from stores: the data set, lists, test sets, and what an action names."""
        named = (*self.data_sets, self.exclude, *(self.identification or ()), *self.inputs)
        return [one for one in named if isinstance(one, str) and "://" in one]

    @property
    def login(self) -> Login:
        """Who connects to stores."""
        login = Login(client=self.hdfs_client, patience=self.hdfs_upload.retry_seconds)
        if self.hdfs is None:
            return login
        return login._replace(fs_name=self.hdfs.fs_name, fs_ugi=self.hdfs.fs_ugi, kerberos=self.hdfs.kerberos)

    @property
    def patience(self) -> float:
        """Seconds that the ranks wait for each other: not less than one of them may spend on trying a store again."""
        seconds = 60 * self.rank_timeout
        uses_store = self.hdfs is not None or bool(self.addresses)
        # Rank 0 waits for files of the others as long as they may try again, and may then try again itself.
        return max(seconds, 2 * self.hdfs_upload.retry_seconds + 60) if uses_store else seconds

    @property
    def pixels(self) -> PixelRule:
        """What the pixels of image files mean."""
        return PixelRule(self.pixel_rule, self.image_ground, self.max_image_pixels)

    def image_record(self) -> dict[str, Any]:
        """Returns what checkpoints and exports record about the images that a network takes."""
        return {
            "image_shape": list(self.image_shape),
            "pixel_rule": self.pixel_rule,
            "image_ground": list(self.image_ground),
            "mirror": self.augmentation.mirror,
        }

    def with_images_of(self, record: Mapping[str, Any]) -> Config:
        """Returns the settings with what an `image_record` says, except for what the user has set.

        A record of an earlier version says nothing about pixels: it is one of the rule that was the only one then.
        """
        kept: dict[str, Any] = {"pixel_rule": record.get("pixel_rule", PILLOW_RULE)}
        for name in ("image_shape", "image_ground"):
            if name in record:
                kept[name] = tuple(record[name])
        if "mirror" in record:
            kept["augmentation"] = dataclasses.replace(self.augmentation, mirror=record["mirror"])
        return dataclasses.replace(self, **{name: value for name, value in kept.items() if name not in self.given})

    @property
    def has_bias(self) -> bool:
        """Whether the head has a bias."""
        return kind_of(self.loss_type) == "softmax" and self.bias_attr is not False

    def check_combination(self) -> None:
        """Checks what no single setter can know. Every action calls it before it does anything.

        Raises:
            ConfigError: Two settings contradict each other.
        """
        reads_stores = bool(self.remote_data or self.addresses)  # the first one also checks that there is a cache
        if not reads_stores and self.data_cache is not None:
            said = self._said("data_cache", "set_data_cache was called")
            raise ConfigError(
                f"{said}, but set_dataset_dir({', '.join(self.data_sets)}) is on this machine; leave it out"
            )
        self._check_hdfs(reads=reads_stores)
        self._check_data()
        if self.pretrained is not None and self.checkpoint_dir:
            raise ConfigError(
                f"set_pretrained({shown(self.pretrained.source)}) and set_checkpoint_dir({shown(self.checkpoint_dir)}) "
                "both say which weights to begin with; leave one of them out"
            )
        if self.resume and not self.model_save_dir:
            resume = self._said("resume", "set_resume(True)")
            raise ConfigError(f"{resume}, but set_model_save_dir is empty; name the folder of the run to resume")
        if self.save_period and not self.model_save_dir:
            period = self._said("save_period", f"set_save_period({self.save_period})")
            raise ConfigError(f"{period}, but set_model_save_dir is empty; name a folder to save to")
        if self.scalars is not None and self.scalars.directory is None and not self.model_save_dir:
            scalars = self._said("scalars", f"set_scalars({self.scalars.kind!r})")
            raise ConfigError(f"{scalars}, but set_model_save_dir is empty; name a directory for the scalars")
        if self.bias_attr is not None and not self.loss_type.endswith("softmax"):
            raise ConfigError(
                f"set_distfc_attr(bias_attr=...), but the head of {self._loss()} has no bias; leave bias_attr out, or "
                "choose 'softmax' or 'dist_softmax'"
            )
        if self.teacher is not None and not self.teacher.head and self.calc_acc:
            teacher = self._said("teacher", "set_teacher(head=False)")
            calc_acc = self._said("calc_acc", "set_calc_acc(True)")
            raise ConfigError(f"{teacher}: the head is not computed, so {calc_acc} has nothing to count; leave it out")
        self._check_sampler()
        self.check_head()
        self._check_schedule()
        self._check_trainable()
        self._check_head_init()

    def check_head(self) -> None:
        """Checks what no single setter can know about the head and its loss. `check_combination` calls it.

        Raises:
            ConfigError: Two settings contradict each other.
        """
        if self.sub_centers > 1 and kind_of(self.loss_type) == "softmax" and self.margin_object is None:
            sub_centers = self._said("sub_centers", f"set_sub_centers({self.sub_centers})")
            raise ConfigError(
                f"{sub_centers}: the loss of {self._loss()} compares no cosines, and has one row for each class; leave "
                "it out, or choose a loss with a margin, such as 'dist_arcface'"
            )
        self._check_margin()
        self._check_loss_terms()

    def _said(self, name: str, call: str) -> str:
        """Returns how the user gave a setting: on the command line, or else by a `call` in the script."""
        return self.overrides.get(name, call)

    def _loss(self) -> str:
        return self._said("loss_type", f"set_loss_type({self.loss_type!r})")

    def _check_data(self) -> None:
        calls = []
        if self.exclude is not None:
            calls.append(self._said("dataset_dir", f"set_dataset_dir(exclude={shown(self.exclude)})"))
        if self.skip_damaged:
            calls.append(self._said("skip_damaged", f"set_skip_damaged({self.skip_damaged})"))
        if calls and self.train_reader is not None:
            raise ConfigError(
                f"{calls[0]} is for the images of set_dataset_dir, but train_reader replaces them; leave images out in "
                "the reader"
            )
        if self.shuffle == "files" and (self.exclude is not None or len(self.data_sets) > 1):
            shuffle = self._said("data_format", f"set_data_format({self.data_format!r}, shuffle='files')")
            other = "images are left out" if self.exclude is not None else "there are several data sets"
            raise ConfigError(f"{shuffle}: reads whole files in turn, which cannot be done where {other}; leave it out")
        listed = os.path.join(self.model_save_dir, DAMAGED_LIST) if self.model_save_dir else None
        if self.exclude and listed and os.path.abspath(self.exclude) == os.path.abspath(listed):
            raise ConfigError(
                f"set_dataset_dir: exclude={shown(self.exclude)} is in the folder of set_model_save_dir, where the run "
                f"writes or moves {DAMAGED_LIST} itself; copy the list to another place"
            )

    def _check_hdfs(self, reads: bool) -> None:
        hdfs = self.hdfs
        save_dir = hdfs.fs_dir_for_save if hdfs is not None else None
        upload = self._said("hdfs_upload", f"set_hdfs_upload({self.hdfs_upload.when!r})")
        default = HdfsUpload(retry_seconds=self.hdfs_upload.retry_seconds) if reads else HdfsUpload()
        if self.hdfs_upload != default and save_dir is None:
            raise ConfigError(f"{upload}, but set_hdfs_info names no fs_dir_for_save; name it")
        if self.hdfs_upload.when == "step" and not self.save_period:
            raise ConfigError(f"{upload}, but only epochs are saved; call set_save_period, or choose 'epoch'")
        if hdfs is None:
            if self.hdfs_client is not None:
                raise ConfigError("set_hdfs_client was called, but set_hdfs_info names no folder; call it as well")
            return
        if self.hdfs_client is not None and hdfs.fs_ugi is not None:
            raise ConfigError(
                "set_hdfs_client and the fs_ugi of set_hdfs_info both say who connects to HDFS; give None as fs_ugi"
            )
        if self.hdfs_client is not None and hdfs.auth is not None:
            raise ConfigError(
                "set_hdfs_client and the auth or keytab of set_hdfs_info both say who connects to HDFS; leave out one"
            )
        if self.hdfs_client is None and hdfs.fs_name is None:
            raise ConfigError(
                "set_hdfs_info: fs_name is None; give the address of HDFS, or a client with set_hdfs_client"
            )
        if hdfs.fs_dir_for_save is None and hdfs.fs_checkpoint_dir is None and not reads:
            raise ConfigError("set_hdfs_info names no folder; give fs_dir_for_save or fs_checkpoint_dir")
        if hdfs.fs_dir_for_save is not None and not self.model_save_dir:
            raise ConfigError(
                "set_hdfs_info names fs_dir_for_save, but set_model_save_dir is empty, so nothing would be uploaded; "
                "name a folder to save to"
            )
        if hdfs.fs_checkpoint_dir is not None and not self.checkpoint_dir:
            raise ConfigError(
                "set_hdfs_info names fs_checkpoint_dir, but set_checkpoint_dir names no folder to download it to; name "
                "one"
            )

    def _check_sampler(self) -> None:
        if self.sampler == "uniform":
            return
        sampler = self._said("sampler", f"set_sampler({self.sampler!r})")
        if self.train_reader is not None:
            raise ConfigError(
                f"{sampler}: draws images of the data set folder, but train_reader replaces them; leave one of them out"
            )
        if self.set_weights is not None and self.heads == "merged":
            raise ConfigError(
                f"{sampler} and the weights of set_dataset_dir both say what is drawn; leave one of them out"
            )
        if self.shuffle is not None:
            shuffle = self._said("data_format", f"set_data_format({self.data_format!r}, shuffle={self.shuffle!r})")
            raise ConfigError(f"{sampler} and {shuffle} both say in which order images are drawn; leave one out")

    def _check_margin(self) -> None:
        if self.margin is None:
            return
        default = None if self.margin_object is not None else DEFAULT_MARGINS[kind_of(self.loss_type)]
        margin, loss = self._said("margin", f"set_margin({self.margin!r})"), self._loss()
        if default is None:
            instead = "leave it out" if "margin" in self.overrides else "remove the call, or add --set margin=null"
            raise ConfigError(f"{margin}: the loss of {loss} has no such margin; {instead}")
        if isinstance(self.margin, tuple) != isinstance(default, tuple):
            wanted = "three numbers (m1, m2, m3)" if isinstance(default, tuple) else "one number"
            raise ConfigError(f"{margin}: the margin of {loss} is {wanted}, such as {default!r}")
        if kind_of(self.loss_type) == "sphereface" and not self.margin:
            raise ConfigError(f"{margin}: the margin of {loss} is a factor on the angle; it must be above 0")

    def _check_loss_terms(self) -> None:
        calls = {
            "class_margins": self.class_margins and f"set_class_margins({self.class_margins.argument})",
            "class_weights": self.class_weights and f"set_class_weights({self.class_weights.argument})",
            "label_smoothing": self.label_smoothing and f"set_label_smoothing({self.label_smoothing:g})",
            "interclass_filter": self.interclass_filter and f"set_interclass_filter({self.interclass_filter:g})",
        }
        said = {name: self._said(name, call) for name, call in calls.items() if call}
        if said and self.teacher is not None and not self.teacher.head:
            teacher = self._said("teacher", "set_teacher(head=False)")
            raise ConfigError(
                f"{next(iter(said.values()))}: changes the loss of the head, which {teacher} leaves out; leave one of "
                "them out"
            )
        kind, loss = kind_of(self.loss_type), self._loss()
        if "interclass_filter" in said and kind == "softmax":
            raise ConfigError(
                f"{said['interclass_filter']}: compares cosines, which the head of {loss} does not have; leave it out, "
                "or choose a loss with a margin"
            )
        for name, values in (("class_margins", self.class_margins), ("class_weights", self.class_weights)):
            if values is not None and values.rule != "given" and self.train_reader is not None:
                raise ConfigError(
                    f"{said[name]}: counts the images of each class, which a train_reader does not tell; give a number "
                    "for each class, as a list or a file"
                )
        if self.class_margins is not None:
            self._check_class_margins(self.class_margins, said["class_margins"])

    def _check_class_margins(self, margins: ByClass, said: str) -> None:
        kind, loss = kind_of(self.loss_type), self._loss()
        if kind not in MARGINS_BY_CLASS or self.margin_object is not None:
            raise ConfigError(
                f"{said}: the loss of {loss} takes no margin for each class; leave it out, or choose "
                f"one of {', '.join(MARGINS_BY_CLASS)}"
            )
        if margins.rule == "given" and self.margin is not None:
            margin = self._said("margin", f"set_margin({self.margin!r})")
            raise ConfigError(f"{said} and {margin} both say the margins; leave one of them out")
        if margins.rule == "ldam" and not self.margin_of_loss():
            margin = self._said("margin", f"set_margin({self.margin!r})")
            raise ConfigError(
                f"{said}: takes the margin of the rarest class from {margin}, so that no class would "
                "have one; set a larger one"
            )

    def _check_head_init(self) -> None:
        init = self._said("head_init", f"set_head_init({self.head_init!r})")
        if self.head_init == "by-name" and not self.checkpoint_dir:
            raise ConfigError(
                f"{init}: takes class centres from a checkpoint, and set_checkpoint_dir names none; name it"
            )
        if self.head_init != "from-embeddings":
            return
        if not self.checkpoint_dir and self.pretrained is None and self.model is None:
            raise ConfigError(
                f"{init}: needs a trained network, and the network begins at random weights; name one with "
                "set_checkpoint_dir or set_pretrained"
            )
        if self.train_reader is not None:
            raise ConfigError(
                f"{init}: reads a few images of each class of set_dataset_dir, but train_reader replaces them; choose "
                "'by-name', or give the images with set_dataset_dir"
            )

    def _check_schedule(self) -> None:
        if self.warmup_epochs > self.train_epochs:
            warmup = self._said("warmup_epochs", f"set_warmup_epochs({self.warmup_epochs})")
            epochs = self._said("train_epochs", f"set_train_epochs({self.train_epochs})")
            raise ConfigError(
                f"{warmup} is more than {epochs}, so the learning rate would never be reached; warm up for fewer epochs"
            )
        if self.warmup_epochs and self.schedule.warmup_steps:
            warmup = self._said("warmup_epochs", f"set_warmup_epochs({self.warmup_epochs})")
            raise ConfigError(
                f"{warmup} and set_schedule(warmup_steps={self.schedule.warmup_steps}) both say how long the learning "
                "rate warms up; leave one of them out"
            )
        if self.schedule.name == "plateau":
            self._check_plateau()
        if self.optimizer is None:
            return
        for name in ("lr", "lr_steps", "lr_decay_factor", "warmup_epochs", "schedule"):
            if name in self.overrides:
                raise ConfigError(
                    f"{self.overrides[name]} would change nothing, because the optimizer of set_optimizer has its own "
                    "learning rate and schedule; leave it out, or change the optimizer in the script"
                )

    def _check_plateau(self) -> None:
        schedule = self._said("schedule", "set_schedule('plateau')")
        if self.schedule.metric == "test" and not self.with_test:
            without = self._said("with_test", "set_with_test(False)")
            raise ConfigError(
                f"{schedule} follows the score of the tests, but {without} leaves them out; give metric='loss', which "
                "follows the loss"
            )
        if self.lr_decay_factor == 1:
            factor = self._said("lr_decay_factor", "set_lr_decay_factor(1)")
            raise ConfigError(
                f"{schedule} lowers the learning rate by {factor}, which changes nothing; give less than 1"
            )

    def _check_trainable(self) -> None:
        said = self._said("trainable", "set_trainable")
        is_frozen = self.param_attr is not None and not self.param_attr.trainable
        if is_frozen and any(not patterns for _, patterns in self.trainable.stages):
            raise ConfigError(
                f"{said}: trains the head alone, whose class centres set_distfc_attr freezes; leave one of them out"
            )
        teacher = self._said("teacher", "set_teacher")
        leaves_head = self.teacher is not None and not self.teacher.head
        if leaves_head and any(not patterns for _, patterns in self.trainable.stages):
            raise ConfigError(
                f"{said}: trains the head alone, which {teacher} with head=False leaves as it is, so nothing would be "
                "trained; leave one of them out"
            )
        if self.teacher is not None and all(not patterns for _, patterns in self.trainable.stages):
            raise ConfigError(
                f"{said}: trains the head alone, and {teacher} teaches the network, which is frozen; leave one of them "
                "out, or unfreeze the network at an epoch"
            )
        if (leaves_head or (is_frozen and not self.has_bias)) and any(name == "head" for name, _ in self.rate_factors):
            factors = self._said("rate_factors", "set_rate_factors")
            reason = f"{teacher} with head=False leaves" if leaves_head else "set_distfc_attr keeps"
            raise ConfigError(
                f"{factors}: has a factor for 'head', whose class centres {reason} as they are; leave one of them out"
            )

    def margin_of_loss(self) -> Any:
        """Returns the margin that was set, or else the default of the loss, as `DEFAULT_MARGINS` has it."""
        return DEFAULT_MARGINS[kind_of(self.loss_type)] if self.margin is None else self.margin


def plain_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that JSON can hold, by name. Leaves out the objects of the user and the credentials."""
    plain = _plain(config)
    return {name: value for name, value in plain.items() if name not in (*Config.OBJECTS, "overrides", "given")}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value) if one.repr}
    return type(value).__name__


def plain_attributes(thing: Any) -> dict[str, Any]:
    """Returns the attributes of an object that are plain values, by name."""
    plain = (bool, int, float, str, tuple)
    return {name: value for name, value in getattr(thing, "__dict__", {}).items() if isinstance(value, plain)}


def kind_of(loss_type: str) -> str:
    """Returns a loss type without the prefix `dist_`."""
    return loss_type[len("dist_") :] if loss_type.startswith("dist_") else loss_type


def check_int(setter: str, value: Any, minimum: int, maximum: int = LARGEST_COUNT) -> int:
    """Returns `value` as an int in [minimum, maximum]. Refuses bools and floats."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or not minimum <= value <= maximum:
        raise ConfigError(
            f"{setter}({shown(value)}): expected an integer of at least {minimum} and at most {maximum:,}"
        )
    return int(value)


def check_float(setter: str, value: Any, low: float, high: float = math.inf, above: bool = False) -> float:
    """Returns `value` as a finite float in [low, high], or in (low, high] when `above` is set."""
    number = math.nan
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # of an integer that no float can hold
            number = float(value)
    if not (math.isfinite(number) and (number > low if above else number >= low) and number <= high):
        bounds = f"{'above' if above else 'of at least'} {low:g}" + (
            f" and at most {high:g}" if high < math.inf else ""
        )
        raise ConfigError(f"{setter}({shown(value)}): expected a finite number {bounds}")
    return number


def check_bool(setter: str, value: Any) -> bool:
    """Returns `value`, which must be True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{setter}({shown(value)}): expected True or False")
    return value


def check_str(setter: str, value: Any, allow_empty: bool = False) -> str:
    """Returns `value`, which must be a string or a path, and not an empty one unless `allow_empty` is set."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not (value or allow_empty):
        raise ConfigError(f"{setter}({shown(value)}): expected a {'' if allow_empty else 'non-empty '}string")
    if "\0" in value:
        raise ConfigError(f"{setter}({shown(value)}): expected a string without null characters")
    return value


def check_choice(setter: str, value: Any, choices: Sequence[str]) -> str:
    """Returns `value`, which must be one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{setter}({shown(value)}): expected one of {', '.join(choices)}")
    return value


def check_image_shape(setter: str, value: Any) -> tuple[int, int, int]:
    """Returns `value` as (channels, height, width), with 1 or 3 channels and sides of 16 to `LARGEST_SIDE`."""
    fits = (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in value)
        and value[0] in (1, 3)
        and 16 <= min(value[1:]) <= max(value[1:]) <= LARGEST_SIDE
    )
    if not fits:
        raise ConfigError(
            f"{setter}({shown(value)}): expected (channels, height, width) with 1 or 3 channels and sides of at least "
            f"16 and at most {LARGEST_SIDE:,}"
        )
    return (int(value[0]), int(value[1]), int(value[2]))


def check_colour(setter: str, value: Any) -> tuple[int, int, int]:
    """Returns `value` as (red, green, blue), each from 0 to 255."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ConfigError(f"{setter}({shown(value)}): expected (red, green, blue), such as (255, 255, 255)")
    red, green, blue = _each(setter, value, lambda call, part: check_int(call, part, 0, 255))
    return red, green, blue


def _each(setter: str, values: Sequence[Any], check: Callable[[str, Any], Any]) -> list[Any]:
    """Returns the checked values of a list. An error shows the call with the whole list, as the user made it."""
    checked = []
    for value in values:
        try:
            checked.append(check(setter, value))
        except ConfigError as problem:
            reason = str(problem).removeprefix(f"{setter}({shown(value)}): ")
            raise ConfigError(f"{setter}({shown(values)}): {shown(value)} in it: {reason}") from None
    return checked


def check_rates(setter: str, value: Any) -> tuple[float, ...]:
    """Returns `value` as different rates in (0, 0.5], the largest first."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{setter}({shown(value)}): expected a list of rates, such as [1e-3, 1e-4]")
    rates = _each(setter, value, lambda call, rate: check_float(call, rate, 0, 0.5, above=True))
    return tuple(sorted(set(rates), reverse=True))


def check_step_boundaries(setter: str, value: Any) -> tuple[int, ...]:
    """Returns `value` as strictly increasing positive step numbers. There may be none."""
    fits = isinstance(value, (list, tuple)) and all(
        isinstance(step, (int, np.integer)) and not isinstance(step, bool) and 0 < step <= LARGEST_TOTAL
        for step in value
    )
    if not fits or any(b <= a for a, b in zip(value, value[1:])):
        raise ConfigError(f"{setter}({shown(value)}): expected a list of strictly increasing positive step numbers")
    return tuple(int(step) for step in value)
