"""Whether all ranks were given the same model, data and arguments."""

from __future__ import annotations

import hashlib
from typing import Any

import keras

from hyparflow import guard, keras_internals
from hyparflow.comm import Communicator

__all__ = ["compile_fingerprint", "digest", "model_fingerprint", "require_same"]


def digest(value: Any) -> str:
    """A short hash of the text form of `value`."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def model_fingerprint(model: Any) -> str:
    """A hash of the model's structure; names and weights do not count."""
    layers = [
        (type(layer).__name__, [(tuple(v.shape), str(v.dtype), v.trainable) for v in layer.weights])
        for layer in keras_internals.all_layers(model)
    ]
    inputs = [tuple(x.shape) for x in getattr(model, "inputs", None) or []]
    outputs = [tuple(x.shape) for x in getattr(model, "outputs", None) or []]
    return digest((type(model).__name__, layers, inputs, outputs))


def compile_fingerprint(model: Any) -> str:
    """A hash of the optimizer's and the losses' settings."""
    optimizer = getattr(model, "optimizer", None)
    config = None if optimizer is None else _settings(optimizer.get_config())
    loss = keras.tree.map_structure(_describe, getattr(model, "loss", None))
    return digest((type(optimizer).__name__, config, loss))


def _settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings in order; the name of an object counts its creations and is left out."""
    return sorted((key, str(_describe(value))) for key, value in config.items() if key != "name")


def _describe(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, dict):
        return _settings(value)
    return getattr(value, "__name__", type(value).__name__)


def require_same(world: Communicator, items: dict[str, str]) -> None:
    """Check that every rank has the same `items`. Collective.

    Args:
        world: all ranks.
        items: name -> hash.

    Raises:
        ValueError: on all ranks alike, naming what differs and where.
    """
    everyone = world.all_gather_objects(items, "the comparison of models and arguments")
    for name in items:
        odd = [rank for rank, other in enumerate(everyone) if other.get(name) != everyone[0][name]]
        if odd:
            error = ValueError(
                f"All ranks must be given the same {name}. Received: on "
                f"{'rank' if len(odd) == 1 else 'ranks'} {', '.join(map(str, odd))} "
                f"{'it differs' if len(odd) == 1 else 'they differ'} from rank 0's. "
                "Every rank runs the whole script with the whole data; hyparflow deals it out."
            )
            raise guard.everywhere(error)
