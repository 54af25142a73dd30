"""A block of attention of which a pattern leaves out a corner, strip by strip of its queries.

Queries of a strip are held against the keys alone that one of them attends to: of a causal block
with as many queries as keys, four strips compute five eighths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.pipeline.token_layout import Positions

__all__ = ["joined_queries", "of_queries", "on_keys", "places_of"]


def places_of(
    strips: Sequence[tuple[Positions, Positions]], queries: Positions, keys: Positions
) -> Any:
    """Where strips lie in their block, as a tensor; see `AttentionPattern.strips`."""
    return tf.constant(
        [
            [one[0] - queries[0], one[1] - queries[0], other[0] - keys[0], other[1] - keys[0]]
            for one, other in strips
        ],
        tf.int32,
    )


def of_queries(folded: Any, group: int, start: Any, stop: Any) -> Any:
    """Some of the queries of each head, of (rows, heads of keys, group x queries, size)."""
    if group == 1:
        return folded[:, :, start:stop]
    rows, heads, queries, size = tf.unstack(tf.shape(folded))
    apart = tf.reshape(folded, [rows, heads, group, queries // group, size])[:, :, :, start:stop]
    return tf.reshape(apart, [rows, heads, group * (stop - start), size])


def joined_queries(strips: Sequence[Any], group: int) -> Any:
    """What `of_queries` took apart."""
    if group == 1:
        return tf.concat(strips, 2)
    apart = []
    for strip in strips:
        rows, heads, queries, size = tf.unstack(tf.shape(strip))
        apart.append(tf.reshape(strip, [rows, heads, group, queries // group, size]))
    joined = tf.concat(apart, 3)
    rows, heads, _, queries, size = tf.unstack(tf.shape(joined))
    return tf.reshape(joined, [rows, heads, group * queries, size])


def on_keys(part: Any, start: Any, stop: Any, count: Any) -> Any:
    """What belongs to some of the keys, with zeros for all others."""
    return tf.pad(part, [[0, 0], [0, 0], [start, count - stop], [0, 0]])
