"""A weight that is divided among replicas, by ranges of rows, or row by row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PlacedRows", "RowRanges", "RowRun"]

_FINE = 16  # of a fair share: the grid on which a weight is divided
_ALIGNED = 64  # rows; TensorFlow copies a part of a tensor that begins anywhere else


@dataclass(frozen=True)
class RowRun:
    """Rows that follow each other, and that a replica has.

    Attributes:
        whole: which they are of the weight's.
        own: which they are of the replica's.
    """

    whole: slice
    own: slice


@dataclass(frozen=True)
class RowRanges:
    """Which rows of a weight each replica has.

    Attributes:
        view: the shape whose first axis has the rows: the weight's own, or that of the weight made
            flat, where it has few rows.
        bounds: where the rows of each replica begin, and where the last one's end.
    """

    view: tuple[int, ...]
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], parts: Sequence[float]) -> RowRanges:
        """Divide a weight about as said.

        Args:
            shape: of the weight.
            parts: how much of it each replica gets, in any unit.
        """
        grid = _FINE * len(parts)
        view = tuple(shape) if shape[0] >= grid else (math.prod(shape),)
        grain = max(1, view[0] // grid)
        grain -= grain % _ALIGNED if grain > _ALIGNED else 0
        ends = [view[0] * end / sum(parts) for end in itertools.accumulate(parts[:-1])]
        near = [
            view[0] if view[0] - end < grain / 2 else grain * round(end / grain) for end in ends
        ]
        return cls(view, (0, *near, view[0]))

    def rows(self, replica: int) -> slice:
        """The rows of a replica."""
        return slice(self.bounds[replica], self.bounds[replica + 1])

    def runs(self, replica: int) -> list[RowRun]:
        """See `PlacedRows.runs`."""
        rows = self.rows(replica)
        return [RowRun(rows, slice(0, rows.stop - rows.start))]

    def shape(self, replica: int) -> tuple[int, ...]:
        """The shape of a replica's rows."""
        return (self.bounds[replica + 1] - self.bounds[replica], *self.view[1:])

    @property
    def owners(self) -> list[int]:
        """The replicas that have rows."""
        return [n for n, pair in enumerate(itertools.pairwise(self.bounds)) if pair[0] < pair[1]]


@dataclass(frozen=True)
class PlacedRows:
    """Which replica has each row of a weight.

    Attributes:
        view: the shape of the weight, whose first axis has the rows.
        replicas: of each row. A replica has its rows in their order.
    """

    view: tuple[int, ...]
    replicas: tuple[int, ...]

    def runs(self, replica: int) -> list[RowRun]:
        """The rows of a replica, as few runs of rows that follow each other."""
        found, begin, own = list[RowRun](), 0, 0
        for holder, rows in itertools.groupby(self.replicas):
            end = begin + len(list(rows))
            if holder == replica:
                found.append(RowRun(slice(begin, end), slice(own, own + end - begin)))
                own += end - begin
            begin = end
        return found

    def shape(self, replica: int) -> tuple[int, ...]:
        """The shape of a replica's rows."""
        return (self.replicas.count(replica), *self.view[1:])

    @property
    def owners(self) -> list[int]:
        """The replicas that have rows."""
        return sorted(set(self.replicas))
