"""What a rank writes of a tensor, with its values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["StoredPart"]


@dataclass(frozen=True)
class StoredPart:
    """A tensor, or rows of one.

    Attributes:
        name: of the whole tensor.
        whole: its shape, or that of the tensor made flat, where it is divided so.
        row: the first row.
        value: of the rows.
    """

    name: str
    whole: tuple[int, ...]
    row: int
    value: np.ndarray

    @property
    def start(self) -> tuple[int, ...]:
        """The first index on each axis."""
        return (self.row, *[0] * (len(self.whole) - 1)) if self.whole else ()

    @property
    def stop(self) -> tuple[int, ...]:
        """The index after the last on each axis."""
        return (self.row + self.value.shape[0], *self.whole[1:]) if self.whole else ()
