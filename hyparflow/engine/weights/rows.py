"""Rows of a divided weight or slot in a variable of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyparflow.engine.weights.pieces import value_of
from hyparflow.model.keras_internals.deferred_variables import bring_in, present, release, source_of
from hyparflow.pipeline.row_ranges import RowRanges

__all__ = ["Rows"]


class Rows:
    """A replica's rows, which have memory from `take` to `release`.

    Attributes:
        variable: for the rows.

    Args:
        variable: for the rows.
        whole: the weight or slot.
        ranges: which rows each replica has.
        replica: whose rows they are.
    """

    def __init__(self, variable: Any, whole: Any, ranges: RowRanges, replica: int) -> None:
        self.variable, self._whole = variable, whole
        self._ranges, self._replica = ranges, replica
        self.release()

    def of(self, value: np.ndarray) -> np.ndarray:
        """The rows in a value of the whole."""
        return value.reshape(self._ranges.view)[self._ranges.rows(self._replica)]

    def take(self) -> None:
        """Let them be those that the whole has now."""
        self.release()
        bring_in(self.variable)

    def release(self) -> None:
        """Give back their memory."""
        release(self.variable, self._now)

    def _now(self) -> np.ndarray:
        read = getattr(source_of(self._whole), "rows", None)  # a file may read them alone
        if callable(read):
            return np.asarray(read(self._ranges.view, self._ranges.rows(self._replica)))
        with present([self._whole]):
            return self.of(value_of(self._whole))  # TensorFlow copies it
