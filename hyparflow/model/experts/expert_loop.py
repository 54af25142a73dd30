"""Rows through the experts that they chose, expert by expert, with a gradient of its own.

An expert without rows is not computed, and its weights are not read. TensorFlow's own gradient of
such a loop would add up an array as large as the weights of all experts for each of them, so
backwards compute each expert's forward again, and keep nothing but the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["Expert", "through_experts"]

# (rows of shape (n, width), the expert's weights) -> rows of the same shape.
Expert = Callable[..., Any]


def through_experts(rows: Any, counts: Any, weights: Sequence[Any], expert: Expert) -> Any:
    """Each row through its expert.

    Args:
        rows: tensor (n, width), in the order of their experts.
        counts: tensor (experts,) of int32: how many rows each has.
        weights: tensors, the first axis of which counts experts.
        expert: computes rows by slices of `weights`, in which that axis is 1.

    Returns:
        Tensor (n, width).
    """
    if weights[0].shape[0] == 0:  # no experts, and so no rows
        return rows
    ends = tf.cumsum(counts)

    @tf.custom_gradient
    def run(rows: Any, *weights: Any) -> Any:
        def gradients(upstream: Any) -> list[Any]:
            return _backward(rows, counts, ends, weights, expert, upstream)

        return _forward(rows, counts, ends, weights, expert), gradients

    return run(rows, *weights)


def _forward(rows: Any, counts: Any, ends: Any, weights: Sequence[Any], expert: Expert) -> Any:
    chosen = tf.cast(tf.where(counts > 0)[:, 0], tf.int32)
    made = tf.TensorArray(
        rows.dtype, tf.size(chosen) + 1, infer_shape=False, element_shape=[None, rows.shape[-1]]
    )
    made = made.write(0, rows[:0])  # eager TensorFlow does not join nothing

    def compute(number: Any, made: Any) -> Any:
        one = chosen[number]
        own = [weight[one : one + 1] for weight in weights]
        return number + 1, made.write(number + 1, expert(_rows_of(rows, counts, ends, one), *own))

    return _looped(tf.size(chosen), compute, made)[0].concat()


def _backward(
    rows: Any, counts: Any, ends: Any, weights: Sequence[Any], expert: Expert, upstream: Any
) -> list[Any]:
    """The gradients of the rows and of all weights; zeros of experts without rows."""
    experts = tf.size(counts)
    of_rows = tf.TensorArray(
        rows.dtype, experts, infer_shape=False, element_shape=[None, rows.shape[-1]]
    )
    of_weights = [tf.TensorArray(w.dtype, experts, element_shape=w.shape[1:]) for w in weights]

    def compute(one: Any, of_rows: Any, *of_weights: Any) -> Any:
        given = _rows_of(rows, counts, ends, one)
        own = [weight[one : one + 1] for weight in weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([given, *own])
            made = expert(given, *own)
        of_given, *of_own = tape.gradient(
            made,
            [given, *own],
            _rows_of(upstream, counts, ends, one),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        written = [array.write(one, x[0]) for array, x in zip(of_weights, of_own, strict=True)]
        return one + 1, of_rows.write(one, of_given), *written

    of_rows, *of_weights = _looped(experts, compute, of_rows, *of_weights)
    return [of_rows.concat(), *(array.stack() for array in of_weights)]


def _rows_of(rows: Any, counts: Any, ends: Any, one: Any) -> Any:
    """The rows of one expert."""
    return rows[ends[one] - counts[one] : ends[one]]


def _looped(count: Any, compute: Callable[..., Any], *made: Any) -> tuple[Any, ...]:
    """What `compute(number, *made)` has made of `made` after so many numbers."""
    start = (tf.constant(0), *made)
    done = tf.while_loop(lambda number, *_: number < count, compute, start, parallel_iterations=1)
    return tuple(done[1:])
