"""What a coherent decoder needs of a model: one new token of each row, wherever rows go."""

from __future__ import annotations

from typing import Any, Protocol

from hyparflow.serving.coherent.rows_here import RowsHere
from hyparflow.serving.decoding.cached_model import CachedModel

__all__ = ["TravellingModel"]


class TravellingModel(CachedModel, Protocol):
    """A language model; in `call` tokens come home from their experts."""

    def iterate(self, rows: RowsHere) -> Any:
        """Take in a new token of each row that is here. Collective.

        Args:
            rows: which they are; afterwards, which are here then.

        Returns:
            The logits of these, (n, 1, vocabulary).
        """
