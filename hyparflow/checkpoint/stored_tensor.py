"""A tensor in a checkpoint as the source of a variable's value: it is read when it is needed."""

from __future__ import annotations

import math

import numpy as np

from hyparflow.formats.checkpoint.reader import CheckpointReader

__all__ = ["StoredTensor"]


class StoredTensor:
    """Reads one tensor.

    Attributes:
        key: equal on ranks that read the same checkpoint, so that no rank sends it to others.

    Args:
        reader: of the checkpoint.
        name: of the tensor.
        shape: of the variable.
    """

    def __init__(self, reader: CheckpointReader, name: str, shape: tuple[int, ...]) -> None:
        self._reader, self._name, self._shape = reader, name, shape
        self.key = ("checkpoint", str(reader.folder), name)

    def __call__(self) -> np.ndarray:
        """The whole tensor."""
        return self._reader.read(self._name).reshape(self._shape)

    def rows(self, view: tuple[int, ...], rows: slice) -> np.ndarray:
        """Some rows of it; few more bytes are read than they have.

        Args:
            view: the shape, of as many numbers, whose first axis counts the rows.
            rows: the first, and the one after the last.
        """
        width, stored = math.prod(view[1:]), self._reader.index.tensors[self._name].shape
        first, last = rows.start * width, rows.stop * width
        each = math.prod(stored[1:])  # numbers of a row as it is stored
        start, stop = first // each, -(-last // each)
        rest = tuple(stored[1:])
        read = self._reader.read(self._name, (start, *[0] * len(rest)), (stop, *rest))
        return read.reshape(-1)[first - start * each : last - start * each].reshape(-1, *view[1:])
