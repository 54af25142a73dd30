"""Sizes of a Keras model's tensors and variables, as the planner's tables hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.deferred_variables import deferring
from hyparflow.model.keras_internals.shared_kernel_name import with_shared_kernel_name
from hyparflow.model.variable_sizes import bytes_of, slot_sizes

__all__ = ["bytes_per_row", "known_shape", "slots_per_byte", "used_weights"]

_UNKNOWN_LENGTH = 32  # the size for a dimension of unknown size


def known_shape(shape: Sequence[int | None]) -> tuple[int, ...]:
    """`shape` with a number in place of each unknown one."""
    return tuple(_UNKNOWN_LENGTH if size is None else size for size in shape)


def bytes_per_row(tensor: Any) -> int:
    """Bytes of one row of a symbolic tensor."""
    return int(np.prod(known_shape(tensor.shape[1:]))) * tf.as_dtype(tensor.dtype).size


def used_weights(graph: FlatGraph) -> tuple[tuple[int, ...], ...]:
    """For each call, the numbers of its variables in the model's list."""
    numbers = {id(v): n for n, v in enumerate(graph.model.variables)}
    return tuple(
        tuple(numbers[id(v)] for v in graph.variables([index]) if id(v) in numbers)
        for index in range(len(graph.calls))
    )


def slots_per_byte(trained: Sequence[Any], optimizer: Any) -> float:
    """Bytes of optimizer state per byte of trained weights."""
    if optimizer is None or not trained:
        return 0.0
    sizes = slot_sizes(optimizer, trained)
    if sizes:
        return sum(sizes.values()) / sum(map(bytes_of, trained))
    if not optimizer.built:
        optimizer = type(optimizer).from_config(optimizer.get_config())
        with tf.variable_creator_scope(with_shared_kernel_name), deferring():
            optimizer.build(list(trained))
    own = {id(v) for v in trained}
    slots = [v for v in optimizer.variables if id(v) not in own]
    return sum(map(bytes_of, slots)) / sum(map(bytes_of, trained))
