"""Rows of caches that go from one rank to another, when caches are rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.serving.decoding.cached_model import CacheSize
from hyparflow.serving.decoding.caches import Caches, moved_caches
from hyparflow.serving.scheduling.window import EMPTY, Shape

__all__ = ["MovedRows"]


class MovedRows:
    """Where the rows of new caches come from, where row r is row r // G of rank r % G.

    Args:
        ranks: that have the rows.
        sources: for each new row the old row that it becomes, or `EMPTY`; the same on all ranks.
    """

    def __init__(self, ranks: Communicator, sources: Sequence[int]) -> None:
        self._ranks, count, mine = ranks, ranks.size, ranks.rank
        # (old row at its rank, new row at its rank) by the ranks that give and take.
        pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for new, old in enumerate(sources):
            if old != EMPTY:
                ends = old % count, new % count
                pairs.setdefault(ends, []).append((old // count, new // count))
        self._given = [[old for old, _ in pairs.get((mine, rank), [])] for rank in range(count)]
        self._taken = [[new for _, new in pairs.get((rank, mine), [])] for rank in range(count)]
        self._own = [EMPTY] * (len(sources) // count)
        for old, new in pairs.get((mine, mine), []):
            self._own[new] = old
        self._crosses = any(giver != taker for giver, taker in pairs)

    def caches(self, caches: Caches, sizes: Sequence[CacheSize], shape: Shape) -> Caches:
        """New caches of this rank; see `moved_caches`. Collective."""
        if not self._crosses:
            return moved_caches(caches, sizes, shape, self._own)
        made: Caches = []
        for size in sizes:
            cache = caches.pop(0)  # so that the old and the new ones never all exist
            arrived = self._arrived(cache)
            (new,) = moved_caches([cache], [size], shape, self._own)
            for rank, rows in enumerate(self._taken):
                if rank != self._ranks.rank and rows:
                    fitted = _fitted(arrived[rank], 1 + len(size.before), shape.length)
                    new.scatter_nd_update(tf.constant(rows)[:, None], fitted)
            made.append(new)
        return made

    def _arrived(self, cache: Any) -> list[np.ndarray]:
        """The rows of a cache that each rank gives to this one."""
        value = cache.value()
        sent = [
            np.ascontiguousarray(tf.gather(value, tf.constant(rows, tf.int32)).numpy())
            if rank != self._ranks.rank
            else np.empty((0, *value.shape[1:]), value.dtype.as_numpy_dtype)
            for rank, rows in enumerate(self._given)
        ]
        received = [
            np.empty(
                (0 if rank == self._ranks.rank else len(rows), *value.shape[1:]),
                value.dtype.as_numpy_dtype,
            )
            for rank, rows in enumerate(self._taken)
        ]
        self._ranks.all_to_all(sent, received, "rows of caches that change rank")
        return received


def _fitted(rows: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Rows of a cache with another length: cut off, or with zeros behind."""
    kept = rows[(slice(None),) * axis + (slice(length),)]
    behind = [(0, 0)] * kept.ndim
    behind[axis] = (0, length - kept.shape[axis])
    return np.pad(kept, behind)
