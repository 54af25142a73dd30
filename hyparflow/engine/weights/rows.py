"""Rows of a divided weight or slot in a variable of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hyparflow.engine.weights.pieces import value_of
from hyparflow.model.keras_internals.deferred_variables import bring_in, present, release, source_of
from hyparflow.pipeline.row_ranges import PlacedRows, RowRanges

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

    def __init__(
        self, variable: Any, whole: Any, ranges: RowRanges | PlacedRows, replica: int
    ) -> None:
        self.variable, self._whole = variable, whole
        self._ranges, self._replica = ranges, replica
        self.release()

    def of(self, value: np.ndarray) -> np.ndarray:
        """The rows in a value of the whole."""
        return self._joined(value.reshape(self._ranges.view).__getitem__)

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
            view = self._ranges.view
            return self._joined(lambda rows: np.asarray(read(view, rows)))
        with present([self._whole]):
            return self.of(value_of(self._whole))  # TensorFlow copies it

    def _joined(self, read: Callable[[slice], np.ndarray]) -> np.ndarray:
        """What is read of each run of rows."""
        found = [read(run.whole) for run in self._ranges.runs(self._replica)]
        return found[0] if len(found) == 1 else np.concatenate(found)
