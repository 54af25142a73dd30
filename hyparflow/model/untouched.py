"""Trial calls of a model, after which it is as it was before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.model.keras_internals.deferred_variables import (
    is_absent,
    raw_variable,
    release,
    source_of,
)
from hyparflow.model.keras_internals.layers import (
    all_layers,
    layer_metrics,
    replace_moments,
    restore_moments,
    seed_states,
)
from hyparflow.model.normalization import normalized_layers
from hyparflow.model.reachable_variables import reachable_variables

__all__ = ["fixed_moments", "untouched"]

_SIMPLE = (bool, int, float, str, type(None))


@contextlib.contextmanager
def fixed_moments(model: Any) -> Iterator[None]:
    """While open, BatchNormalization layers normalize by fixed numbers, and not over a batch."""
    layers = normalized_layers(model)
    for layer in layers:
        replace_moments(layer, _moments(layer))
    try:
        yield
    finally:
        for layer in layers:
            restore_moments(layer)


def _moments(layer: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    def moments(inputs: Any, mask: Any) -> tuple[Any, Any]:
        zeros = keras.ops.cast(keras.ops.zeros_like(layer.moving_mean), inputs.dtype)
        return zeros, zeros + 1

    return moments


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[Callable[[], None]]:
    """While open, calls of the model are trials: at the end all that they changed is set back.

    That is all variables that the model leads to, numbers and text that its layers hold, and the
    random states of Python and NumPy. Yields a function that sets back the first two at once.
    """
    found = _variables(model)
    variables = [(raw, tf.identity(raw)) for raw in found if not is_absent(raw)]
    absent = [(raw, source) for raw in found if (source := source_of(raw)) is not None]
    values = [(layer, _simple(layer)) for layer in all_layers(model)]

    def restore() -> None:
        for raw, value in variables:
            raw.assign(value)
        for raw, source in absent:
            if not is_absent(raw):
                release(raw, source)
        for layer, before in values:
            for name, value in before.items():
                if vars(layer).get(name, before) is not value:
                    vars(layer)[name] = value

    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield restore
    finally:
        restore()
        random.setstate(python)
        np.random.set_state(numpy)


def _variables(model: Any) -> list[Any]:
    """TensorFlow's variables, each once, as far as they hold numbers."""
    metrics = layer_metrics(all_layers(model, include_self=False))
    found = [*model.variables, *seed_states(model), *(v for m in metrics for v in m.variables)]
    found += reachable_variables([model])
    raw = [raw_variable(v) for v in found]
    unique = {id(v): v for v in raw}
    return [v for v in unique.values() if v.dtype not in (tf.resource, tf.variant)]


def _simple(layer: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if isinstance(value, _SIMPLE)}
