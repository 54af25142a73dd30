"""Loops over the steps of sequences, in a graph.

What a step reads and makes lies in arrays with the steps first; states go from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["loop_backward", "loop_forward"]


def loop_forward(
    step: Callable[..., tuple[list[Any], list[Any]]],
    came: Any,
    steps: Any,
    state: Sequence[Any],
    sizes: Sequence[int],
) -> tuple[list[Any], list[Any]]:
    """The last state, and what each step keeps, of `sizes` numbers a row, with the steps first."""
    count = tf.shape(came)[0]
    read, there = _array(came), _array(steps)
    kept = [tf.TensorArray(came.dtype, count, element_shape=[None, size]) for size in sizes]

    def body(n: Any, state: list[Any], kept: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        new, made = step(read.read(n), None if there is None else there.read(n), *state)
        _keep_shapes(new, state)
        return n + 1, new, [array.write(n, x) for array, x in zip(kept, made, strict=True)]

    _, last, kept = tf.while_loop(
        lambda n, *_: n < count, body, (0, list(state), kept), parallel_iterations=1
    )
    return last, [_stacked(array, came) for array in kept]


def loop_backward(
    back: Callable[..., tuple[list[Any], Any]],
    given: Sequence[Any],
    of_state: Sequence[Any],
    size: int,
) -> tuple[list[Any], Any]:
    """The gradients of the first state, and what each step makes, from the last to the first."""
    count = tf.shape(given[0])[0]
    read = [_array(x) for x in given]
    made = tf.TensorArray(given[0].dtype, count, element_shape=[None, size])

    def body(n: Any, of_state: list[Any], made: Any) -> tuple[Any, list[Any], Any]:
        new, x = back([None if a is None else a.read(n) for a in read], *of_state)
        _keep_shapes(new, of_state)
        return n - 1, new, made.write(n, x)

    _, first, made = tf.while_loop(
        lambda n, *_: n >= 0, body, (count - 1, list(of_state), made), parallel_iterations=1
    )
    return first, _stacked(made, given[0])


def _array(x: Any) -> Any:
    if x is None:
        return None
    return tf.TensorArray(x.dtype, tf.shape(x)[0], element_shape=x.shape[1:]).unstack(x)


def _stacked(array: Any, like: Any) -> Any:
    """What an array holds, of as many steps as another tensor has."""
    stacked = array.stack()
    stacked.set_shape([like.shape[0], *stacked.shape[1:]])
    return stacked


def _keep_shapes(new: Sequence[Any], old: Sequence[Any]) -> None:
    for x, like in zip(new, old, strict=True):
        x.set_shape(like.shape)
