"""Tests whether `hyparflow.engine.compiled.surgery` works with this TensorFlow.

Each part is tried on a few numbers, in milliseconds, before the first stage is compiled: a later
TensorFlow may lack the private parts that it uses, or they may have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.compiler import Computation
from hyparflow.engine.compiled.surgery import Surgery

__all__ = ["CHECKS", "faults"]

_LONGEST = 200  # characters of an error's first line that are shown


def faults() -> list[str]:
    """The parts that do not work, each with its error; empty if all work."""
    found: list[str] = []
    surgery = Surgery()
    with tf.init_scope():  # the caller may be traced; this must not be
        for name, check in CHECKS.items():
            try:
                check(surgery)
            except Exception as error:  # any error means that the part cannot be used
                line = (str(error).splitlines() or [""])[0][:_LONGEST]
                found.append(f"{name} ({type(error).__name__}: {line})")
    return found


class _Wrong(Exception):
    """A result is wrong."""


def _require(actual: Any, expected: Any) -> None:
    if not np.array_equal(np.asarray(actual), np.asarray(expected)):
        raise _Wrong(f"{np.asarray(actual).tolist()} in place of {np.asarray(expected).tolist()}")


def _cut(surgery: Surgery) -> None:
    """A forward, then its backward in one and in two parts, which also write to a variable."""
    weight, calls, total = tf.Variable([2.0, 3.0]), tf.Variable(0.0), tf.Variable([0.0, 0.0])

    def compute(x: Any) -> Any:
        calls.assign_add(1.0)
        return tf.square(x * weight)

    def first(compute: Any, x: Any) -> tuple[Any, Any]:
        y = compute(x)
        return y, (x, y)

    def second(state: Any, seed: Any) -> Any:
        x, y = state
        return [seed * x * weight], [tf.reduce_sum(seed * y, 0)]

    def add(results: Any) -> Any:
        total.assign_add(results[1][0])
        return results[0]

    computation = Computation(compute, first, second, lambda y: (y,))
    pair = surgery.pair(computation, (lambda results: results, add), [weight], False)
    x, seed = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([[1.0, 1.0], [2.0, 2.0]])
    of_inputs, of_weights = [[2.0, 6.0], [12.0, 24.0]], [76.0, 324.0]
    outputs, saved = pair.forward((x,))
    _require(outputs, [[4.0, 36.0], [36.0, 144.0]])
    whole = pair.backward(saved, (seed,), 0)
    _require(whole[0][0], of_inputs)
    _require(whole[1][0], of_weights)
    early, saved = pair.early(saved, (seed,))
    _require(early[0], of_inputs)
    _require(pair.late(saved, 1), np.empty(0))
    _require(total, of_weights)
    _require(calls, 1.0)


def _call(surgery: Surgery) -> None:
    """A function that returns a structure, and uses a captured variable."""
    scale = tf.Variable(10.0)
    function = tf.function(lambda x, nothing, y: {"sum": x + scale * y}, autograph=False)
    types = (tf.TensorSpec([None]), None, tf.TensorSpec([None]))
    call = surgery.call(function.get_concrete_function(*types), types)
    _require(call(tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0]))["sum"], [31.0, 42.0])


def _variable(surgery: Surgery) -> None:
    """A variable that is made in a trace, without a second trace."""
    made: list[Any] = []
    traces: list[None] = []

    def add(x: Any) -> Any:
        traces.append(None)
        if not made:
            made.append(surgery.variable(lambda: tf.Variable(0.0, trainable=False)))
        return made[0].assign_add(x)

    function = tf.function(add, autograph=False)
    for _ in range(2):
        function(tf.constant(3.0))
    _require(made[0], 6.0)
    _require(len(traces), 1)


def _memory(surgery: Surgery) -> None:
    """Numbers that are written to the array are in the tensor, which is no copy."""
    for dtype in (np.dtype(np.float32), np.dtype(tf.bfloat16.as_numpy_dtype)):
        memory = surgery.memory((2, 3), dtype)
        views = [np.asarray(memory.tensor()) for _ in range(2)]  # both alive
        addresses = {view.ctypes.data for view in views}
        if dtype.isbuiltin == 1 and addresses != {memory.array.ctypes.data}:
            raise _Wrong("a copy in place of the memory of the tensor")
        memory.array[...] = np.arange(6).reshape(2, 3)
        _require(tf.cast(tf.identity(memory.tensor()), tf.float32), [[0, 1, 2], [3, 4, 5]])


def _seed(surgery: Surgery) -> None:
    """The seed that is read is the one that operations get."""
    seed = surgery.seed()
    used, _ = tf.compat.v1.get_seed(1)
    if seed is not None:
        _require(used, seed % (2**31 - 1))


# The parts that are checked, by their names in messages.
CHECKS: dict[str, Callable[[Surgery], None]] = {
    "a traced function cut in parts": _cut,
    "a compiled function called directly": _call,
    "a variable made unseen by what is traced": _variable,
    "the memory of a tensor, written to": _memory,
    "TensorFlow's global seed": _seed,
}
