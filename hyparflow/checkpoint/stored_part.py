"""What a rank writes of a tensor, with its values, and what it says of it to the leader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["StoredPart"]


@dataclass(frozen=True)
class StoredPart:
    """A tensor, or rows of one.

    Attributes:
        name: of the whole tensor.
        view: the shape of the whole: the tensor's own, or flat, where it is divided so.
        shape: the tensor's own.
        start: the first row, along the first axis of the view.
        value: of the rows.
    """

    name: str
    view: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    value: np.ndarray

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.start + (self.value.shape[0] if self.view else 1)
