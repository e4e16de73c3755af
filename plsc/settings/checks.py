"""Checks of the settings that take an object, several arguments, or a name that another module lists.

Each takes the name of the setter, for its messages, and then the setter's arguments. Paddle takes seconds to load, so
it is imported only where a check needs it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from plsc.config import (
    BALANCED_BETA,
    CHECKPOINT_WEIGHTS,
    INITS_BY_NAME,
    LARGEST_BYTES,
    LARGEST_CLASS_WEIGHT,
    LARGEST_COUNT,
    LARGEST_FACTOR,
    LARGEST_TOTAL,
    LARGEST_WEIGHT,
    LESSONS,
    LOSS_TYPES,
    METRICS,
    MOST_NAMES,
    MOST_PATTERNS,
    SCHEDULES,
    ByClass,
    DataCache,
    Hdfs,
    HdfsUpload,
    MixedPrecision,
    Pretrained,
    Scalars,
    Schedule,
    Teaching,
    Trainable,
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_str,
)
from plsc.data.augmentation import EFFECTS, Augmentation, Effect
from plsc.errors import ConfigError, shown
from plsc.machine.files import open_regular, read_regular
from plsc.machine.json_files import LARGEST
from plsc.zoo import check_target

if TYPE_CHECKING:
    from plsc.heads import Margin

EffectValue = Union[float, Sequence[float]]


def dataset_dir(
    setter: str,
    directory: Union[str, Sequence[str]],
    heads: str = "merged",
    weights: Optional[Sequence[float]] = None,
    exclude: Optional[str] = None,
) -> tuple[Union[str, tuple[str, ...]], str, Optional[tuple[float, ...]], Optional[str]]:
    """Returns one path or several, whether their heads are separate, what images count, and which are left out."""
    from plsc.storage.address import split_address

    check_choice(f"{setter}: heads", heads, ("merged", "separate"))
    if not isinstance(directory, (list, tuple)):
        paths: tuple[str, ...] = (check_str(setter, directory),)
    elif not directory or any(isinstance(one, (list, tuple)) for one in directory):
        raise ConfigError(f"{setter}({shown(directory)}): expected a path, or a list of the paths of several data sets")
    else:
        paths = tuple(check_str(setter, one) for one in directory)
    for path in paths:
        split_address(setter, path)  # raises an error for an address that plsc cannot read
    _check_distinct(setter, paths)
    if len(paths) == 1 and (heads == "separate" or weights is not None):
        given = "heads='separate'" if heads == "separate" else "weights"
        raise ConfigError(f"{setter}: {given} is for several data sets, and there is one; list more, or leave it out")
    if weights is not None:
        if not isinstance(weights, (list, tuple)) or len(weights) != len(paths):
            raise ConfigError(
                f"{setter}: weights={shown(weights)}: expected a list of {len(paths)} numbers, one for each data set"
            )
        weights = tuple(check_float(f"{setter}: weights", one, 0, LARGEST_WEIGHT, above=True) for one in weights)
    left_out = None if exclude is None else check_str(f"{setter}: exclude", exclude)
    return (paths[0] if len(paths) == 1 else paths), heads, weights, left_out


def _check_distinct(setter: str, paths: Sequence[str]) -> None:
    first_of: dict[str, int] = {}
    for number, path in enumerate(paths):
        place = os.path.abspath(path)
        with contextlib.suppress(ValueError, OSError):  # for names that no file can have
            place = os.path.realpath(path)
        first = first_of.setdefault(place, number)
        if first != number:
            same = "" if paths[first] == path else f", as {shown(paths[first])} and {shown(path)}"
            raise ConfigError(
                f"{setter}: the data set {shown(path)} is listed twice{same}; list each set once: weights make its "
                "images count more"
            )


def data_cache(setter: str, directory: Optional[str], size: Any = None) -> Optional[DataCache]:
    """Returns the directory and its size in bytes, or None for no cache."""
    import argparse

    from plsc.arguments import size as read_size

    if directory is None:
        return None
    if "://" in check_str(f"{setter}: directory", directory):
        raise ConfigError(f"{setter}({shown(directory)}): expected a folder of this machine")
    if isinstance(size, str) and not size.strip().isdigit():
        try:
            return DataCache(check_str(setter, directory), read_size(size))
        except argparse.ArgumentTypeError:
            pass
    elif not isinstance(size, float):
        with contextlib.suppress(ConfigError, ValueError):
            number = int(size) if isinstance(size, str) else size
            return DataCache(check_str(setter, directory), check_int(setter, number, 1, LARGEST_BYTES))
    raise ConfigError(
        f"{setter}: size={shown(size)}: expected a size such as '200GB' or '1.5TiB', or a number of bytes"
    )


def data_format(setter: str, data_format: str, shuffle: Optional[str] = None) -> tuple[str, Optional[str]]:
    """Returns the format, and the way files that hold many images are shuffled."""
    from plsc.data.sources import DATA_FORMATS, FORMATS, SHUFFLES

    check_choice(setter, data_format, DATA_FORMATS)
    if shuffle is not None:
        shuffles = SHUFFLES if data_format == "auto" else FORMATS[data_format].shuffles
        check_choice(f"{setter}({data_format!r}): shuffle", shuffle, shuffles or SHUFFLES)
        if not shuffles:
            raise ConfigError(
                f"{setter}({data_format!r}, shuffle={shuffle!r}): shuffle is for files that hold many images; leave it "
                "out, image files are shuffled in full"
            )
    return data_format, shuffle


def sampler(setter: str, sampler: str, images_per_class: Optional[int] = None) -> tuple[str, Optional[int]]:
    """Returns how images are drawn, and how many of a class a batch of 'pxk' has."""
    from plsc.data.class_sampler import DEFAULT_IMAGES, SAMPLERS

    check_choice(setter, sampler, SAMPLERS)
    if sampler != "pxk":
        if images_per_class is not None:
            raise ConfigError(f"{setter}({sampler!r}, images_per_class={shown(images_per_class)}): is for 'pxk' alone")
        return sampler, None
    images = DEFAULT_IMAGES if images_per_class is None else images_per_class
    return sampler, check_int(f"{setter}: images_per_class", images, 1)


def num_classes(setter: str, n: Any) -> int:
    """Returns the number of classes, 0 for 'auto'."""
    if isinstance(n, str):
        if n != "auto":
            raise ConfigError(f"{setter}({shown(n)}): expected a number, or 'auto' to count the classes of the data")
        return 0
    return check_int(setter, n, 1, LARGEST_TOTAL)


def class_names(setter: str, names: Any) -> Optional[tuple[str, ...]]:
    """Returns the names of a list, or of a text file with one name on each line, or None."""
    if names is None:
        return None
    where = setter
    if isinstance(names, (str, os.PathLike)):
        where = f"{setter}({shown(str(names))})"
        if "://" in str(names):
            raise ConfigError(
                f"{where}: is not a file of this machine; download it with plsc fs get {names} classes.txt, and name "
                "that file"
            )
        try:
            text = read_regular(check_str(setter, names)).decode("utf-8-sig")
            names = io.StringIO(text, newline=None).read().rstrip("\n").split("\n")
        except (OSError, ValueError) as problem:  # the latter for bytes that are not UTF-8, also in the name
            reason = getattr(problem, "strerror", None) or "not UTF-8"
            raise ConfigError(
                f"{where}: the file cannot be read ({reason}); name a text file with one class name on each line"
            ) from None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}({shown(names)}): expected a list of names, or a file with one on each line")
    if len(names) > MOST_NAMES:
        raise ConfigError(f"{where}: {len(names):,} names are too many; at most {MOST_NAMES:,} are kept")
    found = tuple(name.strip() for name in names)
    for number, name in enumerate(found):
        if not name or len(name.splitlines()) > 1 or not name.isprintable():
            raise ConfigError(
                f"{where}: the name of class {number} is {shown(name)}; give each class a name of one line, "
                "without tabs or other control characters"
            )
    size = len(json.dumps(found))
    if size > LARGEST // 2:
        raise ConfigError(
            f"{where}: the names take {size:,} bytes in each checkpoint; shorten them to {LARGEST // 2:,} in all"
        )
    return found


def augmentation(
    setter: str,
    mirror: bool = True,
    rotate: float = 0,
    translate: float = 0,
    *,
    crop: EffectValue = 0,
    color_jitter: EffectValue = 0,
    grayscale: EffectValue = 0,
    blur: EffectValue = 0,
    low_resolution: EffectValue = 0,
    jpeg: EffectValue = 0,
    erasing: EffectValue = 0,
) -> Augmentation:
    """Returns how training images are changed."""
    return Augmentation(
        mirror=check_bool(f"{setter}: mirror", mirror),
        rotate=check_float(f"{setter}: rotate", rotate, 0, 180),
        translate=check_float(f"{setter}: translate", translate, 0, 1),
        crop=_effect(setter, "crop", crop),
        color_jitter=_effect(setter, "color_jitter", color_jitter),
        grayscale=_effect(setter, "grayscale", grayscale),
        blur=_effect(setter, "blur", blur),
        low_resolution=_effect(setter, "low_resolution", low_resolution),
        jpeg=_effect(setter, "jpeg", jpeg),
        erasing=_effect(setter, "erasing", erasing),
        chosen=True,
    )


def _effect(setter: str, name: str, value: EffectValue) -> Effect:
    """Returns how often and how strongly an effect changes images, from a probability or a pair with a strength."""
    kind, where = EFFECTS[name], f"{setter}: {name}"
    if not isinstance(value, (list, tuple)):
        return Effect(check_float(where, value, 0, 1), kind.strength)
    if len(value) != 2:
        raise ConfigError(f"{where}({shown(value)}): expected a probability, or a pair (probability, strength)")
    strength = check_float(f"{where}, {kind.meaning}", value[1], kind.low, kind.high, above=True)
    return Effect(check_float(where, value[0], 0, 1), strength)


def model_name(setter: str, name: str) -> tuple[str, None]:
    """Returns the name of a built-in model, which replaces a custom model."""
    from plsc.models import MODEL_NAMES

    return check_choice(setter, name, MODEL_NAMES), None


def model(setter: str, model: Any) -> Any:
    """Returns `model`, which must be a layer of Paddle."""
    from paddle.nn import Layer

    if not isinstance(model, Layer):
        shown = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ConfigError(
            f"{setter}({shown}): expected an instance of a subclass of plsc.BaseModel, or of paddle.nn.Layer"
        )
    return model


def loss_type(setter: str, loss: Union[str, Margin]) -> tuple[str, Any]:
    """Returns the name of the loss, and its margin object or None."""
    if not isinstance(loss, str):
        from plsc.heads import Margin

        if isinstance(loss, Margin):
            return f"dist_{type(loss).__name__.lower()}", loss
    return check_choice(setter, loss, LOSS_TYPES), None


def margin(setter: str, m: Any) -> Any:
    """Returns one number, three numbers, or None for the default of the loss."""
    if m is None:
        return None
    if not isinstance(m, (list, tuple)):
        return check_float(setter, m, 0, 3.14)
    if len(m) != 3:
        raise ConfigError(f"{setter}({shown(m)}): expected one number, or three for the combined margin")
    m1, m2, m3 = m
    return (
        check_float(f"{setter}: m1", m1, 0, 10, above=True),
        check_float(f"{setter}: m2", m2, 0, 3.14),
        check_float(f"{setter}: m3", m3, 0, 3.14),
    )


def class_weights(setter: str, weights: Any, beta: Optional[float] = None) -> Optional[ByClass]:
    """Returns the weights of the classes, or how they follow from the data; None weighs all classes the same."""
    if not isinstance(weights, str) or weights != "balanced":
        if beta is not None:
            raise ConfigError(f"{setter}({shown(weights)}, beta={shown(beta)}): beta is for 'balanced' alone")
        values = _by_class(setter, weights, LARGEST_CLASS_WEIGHT, "'balanced'")
        if values is not None and values.values is not None and not values.values.any():
            raise ConfigError(f"{setter}: all weights are 0, so nothing would be trained; weigh some classes")
        return values
    return ByClass("balanced", beta=_below_one(f"{setter}: beta", BALANCED_BETA if beta is None else beta))


def class_margins(setter: str, margins: Any) -> Optional[ByClass]:
    """Returns the margins of the classes, or how they follow from the data; None is the margin of the loss for all."""
    if isinstance(margins, str) and margins == "ldam":
        return ByClass("ldam")
    return _by_class(setter, margins, 3.14, "'ldam'")


def _by_class(setter: str, values: Any, largest: float, rule: str) -> Optional[ByClass]:
    """Returns a number for each class from a list, an array, or a file that holds one; None for None.

    Raises:
        ConfigError: It holds something else, or a number is not in [0, largest].
    """
    import hashlib

    import numpy as np

    if values is None:
        return None
    where = f"{setter}({shown(values)})"
    if isinstance(values, (str, os.PathLike)):
        values = _numbers_of_file(where, check_str(setter, values), rule)
    is_plain = isinstance(values, (list, tuple)) and all(
        isinstance(one, (int, float, np.integer, np.floating)) and not isinstance(one, bool) for one in values
    )
    try:
        with np.errstate(over="ignore"):  # infinity is refused below
            found = np.asarray(values if is_plain or isinstance(values, np.ndarray) else None, "float64")
    except (TypeError, ValueError, OverflowError):
        found = np.zeros(0)
    if found.ndim != 1 or not found.size or (isinstance(values, np.ndarray) and values.dtype.kind not in "iuf"):
        raise ConfigError(f"{where}: expected {rule}, a number for each class, or a file with one on each line")
    wrong = np.flatnonzero(~((found >= 0) & (found <= largest)))
    if len(wrong):
        raise ConfigError(
            f"{where}: the number of class {wrong[0]} is {found[wrong[0]]:g}; each must be at least 0 and at most "
            f"{largest:g}"
        )
    numbers = found.astype("float32")
    return ByClass("given", digest=hashlib.sha256(numbers.tobytes()).hexdigest()[:16], values=numbers)


def _numbers_of_file(where: str, path: str, rule: str) -> Any:
    """Returns the numbers of a `.npy` file, or of a text file with one on each line.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    import numpy as np

    try:
        if path.endswith(".npy"):
            with open_regular(path) as stream:
                return np.load(stream, allow_pickle=False)
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, ValueError, EOFError, MemoryError) as problem:  # all but the first for what is no such file
        reason = getattr(problem, "strerror", None) or "it holds something else"
        raise ConfigError(
            f"{where}: the file cannot be read ({reason}); give {rule}, a .npy file, or a text file with one number on "
            "each line"
        ) from None
    numbers: list[float] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            numbers.extend(float(word) for word in line.split())
        except ValueError:
            raise ConfigError(
                f"{where}: line {number} is {shown(line)}, which is not a number; write one number on each line"
            ) from None
    return numbers


def label_smoothing(setter: str, e: float) -> float:
    """Returns the share of the label's probability that goes to all classes alike."""
    return _below_one(setter, e)


def _below_one(setter: str, value: float) -> float:
    """Returns a number of at least 0 and below 1."""
    try:
        share = check_float(setter, value, 0)
    except ConfigError:
        share = 1.0
    if share >= 1:
        raise ConfigError(f"{setter}({shown(value)}): expected a number of at least 0 and below 1")
    return share


def distfc_attr(setter: str, param_attr: Any = None, bias_attr: Any = None) -> tuple[Any, Any]:
    """Returns both attributes, which must be a `paddle.ParamAttr` or None."""
    import paddle

    for name, attr in (("param_attr", param_attr), ("bias_attr", bias_attr)):
        if attr is not None and not isinstance(attr, paddle.ParamAttr):
            raise ConfigError(f"{setter}: {name}={shown(attr)}: expected a paddle.ParamAttr")
    return param_attr, bias_attr


def optimizer(setter: str, optimizer: Any) -> Any:
    """Returns `optimizer`, which must be an optimizer of Paddle or a function."""
    import paddle

    if not isinstance(optimizer, paddle.optimizer.Optimizer) and not callable(optimizer):
        raise ConfigError(
            f"{setter}({shown(optimizer)}): expected a paddle.optimizer.Optimizer, or a function that makes one from "
            "the parameters"
        )
    return optimizer


def strategy(setter: str, strategy: Any) -> Any:
    """Returns a copy of `strategy`, which must change only what data parallelism uses."""
    from plsc.parallel import check_strategy

    return check_strategy(setter, strategy)


def mixed_precision(
    setter: str,
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
) -> MixedPrecision:
    """Returns how mixed precision works."""
    if amp_lists is not None:
        from plsc.amp import as_lists

        as_lists(amp_lists)
    return MixedPrecision(
        use_fp16=check_bool(f"{setter}: use_fp16", use_fp16),
        init_loss_scaling=check_float(f"{setter}: init_loss_scaling", init_loss_scaling, 0, above=True),
        incr_every_n_steps=check_int(f"{setter}: incr_every_n_steps", incr_every_n_steps, 1),
        decr_every_n_nan_or_inf=check_int(f"{setter}: decr_every_n_nan_or_inf", decr_every_n_nan_or_inf, 1),
        incr_ratio=check_float(f"{setter}: incr_ratio", incr_ratio, 1, above=True),
        decr_ratio=check_float(f"{setter}: decr_ratio", decr_ratio, 0, 1, above=True),
        use_dynamic_loss_scaling=check_bool(f"{setter}: use_dynamic_loss_scaling", use_dynamic_loss_scaling),
        amp_lists=amp_lists,
        dtype=check_choice(f"{setter}: dtype", dtype, ("float16", "bfloat16")),
        simulate=check_bool(f"{setter}: simulate", simulate),
    )


def model_save_dir(setter: str, directory: Optional[str]) -> str:
    """Returns the folder, or '' for none."""
    folder = "" if directory is None else check_str(setter, directory, allow_empty=True)
    check_target(setter, folder)
    if "://" in folder:
        raise ConfigError(
            f"{setter}({shown(folder)}): is an address; name a folder of this machine, and the store with set_hdfs_info"
        )
    return folder


def schedule(
    setter: str,
    name: str,
    power: float = 2.0,
    floor: float = 0.0,
    warmup_steps: int = 0,
    patience: int = 3,
    metric: str = "test",
) -> Schedule:
    """Returns how the learning rate moves."""
    made = Schedule(
        check_choice(setter, name, SCHEDULES),
        power=check_float(f"{setter}: power", power, 0, 100, above=True),
        floor=check_float(f"{setter}: floor", floor, 0, 1),
        warmup_steps=check_int(f"{setter}: warmup_steps", warmup_steps, 0, LARGEST_TOTAL),
        patience=check_int(f"{setter}: patience", patience, 0, LARGEST_COUNT),
        metric=check_choice(f"{setter}: metric", metric, METRICS),
    )
    for option, owner in (("power", "poly"), ("patience", "plateau"), ("metric", "plateau")):
        if name != owner and getattr(made, option) != getattr(Schedule(), option):
            raise ConfigError(
                f"{setter}: {option}={getattr(made, option)!r} is for {owner!r} and would change nothing of {name!r}; "
                "leave it out"
            )
    return made


def ema(setter: str, decay: float) -> float:
    """Returns the decay of the average of weights, or 0 for none."""
    number = check_float(setter, decay, 0)
    if number >= 1:
        raise ConfigError(
            f"{setter}({shown(decay)}): expected a number below 1, such as 0.9999; with 1 the average would never move"
        )
    return number


def checkpoint_dir(setter: str, directory: str, weights: str = "average") -> tuple[str, str]:
    """Returns the checkpoint to load, and which of its weights."""
    folder = check_str(setter, directory, allow_empty=True)
    return folder, check_choice(f"{setter}: weights", weights, CHECKPOINT_WEIGHTS)


def trainable(setter: str, what: Union[str, Sequence[str], Mapping[int, Union[str, Sequence[str]]]]) -> Trainable:
    """Returns what is trained, and from which epochs on."""
    stages = {}
    for epoch, named in (what if isinstance(what, Mapping) else {0: what}).items():
        # JSON, which carries the settings of a command line to the ranks, has texts as keys.
        number = int(epoch) if isinstance(epoch, str) and epoch.isdecimal() and len(epoch) < 10 else epoch
        stages[check_int(f"{setter}: epoch", number, 0)] = _patterns(setter, named)
    if 0 not in stages:
        raise ConfigError(
            f"{setter}({shown(what)}): say what is trained from epoch 0 on, such as {{0: 'head', 2: 'all'}}"
        )
    said = {("*",): "all", (): "head"}
    texts = {epoch: said.get(patterns, ", ".join(patterns)) for epoch, patterns in sorted(stages.items())}
    text = "; ".join(f"from epoch {epoch} {text}" if epoch else text for epoch, text in texts.items())
    return Trainable(text, tuple(sorted(stages.items())))


def _patterns(setter: str, what: Any) -> tuple[str, ...]:
    """Returns the patterns of 'all', 'head', a pattern, or a list of these; the head itself is always trained."""
    given = [what] if isinstance(what, str) else what
    if not isinstance(given, (list, tuple)) or not 0 < len(given) <= MOST_PATTERNS:
        raise ConfigError(
            f"{setter}({shown(what)}): expected 'head', 'all', a pattern of parameter names such as 'blocks.7.*', a "
            "list of patterns, or these by epoch, such as {0: 'head', 2: 'all'}"
        )
    checked = [check_str(setter, one) for one in given]
    named = ["*" if one == "all" else one for one in checked]
    return ("*",) if "*" in named else tuple(dict.fromkeys(one for one in named if one != "head"))


def rate_factors(setter: str, factors: Any) -> tuple[tuple[str, float], ...]:
    """Returns the patterns and factors, in their order; None and {} are none."""
    if factors is None:
        return ()
    if not isinstance(factors, Mapping) or len(factors) > MOST_PATTERNS:
        raise ConfigError(
            f"{setter}({shown(factors)}): expected factors by pattern of parameter names, such as {{'blocks.*': 0.1}}"
        )
    return tuple(
        (check_str(setter, pattern), check_float(f"{setter}: {shown(pattern)}", factor, 0, LARGEST_FACTOR, above=True))
        for pattern, factor in factors.items()
    )


def pretrained(setter: str, source: Any, std: float = 127.5, order: str = "rgb") -> Optional[Pretrained]:
    """Returns which file of weights training begins with, or None for ''."""
    path = check_str(setter, os.fspath(source) if isinstance(source, os.PathLike) else source, allow_empty=True)
    return Pretrained(std, order, path) if path else None


def teacher(
    setter: str, source: Any, weight: float = 30.0, kind: str = "cosine", head: bool = True
) -> Optional[Teaching]:
    """Returns who teaches and how much it counts, or None for None and ''."""
    if source is None or (isinstance(source, str) and not source):
        return None
    if isinstance(source, (str, os.PathLike)):
        source = check_str(setter, source)
    else:
        from paddle.nn import Layer

        if not isinstance(source, Layer):
            raise ConfigError(
                f"{setter}({shown(source)}): expected the folder of an export, of a checkpoint or of embeddings, or an "
                "instance of paddle.nn.Layer"
            )
    return Teaching(
        source,
        weight=check_float(f"{setter}: weight", weight, 0, LARGEST_COUNT, above=True),
        kind=check_choice(f"{setter}: kind", kind, LESSONS),
        head=check_bool(f"{setter}: head", head),
    )


def head_init(setter: str, init: str) -> str:
    """Returns which class centres training takes."""
    return check_choice(setter, init, ("checkpoint", "keep-common", "fresh", *INITS_BY_NAME))


def head_dtype(setter: str, dtype: str) -> str:
    """Returns the type in which the class centres are kept."""
    return check_choice(setter, dtype, ("float32", "bfloat16"))


def identification(setter: str, gallery: Optional[str], probes: Optional[str] = None) -> Optional[tuple[str, str]]:
    """Returns the gallery and the probes, or None."""
    if gallery is None:
        return None
    return check_str(f"{setter}: gallery", gallery), check_str(f"{setter}: probes", probes)


def scalars(setter: str, kind: Optional[str], directory: Optional[str] = None) -> Optional[Scalars]:
    """Returns the viewer and its folder, or None."""
    if kind is not None:
        from plsc.engine.scalars import KINDS, check_package

        check_package(check_choice(setter, kind, tuple(KINDS)))
    if directory is not None and "://" in check_str(f"{setter}: directory", directory):
        raise ConfigError(f"{setter}: directory={directory!r}: expected a folder of this machine")
    return None if kind is None else Scalars(kind, directory)


def hdfs_info(
    setter: str,
    fs_name: Optional[str],
    fs_ugi: Optional[str],
    fs_dir_for_save: Optional[str] = None,
    fs_checkpoint_dir: Optional[str] = None,
    auth: Optional[str] = None,
    keytab: Optional[str] = None,
) -> Hdfs:
    """Returns the address, the credentials and the folders."""
    from plsc.storage.address import check_hdfs_address, check_takes_kerberos

    for name, value in (("fs_dir_for_save", fs_dir_for_save), ("fs_checkpoint_dir", fs_checkpoint_dir)):
        if value is not None and "://" in check_str(f"{setter}: {name}", value):
            raise ConfigError(f"{setter}: {name}={shown(value)}: give the folder alone; its address is fs_name")
    if fs_ugi is not None and (not isinstance(fs_ugi, str) or not fs_ugi.split(",", 1)[0] or "," not in fs_ugi):
        # The value holds a password, so the message does not show it.
        raise ConfigError(f"{setter}: fs_ugi must be a string of the form 'name,password', or None")
    if keytab is not None:
        keytab = check_str(f"{setter}: keytab", keytab)
        auth = "kerberos" if auth is None else auth
    if auth is not None and check_choice(f"{setter}: auth", auth, ("kerberos",)) and fs_ugi is not None:
        raise ConfigError(f"{setter}: with Kerberos, the ticket or the keytab says who connects; give None as fs_ugi")
    if fs_name is not None:
        check_hdfs_address(fs_name, is_alias=fs_ugi is None)
        if auth is not None:
            check_takes_kerberos(f"{setter}: auth and keytab", fs_name)
    return Hdfs(fs_name, fs_ugi, fs_dir_for_save, fs_checkpoint_dir, auth=auth, keytab=keytab)


def hdfs_client(setter: str, client: Any) -> Any:
    """Returns `client`, which must have the methods of a client of the `hdfs` package."""
    needed: Sequence[str] = ("status", "list", "read", "write", "rename")
    if not all(callable(getattr(client, name, None)) for name in needed):
        raise ConfigError(
            f"{setter}({type(client).__name__}): expected a client of the hdfs package, such as hdfs.TokenClient(...)"
        )
    return client


def hdfs_upload(setter: str, when: str, retry_seconds: float = 300) -> HdfsUpload:
    """Returns when to upload and how long to retry."""
    return HdfsUpload(
        when=check_choice(setter, when, ("end", "epoch", "step")),
        retry_seconds=check_float(f"{setter}: retry_seconds", retry_seconds, 0, LARGEST_COUNT),
    )
