"""Operations of a graph that is being traced, and who reads what they make.

Public API of TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["TracedOperations", "constant", "is_made_by", "without_views"]

_VIEWS = ("Identity", "Reshape", "Squeeze", "ExpandDims")


class TracedOperations:
    """The operations that were traced between two moments.

    Args:
        operations: in the order of tracing.
    """

    def __init__(self, operations: Sequence[Any]) -> None:
        self.operations = operations
        self._readers: dict[Any, list[tuple[Any, int]]] = {}
        for operation in operations:
            for index, tensor in enumerate(operation.inputs):
                self._readers.setdefault(tensor.ref(), []).append((operation, index))

    def readers(self, tensor: Any) -> list[tuple[Any, int]]:
        """The operations that read a tensor, each with the position of the tensor."""
        return self._readers.get(tensor.ref(), [])

    def downstream(self, tensors: Iterable[Any], without: Collection[Any]) -> set[Any]:
        """All operations that depend on `tensors`, not by way of the operations in `without`."""
        found: set[Any] = set()
        waiting = list(tensors)
        while waiting:
            for operation, _ in self.readers(waiting.pop()):
                if operation not in found and operation not in without:
                    found.add(operation)
                    waiting += operation.outputs
        return found


def is_made_by(tensor: Any, *kinds: str) -> bool:
    """Whether a tensor is the output of an operation of one of these kinds."""
    return tensor.op.type in kinds


def without_views(tensor: Any) -> Any:
    """The tensor of which a chain of views shows the same values."""
    while is_made_by(tensor, *_VIEWS):
        tensor = tensor.op.inputs[0]
    return tensor


def constant(tensor: Any) -> np.ndarray | None:
    """The value of a tensor that is known when it is traced; None for others."""
    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value)
