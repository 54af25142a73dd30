"""Hashes of a model: its structure, what it was compiled with, what its own code reads."""

from __future__ import annotations

import hashlib
import inspect
import types
from typing import Any

import keras

from hyparflow.model.comparable import comparable, is_empty
from hyparflow.model.keras_internals.compiled import compile_arguments
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.python_values import names_read
from hyparflow.model.reachable_variables import is_users_own

__all__ = ["compile_fingerprint", "digest", "model_fingerprint", "values_fingerprint"]

_DEEPEST = 5  # levels of functions within functions
# Keras numbers the names of these.
_COUNTED = (keras.Layer, keras.Loss, keras.Metric, keras.optimizers.Optimizer)


def digest(value: Any) -> str:
    """A short hash of the text form of `value`."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def model_fingerprint(model: Any) -> str:
    """A hash of the model's structure; names and weights do not count."""
    layers = [
        (
            _describe_layer(layer),
            [(tuple(v.shape), str(v.dtype), v.trainable) for v in layer.weights],
        )
        for layer in all_layers(model)
    ]
    inputs = [tuple(x.shape) for x in getattr(model, "inputs", None) or []]
    outputs = [tuple(x.shape) for x in getattr(model, "outputs", None) or []]
    return digest((type(model).__name__, layers, inputs, outputs))


def compile_fingerprint(model: Any) -> str:
    """A hash of the arguments of `compile`, without `jit_compile`, which depends on the device."""
    arguments = compile_arguments(model)
    return digest(_describe({n: v for n, v in arguments.items() if n != "jit_compile"}))


def values_fingerprint(model: Any) -> str:
    """A hash of what the user's layers read beside their config: code, numbers and text."""
    layers = all_layers(model)
    return digest([_own_values(layer) for layer in layers if is_users_own(type(layer))])


def _own_values(layer: Any) -> Any:
    kinds = [kind for kind in type(layer).__mro__ if is_users_own(kind)]
    methods = [f for kind in kinds for f in vars(kind).values() if inspect.isfunction(f)]
    read = {name for method in methods for name in names_read(method)}
    values = [
        # Keras numbers names.
        (name, str(plain).replace(layer.name, ""))
        for name, value in sorted(vars(layer).items())
        if name in read and (plain := comparable(value)) is not None
    ]
    return values, [_code(method) for method in methods]


def _describe_layer(layer: Any) -> Any:
    if isinstance(layer, keras.Model):
        return type(layer).__name__  # its layers are described one by one
    if isinstance(layer, keras.layers.Lambda):
        return type(layer).__name__, _describe(getattr(layer, "function", None))
    return _describe(layer)


def _describe(value: Any) -> Any:
    """`value` as plain data.

    Names of layers and their like count creations, and seeds may be drawn anew by each rank (the
    leader's random state is given to all): both are left out.
    """
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, dict):
        if isinstance(value.get("config"), dict) and "Policy" not in str(value.get("class_name")):
            value = value | {"config": {k: v for k, v in value["config"].items() if k != "name"}}
        return sorted((str(k), _describe(v)) for k, v in value.items() if k != "seed")
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if inspect.isfunction(value):
        return _code(value) if is_users_own(value) else value.__name__
    name = getattr(value, "__name__", type(value).__name__)
    try:
        config = value.get_config()
    except Exception:  # it has no config, or `get_config` fails
        config = {}
    if isinstance(value, _COUNTED):
        config = {k: v for k, v in config.items() if k != "name"}
    return name, _describe(config), _attributes(value)


def _attributes(value: Any) -> Any:
    """The numbers and text that an object of the user's, such as a loss, holds."""
    is_plain = not isinstance(value, keras.Layer | keras.Metric | keras.optimizers.Optimizer)
    if not is_plain or not is_users_own(type(value)) or not hasattr(value, "__dict__"):
        return []
    pairs = ((name, comparable(part)) for name, part in sorted(vars(value).items()))
    return [(n, str(plain)) for n, plain in pairs if plain is not None and n.strip("_") != "name"]


def _code(function: Any, depth: int = 0) -> Any:
    """A description of a function of the user's: its code, and the numbers and text it reads."""
    cells = [cell for cell in function.__closure__ or () if not is_empty(cell)]
    around = [cell.cell_contents for cell in cells] + list(function.__defaults__ or ())
    around += (function.__kwdefaults__ or {}).values()
    described = []
    for value in around:
        if inspect.isfunction(value) and depth < _DEEPEST:
            described.append(_code(value, depth + 1))
        else:
            described.append(str(comparable(value)))
    return function.__qualname__, _instructions(function.__code__), described


def _instructions(code: types.CodeType) -> Any:
    constants = [
        _instructions(c) if isinstance(c, types.CodeType) else str(comparable(c))
        for c in code.co_consts
    ]
    return code.co_code.hex(), code.co_names, constants
