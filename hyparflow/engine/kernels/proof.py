"""Whether a kernel computes what it replaces: both run on random numbers, and are compared.

Public API of TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.gradients_of import graph_gradients
from hyparflow.engine.kernels.number_types import ROUNDING
from hyparflow.engine.kernels.rewrite import Rewrite

__all__ = ["difference_of", "largest_difference"]

_UNKNOWN = 6  # stands for a dimension that is not known when a graph is traced


def largest_difference(found: Rewrite) -> float:
    """The largest difference of a result or gradient, in units of what rounding may make of it.

    Both are relative to the largest number of each tensor.

    Raises:
        ValueError: if what is replaced takes more than the kernel does.
    """
    definition = _definition(found)
    distinct = {tensor.ref(): tensor for tensor in found.inputs}  # one may be taken twice
    places = [list(distinct).index(tensor.ref()) for tensor in found.inputs]
    names = [tensor.name for tensor in distinct.values()]
    wanted = [tensor.name for tensor in found.replaced]
    without = {tensor.ref() for tensor in found.without_gradient}
    with_gradient = [n for n, tensor in enumerate(found.replaced) if tensor.ref() not in without]

    def traced(*inputs: Any) -> Sequence[Any]:
        feeds = dict(zip(names, inputs, strict=True))
        made: Sequence[Any] = tf.graph_util.import_graph_def(definition, feeds, wanted)
        return made

    def kernel(*inputs: Any) -> Sequence[Any]:
        return found.kernel(*(inputs[place] for place in places))

    return difference_of(traced, kernel, _numbers(found), with_gradient)


def difference_of(
    old: Callable[..., Sequence[Any]],
    new: Callable[..., Sequence[Any]],
    numbers: Sequence[np.ndarray],
    with_gradient: Sequence[int],
) -> float:
    """The largest difference between two computations, as for `largest_difference`.

    Args:
        old, new: (inputs) -> tensors.
        numbers: the inputs.
        with_gradient: places of the tensors whose gradients are compared, too.
    """

    def results(compute: Callable[..., Sequence[Any]], inputs: Sequence[Any]) -> list[Any]:
        made = compute(*inputs)
        targets = [made[n] for n in with_gradient]
        if not targets:
            return list(made)
        return [*made, *graph_gradients(targets, inputs, [_seed(tensor) for tensor in targets])]

    def both(*inputs: Any) -> tuple[list[Any], list[Any]]:
        return results(old, inputs), results(new, inputs)

    with tf.init_scope():  # the caller is traced; this must not be
        given = [tf.constant(x) for x in numbers]
        try:
            compared = tf.function(both, autograph=False).get_concrete_function(*given)(*given)
        except tf.errors.OpError:  # this machine's TensorFlow cannot compute with it
            return float("inf")
    coarsest = max(ROUNDING[x.dtype] for x in given)
    pairs = zip(*compared, strict=True)
    return max(_difference(np.asarray(a), np.asarray(b)) for a, b in pairs) / coarsest


def _definition(found: Rewrite) -> Any:
    """The operations that make the tensors `replaced` from the inputs."""
    given = {tensor.op for tensor in found.inputs}
    piece: dict[Any, None] = {}
    waiting = [tensor.op for tensor in found.replaced]
    while waiting:
        operation = waiting.pop()
        if operation in given or operation in piece:
            continue
        if not operation.inputs and operation.type != "Const":
            raise ValueError(f"A kernel must take all that it depends on. Received: {operation}")
        piece[operation] = None
        waiting += [tensor.op for tensor in operation.inputs]
    definition = tf.compat.v1.GraphDef()
    for operation in piece:
        node = definition.node.add()
        node.CopyFrom(operation.node_def)
        data = [source for source in node.input if source[0] != "^"]
        del node.input[:]
        node.input.extend(data)
    return definition


def _numbers(found: Rewrite) -> list[np.ndarray]:
    """Random numbers for each input, once where it is taken twice."""
    random = np.random.default_rng(0)
    shapes = found.trial or [
        [_UNKNOWN if size is None else size for size in tensor.shape.as_list()]
        for tensor in found.inputs
    ]
    made = {
        tensor.ref(): random.normal(1.0, 2.0, shape).astype(tensor.dtype.as_numpy_dtype)
        for tensor, shape in zip(found.inputs, shapes, strict=True)
    }
    return list(made.values())


def _seed(tensor: Any) -> Any:
    """A gradient of what reads a tensor: its numbers, brought below 1.

    With numbers that have nothing to do with the tensor's some gradients nearly cancel, and are
    rounding themselves.
    """
    return tf.stop_gradient(tensor / (1.0 + tf.abs(tensor)))


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape or not np.isfinite(other).all():
        return float("inf")
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30))
