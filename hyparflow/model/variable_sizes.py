"""How much memory variables take, and an optimizer's slots will take before there are any."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.model.keras_internals.optimizer import (
    inner_optimizer,
    updates_each_alone,
    weights_of_slots,
)

__all__ = ["bytes_of", "numpy_type", "slot_sizes"]


def bytes_of(variable: Any) -> int:
    """The size of a variable's value."""
    return math.prod(variable.shape) * numpy_type(variable.dtype).itemsize


@functools.cache
def numpy_type(dtype: Any) -> np.dtype:
    """NumPy's type of a variable's, which is Keras's name of it or TensorFlow's type."""
    return np.dtype(tf.as_dtype(dtype).as_numpy_dtype)


def slot_sizes(optimizer: Any, weights: Sequence[Any]) -> dict[int, int]:
    """The bytes of the slots of each weight, by id; empty where the optimizer is built or unknown.

    Keras's own optimizers are known. Another one like it is built for one weight of each shape.
    """
    inner = inner_optimizer(optimizer)
    if optimizer.built or inner.built or not updates_each_alone(inner, []):
        return {}
    shapes = {id(v): (tuple(v.shape), str(v.dtype)) for v in weights}
    distinct = list(dict.fromkeys(shapes.values()))
    settings = inner.get_config() | {"learning_rate": 0.1}  # a schedule may be of the user's own
    other = type(inner).from_config(settings)
    with tf.Graph().as_default():  # what is made in a graph that never runs has no memory
        likes = [keras.Variable("zeros", shape=s, dtype=d) for s, d in distinct]
        other.build(likes)
    shape_of = {id(like): shape for like, shape in zip(likes, distinct, strict=True)}
    sizes: Counter[Any] = Counter()
    owners = weights_of_slots(other)
    for slot in other.variables:
        if id(slot) in owners:
            sizes[shape_of[id(owners[id(slot)])]] += bytes_of(slot)
    return {key: sizes[shape] for key, shape in shapes.items()}
