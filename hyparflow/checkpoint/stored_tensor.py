"""A tensor in a checkpoint as the source of a variable's value: it is read when it is needed."""

from __future__ import annotations

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
