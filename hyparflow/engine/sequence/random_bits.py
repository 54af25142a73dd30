"""Dropout by position: which values are dropped depends on where they are, not on who computes.

A value's random bits are a hash of a seed, of its position in the sequence and of its place among
the other axes, so a mask is the same whatever the numbers of shards and chunks, and again in a
backward. The hash is the finalizer of MurmurHash3 (A. Appleby, public domain), applied twice.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

__all__ = ["dropped", "dropped_scores"]

_ODD = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # spread neighbouring numbers over 32 bits


def dropped(inputs: Any, rate: float, noise_shape: Any, seed: Any, start: Any) -> Any:
    """Keras's dropout of (rows, positions, ...), by position.

    Args:
        inputs: a part of a sequence.
        rate: the part of the values that become zero; the others are divided by 1 - rate.
        noise_shape: None, or of each axis None, or 1 where all its values share a decision.
        seed: two integers.
        start: the position of the first of `inputs`.
    """
    shape = tf.unstack(tf.shape(inputs))
    if noise_shape is not None:
        shared = [isinstance(n, int) and n == 1 for n in noise_shape]
        shape = [1 if one else n for one, n in zip(shared, shape, strict=True)]
        start = 0 if shared[1] else start
    rows, length, *rest = shape
    size = tf.reduce_prod(tf.stack(rest)) if rest else 1
    position = _keys(start + tf.range(length), seed[0], _ODD[0])
    place = _keys(tf.range(rows * size), seed[1], _ODD[1])
    bits = _mixed(position[None, :, None] + tf.reshape(place, [rows, 1, size]))
    keep = tf.reshape(_is_kept(bits, rate), tf.stack(shape))
    return tf.where(keep, inputs / (1 - rate), tf.zeros_like(inputs))


def dropped_scores(rate: float, seed: Any, queries: Any, keys: Any, heads: Any, rows: Any) -> Any:
    """By what scores of attention are multiplied: 0 or 1 / (1 - rate).

    Args:
        rate: the part that become zero.
        seed: two integers.
        queries, keys: positions, two vectors.
        heads: the numbers of the heads in the whole layer, a vector.
        rows: how many rows there are.

    Returns:
        Float32 of (rows, heads, queries, keys).
    """
    position = _keys(queries, seed[0], _ODD[0])
    row_heads = tf.range(rows)[:, None] * tf.constant(1 << 16) + heads[None]
    place = _keys(row_heads, seed[1], _ODD[2])
    each = _mixed(place[:, :, None] + position[None, None])
    bits = _mixed(each[..., None] + _keys(keys, seed[1], _ODD[1]))
    return tf.cast(_is_kept(bits, rate), tf.float32) / (1 - rate)


def _keys(numbers: Any, seed: Any, odd: int) -> Any:
    """Numbers hashed with a part of the seed."""
    spread = tf.cast(numbers, tf.uint32) * tf.constant(odd, tf.uint32)
    return _mixed(spread + _mixed(tf.cast(seed, tf.uint32) + tf.constant(odd, tf.uint32)))


def _mixed(x: Any) -> Any:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
        x *= tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, tf.uint32)))


def _is_kept(bits: Any, rate: float) -> Any:
    return bits >= tf.constant(min(math.floor(rate * 2.0**32), 2**32 - 1), tf.uint32)
