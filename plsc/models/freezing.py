"""Which parts of a model are trained, and which are frozen: patterns of parameter names choose them for each epoch."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import paddle

from plsc.errors import ConfigError
from plsc.layers import scope
from plsc.models.modes import TrainingModes

logger = logging.getLogger("plsc")

HEAD = "head"  # the pattern of the class centres, whatever the backbone's names are
# Parameters of Paddle's layers that a forward pass never changes. Running statistics have other names.
_UNCHANGED = ("weight", "bias", "scale", "_weight")
_STATISTICS = ("_mean", "_variance")  # of BatchNorm, which Paddle lists among the parameters of a layer
_NEAR = 3  # names in a message


class TrainedParts:
    """The parts of a model that `set_trainable` leaves to training.

    Parameters that the model itself freezes (`stop_gradient`) stay frozen, whatever the patterns say. A layer with
    parameters or statistics, none of which a pattern names, is in evaluation mode, with everything in it, so that its
    statistics stay as they are.

    Until `begin` is called, the model trains all that some epoch trains.

    Args:
        model: The model, with all its layers made.
        stages: The patterns from an epoch on, as `Trainable` has them.
        modes: The modes of the layers of `model`; None leaves them alone.

    Raises:
        ConfigError: A pattern names no parameter that can be trained, or a later stage freezes what an earlier one
            trains.
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        stages: Sequence[tuple[int, tuple[str, ...]]],
        modes: Optional[TrainingModes] = None,
    ) -> None:
        self._model, self._modes = model, modes
        self._free = {id(p): p for p in model.parameters() if not p.stop_gradient}
        self._rates = [(p, dict(p.optimize_attr)) for p in model.parameters() if hasattr(p, "optimize_attr")]
        self._names = _names_of(model, self._free)
        self._stages = [(first, _chosen(self._names, patterns, model), patterns) for first, patterns in stages]
        for (_, before, _), (epoch, now, _) in zip(self._stages, self._stages[1:]):
            if not before <= now:
                names = _some(self._names[one] for one in before - now)
                raise ConfigError(
                    f"set_trainable: epoch {epoch} freezes {names}, which the epochs before it train; a later stage "
                    "may only unfreeze, so let it name them too"
                )
        self._stage = len(self._stages) - 1
        self._apply()

    def begin(self, epoch: int) -> bool:
        """Freezes and unfreezes for an epoch; returns whether anything has changed."""
        stage = max(number for number, (first, _, _) in enumerate(self._stages) if first <= epoch)
        if len(self._stages) == 1 or stage == self._stage:
            return False
        self._stage = stage
        self._apply()
        return True

    def describe(self) -> str:
        """Returns how much of the model is trained now, for the log."""
        trained = sum(p.size for p in self._free.values() if not p.stop_gradient)
        return f"{trained:,} of {sum(p.size for p in self._free.values()):,} parameters of the backbone are trained"

    def statistics(self) -> list[paddle.Tensor]:
        """Returns the tensors of the model that a training step can change, and that are not trained."""
        held = {id(t) for layer in self._frozen_layers() for t in layer.state_dict(include_sublayers=False).values()}
        return [t for t in statistics_of(self._model).values() if id(t) not in held and id(t) not in self._free]

    def give_back(self) -> None:
        """Leaves the model as the user gave it: what was frozen for the training alone can be trained again."""
        for parameter in self._free.values():
            parameter.stop_gradient = False
        for parameter, attributes in self._rates:
            parameter.optimize_attr = attributes
        self._hold([])

    def _apply(self) -> None:
        chosen = self._stages[self._stage][1]
        for key, parameter in self._free.items():
            parameter.stop_gradient = key not in chosen
        self._hold(self._frozen_layers())

    def _hold(self, layers: Sequence[paddle.nn.Layer]) -> None:
        scope.keep_in_evaluation(self._model, layers)
        if self._modes is not None:
            self._modes.hold(layers)

    def _frozen_layers(self) -> list[paddle.nn.Layer]:
        """Returns the layers that the current stage keeps in evaluation mode."""
        found: dict[int, tuple[paddle.nn.Layer, bool]] = {}
        _mark_frozen(self._model, "", self._stages[self._stage][2], (False, found))
        return [layer for layer, is_frozen in found.values() if is_frozen]


def is_statistic(name: str) -> bool:
    """Returns whether a parameter of this name is a running statistic of BatchNorm."""
    return name.rpartition(".")[2] in _STATISTICS


def statistics_of(model: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """Returns the state of a model that is not trained, and that a forward pass may change, by name.

    That is everything without a gradient, such as BatchNorm's running mean and variance, except for frozen weights and
    biases in layers of Paddle, and for what plsc's own layers hold.
    """
    fixed = {
        id(parameter)
        for layer in model.sublayers(include_self=True)
        for name, parameter in layer.named_parameters(include_sublayers=False)
        if type(layer).__module__.startswith("plsc.")
        or (type(layer).__module__.startswith("paddle.nn.layer.") and name in _UNCHANGED)
    }
    return {name: t for name, t in model.state_dict().items() if t.stop_gradient and id(t) not in fixed}


def rate_factors_of(
    factors: Sequence[tuple[str, float]], backbone: paddle.nn.Layer, head: Mapping[str, paddle.Tensor]
) -> list[tuple[paddle.Tensor, float]]:
    """Returns the parameters whose learning rate has a factor, and the factor: that of the last pattern that fits.

    Args:
        factors: Pattern and factor, as `Config.rate_factors` has them.
        backbone: The backbone, in which all that is ever trained has a gradient.
        head: The trained parameters of this rank's head.

    Raises:
        ConfigError: A pattern names no trained parameter.
    """
    trained = {id(p): p for p in backbone.parameters() if not p.stop_gradient}
    names, found = _names_of(backbone, trained), {}
    for pattern, factor in factors:
        if pattern == HEAD:
            found.update({id(p): (p, factor) for p in head.values()})
            continue
        for key in _matching(names, pattern, "set_rate_factors", backbone):
            found[key] = (trained[key], factor)
    return list(found.values())


def _names_of(model: paddle.nn.Layer, parameters: Mapping[int, paddle.Tensor]) -> dict[int, list[str]]:
    """Returns the names in `state_dict()` of parameters, by id; a shared parameter has several."""
    names: dict[int, list[str]] = {key: [] for key in parameters}
    for name, tensor in model.state_dict().items():
        if id(tensor) in names:
            names[id(tensor)].append(name)
    return names


def _chosen(names: Mapping[int, list[str]], patterns: Sequence[str], model: paddle.nn.Layer) -> set[int]:
    """Returns the ids of the parameters that some pattern names.

    Raises:
        ConfigError: A pattern names none, or one names a part of a layer that Paddle trains as a whole.
    """
    chosen: set[int] = set()
    for pattern in patterns:
        chosen |= set(names) if pattern == "*" else _matching(names, pattern, "set_trainable", model)
    norms = (paddle.nn.layer.norm._BatchNormBase, paddle.nn.layer.norm._InstanceNormBase, paddle.nn.BatchNorm)
    for layer in model.sublayers(include_self=True):
        own = [id(p) for p in layer.parameters(include_sublayers=False) if id(p) in names]
        some = [key for key in own if key in chosen]
        if isinstance(layer, norms) and len(own) == 2 and len(some) == 1:
            (other,) = (key for key in own if key not in chosen)
            raise ConfigError(
                f"set_trainable: {names[some[0]][0]} is named without {names[other][0]}, and Paddle has no gradient of "
                f"one of them alone in {type(layer).__name__}; name both, or neither"
            )
    return chosen


def _matching(names: Mapping[int, list[str]], pattern: str, setter: str, model: paddle.nn.Layer) -> set[int]:
    found = {key for key, own in names.items() if any(fnmatch.fnmatchcase(name, pattern) for name in own)}
    if found:
        return found
    if any(fnmatch.fnmatchcase(name, pattern) for name in model.state_dict()):
        freezes = (
            "what set_trainable or the model freezes" if setter == "set_rate_factors" else "what it freezes itself"
        )
        raise ConfigError(
            f"{setter}: {pattern!r} names only statistics in {type(model).__name__}, or {freezes}; name parameters "
            "that are trained"
        )
    near = _near(pattern, [name for own in names.values() for name in own]) if names else []
    advice = f"names near it: {', '.join(near)}" if near else "nothing of the backbone is trained"
    raise ConfigError(f"{setter}: {pattern!r} matches no parameter of {type(model).__name__}; {advice}")


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Returns patterns of layers, and names, that look like a pattern."""
    layers = {f"{name.rsplit('.', depth)[0]}.*" for name in names for depth in range(1, name.count(".") + 1)}
    return difflib.get_close_matches(pattern, [HEAD, *sorted(layers), *names], _NEAR, cutoff=0.0)


def _some(names: Iterable[list[str]]) -> str:
    every = sorted(name for own in names for name in own)
    return ", ".join(every[:_NEAR]) + (f" and {len(every) - _NEAR} more" if len(every) > _NEAR else "")


def _mark_frozen(
    layer: paddle.nn.Layer,
    prefix: str,
    patterns: Sequence[str],
    marks: tuple[bool, dict[int, tuple[paddle.nn.Layer, bool]]],
) -> None:
    """Notes for a layer and all in it whether it is frozen; a layer without state is what the layer around it is."""
    inherited, found = marks
    names = [f"{prefix}{name}" for name in layer.state_dict()]
    is_frozen = not any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns) if names else inherited
    # A layer that stands at several places is frozen where all of them are.
    found[id(layer)] = layer, is_frozen and found.get(id(layer), (layer, True))[1]
    for name, inner in layer.named_children():
        _mark_frozen(inner, f"{prefix}{name}.", patterns, (is_frozen, found))
