"""How much memory a traced computation needs: which tensors live from where to where.

Walks a TensorFlow graph that holds a forward and then its backward. What the backward reads of the
forward's tensors is kept between the two; the rest is freed after its last reader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

__all__ = ["Lifetimes", "lifetimes", "origin"]

_ALIASES = ("Identity", "Reshape", "StopGradient", "Squeeze", "ExpandDims", "PreventGradient")
_NOT_MADE = ("Placeholder", "Const", "ReadVariableOp", "VarHandleOp")
_ONLY_SHAPES = ("Shape", "ShapeN", "Rank", "Size", "BroadcastGradientArgs")
_IN_PLACE = frozenset(  # write over an input that nobody else reads
    ["Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Neg", "Square", "Sqrt", "Rsqrt", "Exp"]
    + ["Relu", "ReluGrad", "Relu6", "Relu6Grad", "Tanh", "TanhGrad", "Sigmoid", "SigmoidGrad"]
    + ["Elu", "EluGrad", "Erf", "Maximum", "Minimum", "BiasAdd", "Softmax", "SelectV2", "Pow"]
)


@dataclass(frozen=True)
class Lifetimes:
    """Of a forward and backward.

    Attributes:
        kept: bytes of what is kept between them and neither comes in nor goes out.
        inputs, outputs: for each input and output of the forward, whether it is kept.
        working: the most bytes that live beside what is kept.
        operations: how many operations were traced.
    """

    kept: int
    inputs: list[bool]
    outputs: list[bool]
    working: int
    operations: int


def origin(tensor: Any) -> Any:
    """The tensor whose memory `tensor` shares."""
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[0]
    return tensor


def lifetimes(
    operations: list[Any], num_forward: int, inputs: list[Any], outputs: list[Any]
) -> Lifetimes:
    """The lifetimes of a traced forward and backward.

    Args:
        operations: of the graph, in the order of tracing; static shapes.
        num_forward: how many of them are the forward's.
        inputs, outputs: the forward's tensors.
    """
    forward = set(operations[:num_forward])
    last: dict[Any, int] = {}
    kept: dict[Any, Any] = {}
    for index, operation in enumerate(operations):
        if operation.type in _ONLY_SHAPES or operation.type in _ALIASES:
            continue
        for tensor in map(origin, operation.inputs):
            last[tensor.ref()] = index
            if index >= num_forward and tensor.op in forward:
                kept[tensor.ref()] = tensor
    edge = {origin(x).ref() for x in [*inputs, *outputs]}
    inside = [t for ref, t in kept.items() if ref not in edge and t.op.type not in _NOT_MADE]
    return Lifetimes(
        sum(map(_size, inside)),
        [origin(x).ref() in kept for x in inputs],
        [origin(x).ref() in kept for x in outputs],
        _working(operations, last, set(kept) | edge),
        len(operations),
    )


def _working(operations: list[Any], last: dict[Any, int], counted: set[Any]) -> int:
    """The peak of what lives, without the tensors that are `counted` elsewhere."""
    freed: dict[int, list[int]] = {}
    live = peak = 0
    for index, operation in enumerate(operations):
        if operation.type in _NOT_MADE or operation.type in _ALIASES:
            continue
        dying = freed.pop(index, [])
        if operation.type in _IN_PLACE:
            live -= sum(dying)
            dying = []
        for tensor in operation.outputs:
            if tensor.ref() in last and tensor.ref() not in counted:
                live += _size(tensor)
                freed.setdefault(last[tensor.ref()], []).append(_size(tensor))
        peak = max(peak, live)
        live -= sum(dying)
    return peak


def _size(tensor: Any) -> int:
    """Bytes of `tensor`; 0 where its shape is not known."""
    if tensor.dtype in (tf.resource, tf.variant, tf.string) or not tensor.shape.is_fully_defined():
        return 0
    return math.prod(tensor.shape.as_list()) * tensor.dtype.size
