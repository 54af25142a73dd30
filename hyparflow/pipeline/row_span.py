"""Where a replica's rows are in a global batch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RowSpan"]


class RowSpan(NamedTuple):
    """Where a replica's rows are in the global batch.

    Attributes:
        start: the first of them.
        rows: how many.
        total: rows of the global batch.
    """

    start: int
    rows: int
    total: int
