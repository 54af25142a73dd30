"""Operations of a graph that is being traced, and who reads what they make."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.rewired import read_instead

__all__ = [
    "TracedOperations",
    "constant",
    "inverse_root",
    "is_made_by",
    "is_vector",
    "without_views",
]

_MANY = 4096
_SEVERAL = 64  # a size that is not known is taken for this one
_VIEWS = ("Identity", "Reshape", "Squeeze", "ExpandDims")


class TracedOperations:
    """The operations that were traced between two moments.

    Args:
        operations: in the order of tracing.
        sizes_repeat: whether axes of unknown size have few sizes, again and again.
    """

    def __init__(self, operations: Sequence[Any], sizes_repeat: bool = False) -> None:
        self.operations, self._sizes_repeat = operations, sizes_repeat
        self._readers: dict[Any, list[tuple[Any, int]]] = {}
        for operation in operations:
            for index, tensor in enumerate(operation.inputs):
                self._readers.setdefault(tensor.ref(), []).append((operation, index))

    def add(self, made: Iterable[Any], given: Iterable[Any]) -> None:
        """Know what operations between the tensors `given` and those that they `made` read, too."""
        ends = {tensor.op for tensor in given}
        waiting = [tensor.op for tensor in made]
        while waiting:
            operation = waiting.pop()
            if operation not in ends:
                ends.add(operation)
                waiting += [tensor.op for tensor in operation.inputs]
                for index, tensor in enumerate(operation.inputs):
                    self._readers.setdefault(tensor.ref(), []).append((operation, index))

    def gains_by_xla(self, shape: Any) -> bool:
        """Whether XLA may compile for tensors of this shape: once, and for many numbers of a row.

        It compiles for each size that comes. A call of what it compiled takes as long as an
        operation on `_MANY` numbers.
        """
        if not shape.rank:
            return False
        known = [size for size in shape[1:].as_list() if size is not None]
        unknown = shape.rank - 1 - len(known)
        if unknown and not self._sizes_repeat:
            return False
        return math.prod(known) * _SEVERAL**unknown >= _MANY

    def replace(self, old: Any, new: Any, but: Collection[Any]) -> None:
        """Let all operations that read `old` read `new`, except those in `but`."""
        for reader, index in self.readers(old):
            if reader not in but:
                read_instead(reader, index, new)
                self._readers.setdefault(new.ref(), []).append((reader, index))

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


def is_vector(tensor: Any, size: int | None) -> bool:
    """Whether a tensor is a vector of this size, maybe with axes of size 1 before it."""
    shape = tensor.shape.as_list() if tensor.shape.rank else []
    return bool(shape) and shape[-1] == size is not None and set(shape[:-1]) <= {1}


def inverse_root(tensor: Any) -> tuple[Any, float, set[Any]] | None:
    """What x and epsilon are in 1 / sqrt(x + epsilon), and the operations; None for others."""
    if not is_made_by(tensor, "Rsqrt") or not is_made_by(tensor.op.inputs[0], "AddV2"):
        return None
    added = tensor.op.inputs[0].op
    value = constant(added.inputs[1])
    if value is None or value.shape:
        return None
    return added.inputs[0], float(value), {tensor.op, added}


def without_views(tensor: Any) -> Any:
    """The tensor of which a chain of views shows the same values."""
    while is_made_by(tensor, *_VIEWS):
        tensor = tensor.op.inputs[0]
    return tensor


def constant(tensor: Any) -> np.ndarray | None:
    """The value of a tensor that is known when it is traced; None for others."""
    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value)
