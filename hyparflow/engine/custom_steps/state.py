"""The variables that a model's own steps use; set back after trials of a step."""

from __future__ import annotations

import collections
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.random_draws import eager_generator, set_eager_generator
from hyparflow.model.keras_internals.compiled import tracked_metrics
from hyparflow.model.keras_internals.layers import default_seed, seed_states, set_default_seed
from hyparflow.model.normalization import normalized_layers
from hyparflow.model.reachable_variables import reachable, reachable_variables

__all__ = ["OwnState", "generator_states", "set_generator_states"]

_SIMPLE = (bool, int, float, str, type(None))
_HANDLES = (tf.resource, tf.variant)
_CONTAINERS = (list, dict, set, collections.deque)
_KEPT_OTHERWISE = (keras.Layer, keras.Variable, keras.metrics.Metric, tf.Variable)


class OwnState:
    """The variables of a model, its optimizers and metrics, and of what its code leads to.

    Args:
        model: the user's model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._others: set[int] = set()
        self._values: dict[int, tuple[Any, Any]] = {}
        self._generators: Any = None
        self._simple: dict[str, Any] = {}
        self._containers: list[tuple[Any, list[Any]]] = []  # with what they held
        self._weights: set[int] = set()
        # Plain attributes before and after the trace of a step.
        self._traces: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    def leave_out(self, others: Sequence[Any]) -> None:
        """Leave out variables that are hyparflow's, although steps use them."""
        self._others = {id(_raw(v)) for v in others}

    # --- trials ---

    @contextlib.contextmanager
    def kept(self, variables: Callable[[], Sequence[Any]]) -> Iterator[None]:
        """While open, a step is tried; at the end all is set back."""
        self._values = {}
        self._generators = generator_states()
        for variable in variables():
            self._keep(variable)
        # Behind it, for it may trace the step, which changes them once, as in one process.
        self._simple = self._plain_attributes()
        self._containers = [(c, _contents(c)) for c in _containers_in(vars(self._model).values())]
        try:
            yield
        finally:
            self.restore()
            self._values, self._simple, self._containers = {}, {}, []

    def _keep(self, variable: Any) -> None:
        raw = _raw(variable)
        known = id(raw) in self._values or id(raw) in self._others
        if not known and raw.dtype != tf.resource:
            self._values[id(raw)] = raw, tf.identity(raw)

    def add(self, holder: Any) -> None:
        """Include the variables of a newly found optimizer or metric."""
        with tf.init_scope():
            for variable in holder.variables:
                self._keep(variable)

    def restore(self) -> None:
        """Set all variables, random generators and the model's plain attributes back.

        Plain attributes are numbers, text, and lists and the like, in which eager steps collect.
        """
        for raw, value in self._values.values():
            raw.assign(value)
        set_generator_states(self._generators)
        vars(self._model).update(self._simple)
        for container, before in self._containers:
            now = _contents(container)
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                _refill(container, before)

    def _plain_attributes(self) -> dict[str, Any]:
        """The model's attributes that are numbers, text or None."""
        return {n: v for n, v in vars(self._model).items() if isinstance(v, _SIMPLE)}

    @contextlib.contextmanager
    def noting_trace(self, step: str) -> Iterator[None]:
        """While open, a step is traced: what its code does to plain attributes can be undone."""
        before = self._plain_attributes()
        yield
        self._traces[step] = before, self._plain_attributes()

    def undo_trace(self, step: str) -> None:
        """Set back what the trace of a step has changed, but not what has changed since."""
        before, after = self._traces.pop(step, ({}, {}))
        held = vars(self._model)
        for name, value in after.items():
            if before.get(name, self) is value or held.get(name, self) is not value:
                continue
            if name in before:
                held[name] = before[name]
            else:
                del held[name]

    # --- the variables ---

    def everything(self, optimizers: Sequence[Any], metrics: Sequence[Any]) -> list[Any]:
        """All variables that are known."""
        holders = [*optimizers, *metrics, *tracked_metrics(self._model)]
        return [
            *self._model.variables,
            *seed_states(self._model),
            *(v for holder in holders for v in holder.variables),
            *reachable_variables([self._model]),
        ]

    def shared(self, optimizers: Sequence[Any], used: Sequence[Any], metrics: Sequence[Any]) -> Any:
        """The variables with which all ranks must begin alike: all but the states of metrics.

        Args:
            optimizers, metrics: the ones that steps are known to use.
            used: variables of compiled steps.
        """
        holders = [*metrics, *tracked_metrics(self._model)]
        left_out = {id(_raw(v)) for holder in holders for v in holder.variables} | self._others
        known = [*self.everything(optimizers, ()), *used]
        unique = {id(_raw(v)): v for v in reversed(known) if v.dtype not in _HANDLES}
        return [v for number, v in reversed(unique.items()) if number not in left_out]

    def of_metrics(self, metrics: Sequence[Any]) -> dict[int, np.ndarray]:
        """The present values of metrics' variables, by their number."""
        variables = {id(v): v for metric in metrics for v in metric.variables}
        return {n: np.array(v.value, float) for n, v in enumerate(variables.values())}

    def begin_metrics(self, metrics: Sequence[Any], values: dict[int, np.ndarray]) -> None:
        """Set metrics to their initial state, and then variables of these numbers to `values`."""
        for metric in metrics:
            metric.reset_state()
        variables = list({id(v): v for metric in metrics for v in metric.variables}.values())
        for number, value in values.items():
            variables[number].assign(value)

    def of_training(self, optimizers: Sequence[Any], metrics: Sequence[Any]) -> list[Any]:
        """The variables that should be equal on all replicas, in the same order on all.

        Args:
            optimizers: those that steps are known to use.
            metrics: those that steps are known to use, which each replica updates by its rows.
        """
        optimizers = [optimizer for optimizer in optimizers if optimizer.built]
        own = {id(v): v for v in reachable_variables([self._model]) if v.dtype not in _HANDLES}
        weights = [
            *self._model.trainable_variables,
            *(v for optimizer in optimizers for v in optimizer.variables),
            *(v for v in own.values() if v.trainable),
        ]
        self._weights = {id(_raw(v)) for v in weights}
        left_out = [
            *seed_states(self._model),
            *(v for m in (*tracked_metrics(self._model), *metrics) for v in m.variables),
            *(v for x in normalized_layers(self._model) for v in x.non_trainable_variables),
        ]
        skip = {id(_raw(v)) for v in left_out} - self._weights
        known = [*weights, *self._model.variables, *own.values()]
        unique = {id(_raw(v)): v for v in reversed(known)}
        return [v for number, v in reversed(unique.items()) if number not in skip]

    def is_weight(self, variable: Any) -> bool:
        """Whether a variable of `of_training` is a weight or an optimizer's."""
        return id(_raw(variable)) in self._weights

    def name(self, variable: Any) -> str:
        """The name of a variable in messages; without one, the attribute that holds it."""
        if isinstance(variable, keras.Variable) or not variable.name.startswith("Variable"):
            return str(getattr(variable, "path", variable.name))
        for way, value in reachable([self._model]):
            if value is variable:
                return way.removeprefix("(0)").strip(" .") or str(variable.name)
        return str(variable.name)


def generator_states() -> Any:
    """The states of the random generators that belong to no object of the user's."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpy_state, eager_generator(), default_seed()


def set_generator_states(states: Any) -> None:
    """Set the generators back to what `generator_states` returned."""
    python, legacy, eager, seed = states
    random.setstate(python)
    np.random.set_state(legacy)  # noqa: NPY002
    set_eager_generator(eager)
    set_default_seed(seed)


def _raw(variable: Any) -> Any:
    """TensorFlow's variable inside a Keras one."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _contents(container: Any) -> list[Any]:
    """What a list, a set or the like holds; the keys and values of a dict, in turn."""
    if isinstance(container, dict):
        return [x for pair in container.items() for x in pair]
    return list(container)


def _refill(container: Any, contents: list[Any]) -> None:
    """Let a container hold `contents` again."""
    container.clear()
    if isinstance(container, dict):
        container.update(dict(zip(contents[::2], contents[1::2], strict=True)))
    elif isinstance(container, set):
        container.update(contents)
    else:
        container.extend(contents)


def _containers_in(values: Iterable[Any]) -> list[Any]:
    """The containers among `values` and within them, but for those of layers and variables."""
    found: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if not isinstance(value, _CONTAINERS) or id(value) in found:
            continue
        contents = _contents(value)
        if not any(isinstance(x, _KEPT_OTHERWISE) for x in contents):
            found[id(value)] = value
            waiting += contents
    return list(found.values())
