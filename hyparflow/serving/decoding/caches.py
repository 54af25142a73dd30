"""Keys and values of all rows, as variables: what changes them copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.serving.decoding.cached_model import CacheSize
from hyparflow.serving.scheduling.window import EMPTY, Shape

__all__ = ["Caches", "HoldsCaches", "empty_caches", "moved_caches", "put_rows", "values_of"]

# Variables, each (rows, ..., length, ...).
Caches = list[Any]


class HoldsCaches:
    """What has caches of some sizes made, and moved.

    Args:
        cache_sizes: of its caches.
    """

    def __init__(self, cache_sizes: Sequence[CacheSize]) -> None:
        self.cache_sizes = cache_sizes

    @property
    def bytes_of_token(self) -> int:
        """What the caches of one token take."""
        sizes = self.cache_sizes
        return sum(size.numbers * tf.dtypes.as_dtype(size.dtype).size for size in sizes)

    def empty(self, shape: Shape) -> Caches:
        """Caches that hold nothing."""
        return empty_caches(self.cache_sizes, shape)

    def rebuilt(self, caches: Caches, shape: Shape, sources: Sequence[int]) -> Caches:
        """See `moved_caches`."""
        return moved_caches(caches, self.cache_sizes, shape, sources)


def empty_caches(sizes: Sequence[CacheSize], shape: Shape) -> Caches:
    """Caches that hold nothing."""
    return [_cache(tf.zeros(size.shape(shape), size.dtype)) for size in sizes]


def moved_caches(
    caches: Caches, sizes: Sequence[CacheSize], shape: Shape, sources: Sequence[int]
) -> Caches:
    """Caches with other rows, of another length; see `Window.sources`.

    Args:
        caches: the old ones, which are lost.
        sizes: of caches.
        shape: of the new ones.
        sources: of the new rows.
    """
    places = tf.constant([0 if source == EMPTY else source for source in sources])
    made: Caches = []
    for size in sizes:
        cache = caches.pop(0)  # so that the old and the new ones never all exist
        axis = 1 + len(size.before)
        kept = tf.gather(cache, places)
        if cache.shape[axis] > shape.length:
            kept = kept[(..., slice(shape.length), *[slice(None)] * len(size.after))]
        longer = [[0, 0]] * kept.shape.rank
        longer[axis] = [0, shape.length - kept.shape[axis]]
        made.append(_cache(tf.pad(kept, longer) if longer[axis][1] else kept))
    return made


def values_of(caches: Caches) -> list[Any]:
    """What they hold, as tensors."""
    return [cache.value() for cache in caches]


def put_rows(caches: Caches, rows: Sequence[int], changed: Sequence[Any]) -> None:
    """Write some rows, (rows, ..., length, ...) in each."""
    places = tf.constant(rows)[:, None]
    for cache, value in zip(caches, changed, strict=True):
        cache.scatter_nd_update(places, value)


def _cache(value: Any) -> Any:
    return tf.Variable(value, trainable=False)
