"""Decides which layer a call inside `build_network` means.

Every layer is created once, and each later call finds it again by name. Two dry runs create the layers, one with
`is_train` False and one with True. A call of the second run means a layer of the first if it stands at the same place
in the code, or if it is the counterpart, in the other branch of an `if`, of a call that only the first run made. So
names do not depend on what runs first, and training and tests share the layers that they should.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import paddle
from paddle import nn
from paddle.utils import unique_name

from plsc.errors import PlscError

Place = tuple[Any, ...]
Kind = tuple[str, Optional[str]]  # The function that is called, and its argument `name`.
# For each kind the names of its layers, in the order of the calls. Kinds are strings for Paddle's to_static.
Plan = dict[str, list[str]]

_NAMELESS = " without a name"
_SAME_CALLS = "build_network must make the same calls in the same order every time"


class _Current(threading.local):
    def __init__(self) -> None:  # It runs once in each thread.
        self.passes: list[Union[_DryRun, _Pass]] = []


_current = _Current()
_kept: weakref.WeakSet[nn.Layer] = weakref.WeakSet()  # frozen layers of all models


@dataclass
class _Call:
    """One call in a dry run.

    Attributes:
        kind: The function that is called, and its argument `name`.
        recipe: What must be the same at every call, such as the sizes.
        place: Where in the code the call stands.
        layer: The layer that the call means.
        shared: Names that the user gave to parameters, by attribute of the layer.
        name: Name of the layer in the model, once it has one.
    """

    kind: Kind
    recipe: tuple[Any, ...]
    place: Place
    layer: nn.Layer
    shared: dict[str, str]
    name: str = ""

    def is_like(self, other: _Call) -> bool:
        return self.kind == other.kind and self.recipe == other.recipe


class LayerScope:
    """The layers that the functions of `plsc.layers` create for one model.

    Args:
        owner: Model whose sublayers they become.
    """

    def __init__(self, owner: nn.Layer) -> None:
        self._owner = owner
        self._recipes: dict[str, tuple[Any, ...]] = {}
        self._plans: dict[bool, Plan] = {}  # By `is_train`.

    @property
    def made(self) -> bool:
        """Whether the layers have been created."""
        return bool(self._plans)

    def make(self, network: Callable[[bool], Any]) -> Any:
        """Creates the layers with two dry runs.

        Args:
            network: Function that runs the network for a value of `is_train`.

        Returns:
            The result of the dry run for tests.

        Raises:
            PlscError: The calls for training and tests do not fit together, or only tests use a layer.
        """
        tested = _DryRun([])
        result = tested.run(network, False)
        trained = _DryRun(tested.calls)
        trained.run(network, True)
        twins = _counterparts(tested.calls, trained.calls)
        added = [call for call, twin in zip(trained.calls, twins) if twin is None]
        self._register([*tested.calls, *added])
        for call, twin in zip(trained.calls, twins):
            if twin is not None:
                call.layer, call.name = twin.layer, twin.name
        _refuse_untrained(tested.calls, trained.calls)
        for is_train, run in ((False, tested), (True, trained)):
            plan: Plan = {}
            for call in run.calls:
                plan.setdefault(_described(call.kind), []).append(call.name)
            self._plans[is_train] = plan
        return result

    def _register(self, calls: Sequence[_Call]) -> None:
        """Names the layers in the model, and lets parameters of the same name share a tensor."""
        counters: Counter[str] = Counter()
        parameters: dict[str, paddle.Tensor] = {}
        for call in calls:
            kind, wanted = call.kind
            stem = (wanted or kind).replace(".", "_")
            while not call.name or hasattr(self._owner, call.name):
                number = counters[stem]
                counters[stem] += 1
                call.name = stem if wanted and number == 0 else f"{stem}_{number}"
            self._owner.add_sublayer(call.name, call.layer)
            self._recipes[call.name] = call.recipe
            for attribute, parameter_name in call.shared.items():
                own = getattr(call.layer, attribute)
                first = parameters.setdefault(parameter_name, own)
                if list(first.shape) != list(own.shape):
                    raise PlscError(
                        f"layers.{kind}: parameter {parameter_name!r} has shape {list(first.shape)} elsewhere in the "
                        f"model, and this call needs {list(own.shape)}; give it another name"
                    )
                if first is not own:
                    setattr(call.layer, attribute, first)

    def running(self, is_train: bool) -> _Pass:
        """Returns a context in which the functions of `plsc.layers` find the layers that were created."""
        return _Pass(self._owner, self._plans.get(is_train), self._recipes)


class _DryRun:
    """One run of a network that records its calls, and creates a layer for each call at a place not in `known`."""

    def __init__(self, known: Sequence[_Call]) -> None:
        self.calls: list[_Call] = []
        self._known = {call.place: call for call in known}
        self._passes_of: Counter[Place] = Counter()

    def run(self, network: Callable[[bool], Any], is_train: bool) -> Any:
        _current.passes.append(self)
        try:
            return network(is_train)
        finally:
            _current.passes.pop()

    def layer(
        self, kind: Kind, recipe: tuple[Any, ...], make: Callable[[], nn.Layer], shared: Optional[dict[str, str]] = None
    ) -> Any:
        place = self._place()
        known = self._known.get(place)
        if known is not None and known.recipe != recipe:
            raise _changed(kind[0], known.name or kind[1] or "a layer", known.recipe, recipe)
        self.calls.append(_Call(kind, recipe, place, known.layer if known else make(), shared or {}))
        return self.calls[-1].layer

    def _place(self) -> Place:
        """Returns the places in the code that led here, and how often they have; a loop calls the same place again."""
        frame, path = sys._getframe(2), []
        while frame is not None and frame.f_code is not _DryRun.run.__code__:
            path.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back  # type: ignore[assignment]
        place = tuple(path)
        self._passes_of[place] += 1
        return (self._passes_of[place], *place)


class _Pass:
    """One run of a network whose layers have been created."""

    def __init__(self, owner: nn.Layer, plan: Optional[Plan], recipes: dict[str, tuple[Any, ...]]) -> None:
        self.owner, self._plan, self._recipes = owner, plan, recipes
        self._counts: dict[str, int] = {}
        self.found: list[nn.Layer] = []  # in the order of the calls

    def copy(self) -> contextlib.AbstractContextManager:
        """Returns a context that continues a pass from where this one is now."""
        counts = dict(self._counts)

        @contextlib.contextmanager
        def continued() -> Iterator[None]:
            again = _Pass(self.owner, self._plan, self._recipes)
            again._counts = dict(counts)
            _current.passes.append(again)
            try:
                yield
            finally:
                _current.passes.pop()

        return continued()

    def layer(
        self, kind: Kind, recipe: tuple[Any, ...], make: Callable[[], nn.Layer], shared: Optional[dict[str, str]] = None
    ) -> Any:
        if self._plan is None:
            raise PlscError(
                f"layers.{kind[0]}: the layers of {type(self.owner).__name__} have not been created; call its "
                "build(image_shape), or the model on a batch, before you save it or convert it to a static graph"
            )
        key = _described(kind)
        names, number = self._plan.get(key, ()), self._counts.get(key, 0)
        self._counts[key] = number + 1
        if number >= len(names):
            raise PlscError(f"layers.{kind[0]}: {len(names)} {key} were created, and one more is called; {_SAME_CALLS}")
        name = names[number]
        if self._recipes[name] != recipe:
            raise _changed(kind[0], name, self._recipes[name], recipe)
        self.found.append(self.owner._sub_layers[name])
        return self.found[-1]

    def __enter__(self) -> _Pass:
        _current.passes.append(self)
        return self

    def __exit__(self, error: object, *rest: object) -> None:
        _current.passes.pop()
        if error is None:
            self._refuse_missing_calls()

    def _refuse_missing_calls(self) -> None:
        # If a call is missing, the calls after it may have used the layers of the calls before them.
        for key, names in (self._plan or {}).items():
            used = self._counts.get(key, 0)
            if key.endswith(_NAMELESS) and used != len(names):
                raise PlscError(
                    f"build_network: {len(names)} {key} were created, and {used} were called; {_SAME_CALLS}, or give "
                    "layers that only some runs use a name="
                )


def current_pass() -> Optional[_Pass]:
    """Returns the run of a define-by-run network that is in progress; None in a dry run, and outside of networks."""
    running = _current.passes[-1] if _current.passes else None
    return running if isinstance(running, _Pass) else None


def find_layer(
    kind: str,
    name: Optional[str],
    recipe: tuple[Any, ...],
    make: Callable[[], nn.Layer],
    shared: Optional[dict[str, Any]] = None,
) -> Any:
    """Returns the layer that a call of `layers.<kind>` means.

    Args:
        kind: Name of the function that is called.
        name: Argument `name` of the call; None numbers the layers.
        recipe: What must be the same at every call, such as the sizes.
        make: Function that creates the layer.
        shared: Names that the user gave to parameters, by attribute of the layer. Parameters of the same name are one
            parameter in the whole model.

    Raises:
        PlscError: The call is outside `build_network`, or the calls differ from those that created the layers.
    """
    if not _current.passes:
        raise PlscError(f"layers.{kind} works only inside build_network of a plsc.models.base_model.BaseModel")
    names = {attribute: given for attribute, given in (shared or {}).items() if given}
    return _current.passes[-1].layer((kind, name or None), recipe, make, names)


def in_dry_run() -> bool:
    """Returns whether a dry run is in progress, in which no random numbers are drawn and no statistics change."""
    return bool(_current.passes) and isinstance(_current.passes[-1], _DryRun)


def keep_in_evaluation(owner: nn.Layer, layers: Sequence[nn.Layer]) -> None:
    """Keeps these layers of a model in evaluation mode, whatever a call says, until it is called for other layers."""
    own = set(map(id, owner.sublayers()))
    for layer in [one for one in _kept if id(one) in own]:
        _kept.discard(layer)
    _kept.update(layers)


def is_kept_in_evaluation(layer: nn.Layer) -> bool:
    """Returns whether a layer stays in evaluation mode: it is frozen, or the user has put it there in training."""
    running = _current.passes[-1]
    return isinstance(running, _Pass) and (layer in _kept or (running.owner.training and not layer.training))


def as_attr(attr: Any) -> tuple[Any, Optional[str]]:
    """Returns what Paddle's layers take for `param_attr`, and the name that the user gave to the parameter.

    Paddle refuses a name that another parameter of the process has, so the name for Paddle gets a number.
    """
    attr = paddle.ParamAttr._to_attr(attr)
    if not attr or attr.name is None:
        return attr, None
    numbered = paddle.ParamAttr(
        name=unique_name.generate(attr.name),
        initializer=attr.initializer,
        learning_rate=attr.learning_rate,
        regularizer=attr.regularizer,
        trainable=attr.trainable,
        do_model_average=attr.do_model_average,
        need_clip=attr.need_clip,
    )
    return numbered, attr.name


def _counterparts(first: Sequence[_Call], second: Sequence[_Call]) -> list[Optional[_Call]]:
    """Returns for each call of `second` the call of `first` whose layer it uses; None if it needs a new layer."""
    places = {call.place: number for number, call in enumerate(first)}
    anchors = [places.get(call.place) for call in second]
    found = [None if at is None else first[at] for at in anchors]
    # The calls at places that differ are matched within the gaps between calls at equal places.
    gaps: dict[tuple[int, int], list[int]] = {}
    begin = 0
    for number, at in enumerate(anchors):
        if at is None:
            end = next((later for later in anchors[number:] if later is not None), len(first))
            gaps.setdefault((begin, end), []).append(number)
        else:
            begin = at + 1
    taken = set(anchors)
    for (begin, end), numbers in gaps.items():
        free = [first[i] for i in range(begin, end) if i not in taken]
        for like in {(call.kind, call.recipe): call for call in (second[number] for number in numbers)}.values():
            mine = [number for number in numbers if second[number].is_like(like)]
            theirs = [call for call in free if call.is_like(like)]
            if theirs and len(mine) != len(theirs):
                raise PlscError(
                    f"layers.{like.kind[0]}: one branch of build_network makes {len(mine)} layers of {like.recipe} for "
                    f"training and another makes {len(theirs)} for tests, and it is unclear which belong together; "
                    "give both calls the same name="
                )
            found = [theirs[mine.index(i)] if theirs and i in mine else twin for i, twin in enumerate(found)]
    return found


def _refuse_untrained(tested: Sequence[_Call], trained: Sequence[_Call]) -> None:
    reached = {id(parameter) for call in trained for parameter in call.layer.parameters()}
    for call in tested:
        if any(not p.stop_gradient and id(p) not in reached for p in call.layer.parameters()):
            raise PlscError(
                f"layers.{call.kind[0]}: build_network uses {call.name!r} only where is_train is False, so it would "
                "never be trained; if both branches mean one layer, give both calls the same name and sizes"
            )


def _changed(kind: str, name: str, made: tuple[Any, ...], asked: tuple[Any, ...]) -> PlscError:
    return PlscError(f"layers.{kind}: {name!r} was created with {made} and is now called with {asked}; {_SAME_CALLS}")


def _described(kind: Kind) -> str:
    return f"{kind[0]} layers" + (_NAMELESS if kind[1] is None else f" named {kind[1]!r}")
