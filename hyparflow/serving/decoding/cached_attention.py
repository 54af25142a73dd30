"""Attention of new tokens to those before them, whose keys and values lie in caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.row_index import sizes_of

__all__ = ["Cache", "attending"]

# Keys and values of one layer, each (rows, heads of keys, length, size of a head).
Cache = tuple[Any, Any]

_HIDDEN = -1e9  # the score of a key that a query does not see


def attending(positions: Any) -> Callable[..., tuple[Cache, Any]]:
    """What attention layers call, for tokens at these positions of their rows.

    Args:
        positions: (rows, new tokens), of a known number of tokens.
    """
    rows, count = sizes_of(positions)

    def attend(
        cache: Cache,
        query: Any,
        key: Any,
        value: Any,
        scale: float,
        size: int,
        heads: int,
        key_heads: int,
        sliding_window: int | None = None,
        soft_cap: float | None = None,
    ) -> tuple[Cache, Any]:
        group = heads // key_heads
        new = [tf.reshape(x, [rows, count, key_heads, size]) for x in (key, value)]
        keys, values = (_written(c, x, positions) for c, x in zip(cache, new, strict=True))
        query = tf.reshape(query, [rows, count, key_heads, group, size])
        query = tf.reshape(tf.transpose(query, [0, 2, 1, 3, 4]), [rows, key_heads, -1, size])
        scores = tf.matmul(query, keys, transpose_b=True) * scale
        if soft_cap is not None:
            scores = tf.tanh(scores / soft_cap) * soft_cap
        seen = _seen(positions, keys.shape[2], sliding_window)
        seen = tf.repeat(seen, group, axis=1)[:, None]
        scores = tf.where(seen, scores, tf.constant(_HIDDEN, scores.dtype))
        made = tf.matmul(tf.nn.softmax(scores), values)
        made = tf.reshape(made, [rows, key_heads, count, group, size])
        made = tf.transpose(made, [0, 2, 1, 3, 4])
        return (keys, values), tf.reshape(made, [rows * count, heads * size])

    return attend


def _written(cache: Any, new: Any, positions: Any) -> Any:
    """The cache with new tokens, (rows, tokens, heads, size), at their positions."""
    rows, count = sizes_of(positions)
    heads = cache.shape[1]
    shape = [rows, heads, count]
    places = tf.stack(
        [
            tf.broadcast_to(tf.range(rows)[:, None, None], shape),
            tf.broadcast_to(tf.range(heads)[None, :, None], shape),
            tf.broadcast_to(positions[:, None], shape),
        ],
        -1,
    )
    return tf.tensor_scatter_nd_update(cache, places, tf.transpose(new, [0, 2, 1, 3]))


def _seen(positions: Any, length: int, window: int | None) -> Any:
    """Which tokens of the cache each new token sees: those up to itself, within a window."""
    places = tf.range(length)[None, None]
    seen = places <= positions[:, :, None]
    if window is not None:
        seen &= places > positions[:, :, None] - window
    return seen
