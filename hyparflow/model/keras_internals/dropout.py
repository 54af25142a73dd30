"""The one function by which Keras's layers drop out values, and the seeds that they draw for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras.src import backend
from keras.src.random.seed_generator import draw_seed

from hyparflow.model.keras_internals.patched import patched

__all__ = ["drawn_seed", "dropout_replaced", "other_random_layers"]

# (inputs, rate, noise_shape, seed) -> the inputs with some values dropped
Dropping = Callable[[Any, float, Any, Any], Any]


@contextlib.contextmanager
def dropout_replaced(drop: Dropping) -> Iterator[None]:
    """While open, `drop` drops out values, for whoever calls Keras's dropout."""

    def dropout(inputs: Any, rate: float, noise_shape: Any = None, seed: Any = None) -> Any:
        return drop(inputs, rate, noise_shape, seed)

    with patched(backend.random, dropout=dropout):
        yield


def drawn_seed(seed: Any) -> Any:
    """The next seed, two integers, of what Keras's dropout was given as seed."""
    return draw_seed(seed)


def other_random_layers(layers: Iterable[Any]) -> list[Any]:
    """The layers that draw random numbers in another way than by dropout."""
    known = (
        keras.layers.Dropout,
        keras.layers.SpatialDropout1D,
        keras.layers.MultiHeadAttention,
        keras.layers.GroupQueryAttention,
    )
    return [
        layer
        for layer in layers
        if not isinstance(layer, known)
        and any(isinstance(x, keras.random.SeedGenerator) for x in vars(layer).values())
    ]
