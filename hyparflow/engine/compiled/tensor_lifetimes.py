"""How much memory a traced computation needs, from the lifetimes of its tensors.

Walks a TensorFlow graph that holds a forward and then its backward. Tensors of the forward that the
backward reads are kept between the two; the others are freed after their last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Kept",
    "kept_between",
    "needed_in_order",
    "origin",
    "peak_bytes",
    "working_bytes",
]

_ALIASES = ("Identity", "Reshape", "StopGradient", "Squeeze", "ExpandDims", "PreventGradient")
_NOT_MADE = ("Placeholder", "Const", "ReadVariableOp", "VarHandleOp")
_ONLY_SHAPES = ("Shape", "ShapeN", "Rank", "Size", "BroadcastGradientArgs")
_SEEDS = ("OnesLike",)  # these replace the gradients that come from the next stage
_IN_PLACE = frozenset(  # these overwrite an input that no other operation reads
    ["Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Neg", "Square", "Sqrt", "Rsqrt", "Exp"]
    + ["Relu", "ReluGrad", "Relu6", "Relu6Grad", "Tanh", "TanhGrad", "Sigmoid", "SigmoidGrad"]
    + ["Elu", "EluGrad", "Erf", "Maximum", "Minimum", "BiasAdd", "Softmax", "SelectV2", "Pow"]
)


@dataclass(frozen=True)
class Kept:
    """The tensors that are kept between a forward and its backward.

    Attributes:
        inside: bytes of those that are neither inputs nor outputs.
        inputs, outputs: for each input and output of the forward, whether it is kept.
    """

    inside: int
    inputs: list[bool]
    outputs: list[bool]


def needed_in_order(operations: Sequence[Any], wanted: Iterable[Any]) -> list[Any]:
    """Those of the operations that `wanted` ones need, each after those that it needs itself.

    Kernels are made after the operations that read them (`hyparflow.engine.kernels`), and leave
    others that nobody needs any more.

    Args:
        operations: in the order of tracing, which is kept otherwise.
        wanted: some of them.
    """
    needed, waiting = set(), list(wanted)
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting += _before(operation)
    ordered: dict[Any, None] = {}
    for first in operations:
        path = [first] if first in needed else []
        while path:
            missing = [other for other in _before(path[-1]) if other not in ordered]
            if missing:
                path += missing[:1]
            else:
                ordered[path.pop()] = None
    return list(ordered)


def _before(operation: Any) -> list[Any]:
    return [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]


def origin(tensor: Any) -> Any:
    """The tensor whose memory `tensor` shares."""
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[0]
    return tensor


def kept_between(
    operations: list[Any],
    num_forward: int,
    inputs: list[Any],
    outputs: list[Any],
    size_of: Callable[[Any], int],
) -> Kept:
    """The tensors that a traced forward and backward keep between the two.

    Args:
        operations: the operations of the graph, in the order of tracing.
        num_forward: how many of them belong to the forward.
        inputs, outputs: the forward's tensors.
        size_of: tells the bytes of a tensor.
    """
    kept = {
        tensor.ref(): tensor
        for operation in operations[num_forward:]
        if operation.type not in (*_SEEDS, *_ALIASES, *_ONLY_SHAPES)
        for tensor in map(origin, operation.inputs)
    }
    forward = set(operations[:num_forward])
    edge = {origin(x).ref() for x in [*inputs, *outputs]}
    inside = [
        t
        for ref, t in kept.items()
        if ref not in edge and t.op in forward and t.op.type not in _NOT_MADE
    ]
    return Kept(
        sum(size_of(tensor) for tensor in inside),
        [origin(x).ref() in kept for x in inputs],
        [origin(x).ref() in kept for x in outputs],
    )


def working_bytes(
    operations: list[Any],
    num_forward: int,
    inputs: list[Any],
    outputs: list[Any],
    size_of: Callable[[Any], int],
) -> int:
    """The peak of bytes besides inputs, outputs and kept tensors; arguments as `kept_between`."""
    last: dict[Any, int] = {}
    counted = {origin(x).ref() for x in [*inputs, *outputs]}
    forward = set(operations[:num_forward])
    for index, operation in enumerate(operations):
        if operation.type in (*_ONLY_SHAPES, *_ALIASES, *_SEEDS):
            continue
        for tensor in map(origin, operation.inputs):
            last[tensor.ref()] = index
            if index >= num_forward and tensor.op in forward:
                counted.add(tensor.ref())
    return _working(operations, last, counted, size_of)


def peak_bytes(operations: list[Any], wanted: list[Any], size_of: Callable[[Any], int]) -> int:
    """The peak of bytes of what operations make, if `wanted` tensors are there until the end.

    Args:
        operations: in an order in which they may run.
        wanted: tensors that some of them make.
        size_of: tells the bytes of a tensor.
    """
    last = {
        tensor.ref(): index
        for index, operation in enumerate(operations)
        if operation.type not in (*_ONLY_SHAPES, *_ALIASES)
        for tensor in map(origin, operation.inputs)
    }
    last |= {origin(tensor).ref(): len(operations) for tensor in wanted}
    return _working(operations, last, set(), size_of)


def _working(
    operations: list[Any],
    last: dict[Any, int],
    counted: set[Any],
    size_of: Callable[[Any], int],
) -> int:
    """The peak of bytes in use, without the tensors that are `counted` elsewhere."""
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
                size = size_of(tensor)
                live += size
                freed.setdefault(last[tensor.ref()], []).append(size)
        peak = max(peak, live)
        live -= sum(dying)
    return peak
