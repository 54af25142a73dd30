"""Which operations of a traced forward may run again, in its backward.

What draws random numbers, calls Python or changes state runs once only: its results are kept, and
what follows from them runs again. So a second run gives the numbers of the first.

Relies on TensorFlow's table of operations, which tells which of them have a state. Gain: memory,
for somewhat more than a forward (``benchmarks/memory``). Seen to work on TensorFlow 2.21 with
Keras 3.15. Without it `recompute` is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

__all__ = ["cheap", "repeatable"]

_VIEWS = ("Identity", "Cast", "Reshape", "ExpandDims", "Squeeze")  # cheap to compute again
_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape")
# Operations with a state of their own: each run of them is a new one.
_OWN_STATE = ("Placeholder", "VarHandleOp")


def cheap(
    operations: Collection[Any], captured: Mapping[str, Any], constant: Collection[int]
) -> set[Any]:
    """Operations of a forward that are cheaper to repeat in the backward than to keep.

    They are constants, reads of variables in `constant` (ids of handles), and views of these.
    """
    handles = {name for name, outer in captured.items() if id(outer) in constant}
    changed = {
        x.name
        for operation in operations
        if operation.type != "ReadVariableOp"
        for x in operation.inputs
        if x.dtype == tf.resource
    }
    again: set[Any] = set()
    for operation in operations:
        inputs = list(operation.inputs)
        reads = operation.type == "ReadVariableOp" and inputs[0].name in handles - changed
        view = operation.type in _VIEWS and inputs[0].op in again
        view = view and all(x.op in again or x.op.type == "Const" for x in inputs)
        if reads or view or operation.type == "Const":
            again.add(operation)
    return again


def repeatable(
    operations: Collection[Any],
    functions: Mapping[str, Any],
    captured: Mapping[str, Any],
    constant: Collection[int],
) -> set[Any]:
    """Those of the operations whose second run has no effect, and gives what the first gave.

    Args:
        operations: the operations of a forward, in order.
        functions: definitions of the functions that they may call, by name.
        captured: name of a placeholder -> the captured variable or tensor that it stands for.
        constant: ids of the handles of variables that change between steps only.
    """
    reads = {op for op in operations if _only_reads(op, functions)}
    changed = {
        x.name
        for operation in operations
        if operation not in reads
        for x in operation.inputs
        if x.dtype == tf.resource
    }
    handles = {name for name, outer in captured.items() if id(outer) in constant} - changed
    if not changed <= captured.keys():  # what another operation passed on: any of them
        handles = set()
    return {
        operation
        for operation in reads
        if operation.type not in _OWN_STATE
        and all(x.name in handles for x in operation.inputs if x.dtype == tf.resource)
    }


def _has_state(kind: str) -> bool:
    known = op_def_registry.get(kind)
    return known is None or bool(known.is_stateful)


def _only_reads(operation: Any, functions: Mapping[str, Any]) -> bool:
    """Whether an operation, and the functions that it calls, at most read what has a state."""
    if operation.type in _READS or not _has_state(operation.type):
        return True
    return bool(operation.type not in _OWN_STATE) and _reads(operation.node_def, functions, set())


def _reads(node: Any, functions: Mapping[str, Any], seen: set[str]) -> bool:
    called = _called(node, functions)
    if not called:
        return node.op in _READS or not _has_state(node.op)
    fresh = [name for name in called if name not in seen]
    seen.update(fresh)
    return all(
        _reads(inner, functions, seen) for name in fresh for inner in functions[name].node_def
    )


def _called(node: Any, functions: Mapping[str, Any]) -> list[str]:
    """The names of the functions that an operation calls, as a loop calls its body."""
    found = [node.op] if node.op in functions else []
    for value in node.attr.values():
        several = [value.func] if value.HasField("func") else list(value.list.func)
        found += [function.name for function in several if function.name in functions]
    return found
