"""Whether all ranks were given the same model, data and arguments."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import keras

from hyparflow import guard, keras_internals
from hyparflow.comm import Communicator
from hyparflow.data import ArraySource
from hyparflow.options import Options

__all__ = ["collect", "compile_fingerprint", "digest", "model_fingerprint", "require_same"]


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
        for layer in keras_internals.all_layers(model)
    ]
    inputs = [tuple(x.shape) for x in getattr(model, "inputs", None) or []]
    outputs = [tuple(x.shape) for x in getattr(model, "outputs", None) or []]
    return digest((type(model).__name__, layers, inputs, outputs))


def compile_fingerprint(model: Any) -> str:
    """A hash of the arguments of `compile`."""
    return digest(_describe(keras_internals.compile_arguments(model)))


def _describe_layer(layer: Any) -> Any:
    if isinstance(layer, keras.Model | keras.layers.Lambda):
        return type(layer).__name__  # its layers come themselves; code has no text to rely on
    return _describe(layer)


def _describe(value: Any) -> Any:
    """`value` as plain data.

    Names count creations, and seeds may be drawn anew by each rank (the leader's random state is
    given to all): both are left out.
    """
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, dict):
        return sorted((str(k), _describe(v)) for k, v in value.items() if k not in ("name", "seed"))
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    name = getattr(value, "__name__", type(value).__name__)
    try:
        return name, _describe(value.get_config())
    except Exception:  # it has no settings, or cannot tell them
        return name


def collect(
    model: Any,
    options: Options,
    sources: dict[str, ArraySource],
    method: str,
    arguments: dict[str, Any],
    rows: int | None,
) -> dict[str, str]:
    """Hashes of everything that all ranks must pass alike to one call.

    Args:
        model: the user's model.
        options: the parallel arguments.
        sources: the arrays of the call.
        method: "fit", "evaluate" or "predict".
        arguments: Keras's arguments of the call; `verbose` may differ.
        rows: rows of a full batch.
    """
    simple = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, int | float | str) and name != "verbose"
    }
    return {
        "model": model_fingerprint(model),
        "optimizer and loss": compile_fingerprint(model),
        "method": method,
        "number of partitions and replicas": digest(options.grid),
        **{f"argument `{name}`": digest(getattr(options, name)) for name in _own_names(options)},
        "batch size": digest(rows),
        **{f"argument `{name}`": digest(value) for name, value in sorted(simple.items())},
        "data": digest({name: source.fingerprint() for name, source in sources.items()}),
    }


def _own_names(options: Options) -> list[str]:
    """The parallel arguments that have names of their own."""
    return [field.name for field in dataclasses.fields(options) if field.name != "grid"]


def require_same(world: Communicator, items: dict[str, str]) -> None:
    """Check that every rank has the same `items`. Collective.

    Args:
        world: all ranks.
        items: name -> hash.

    Raises:
        ValueError: on all ranks alike, naming what differs and where.
    """
    everyone = world.all_gather_objects(items, "the comparison of models and arguments")
    names = dict.fromkeys(name for other in everyone for name in other)
    for name in names:
        values = [other.get(name) for other in everyone]
        odd = [rank for rank, value in enumerate(values) if value != values[0]]
        if odd:
            error = ValueError(
                f"All ranks must be given the same {name}. Received: on "
                f"{'rank' if len(odd) == 1 else 'ranks'} {', '.join(map(str, odd))} "
                f"{'it differs' if len(odd) == 1 else 'they differ'} from rank 0's. "
                "Every rank runs the whole script with the whole data; hyparflow deals it out."
            )
            raise guard.everywhere(error)
