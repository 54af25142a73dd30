"""What branches, or loops, on values of the whole batch: seen in the traced graph.

A condition is one value. If it depends on values of many rows, parts of a batch may branch in
another way. It counts only if outputs depend on it, or of a step what it writes: a check that may
raise an error does not.
Inside a loop over the rows (`map_fn`) each row has a condition of its own. A loop up to an integer,
such as the length of the longest sequence, is a loop over steps and does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import keras
import tensorflow as tf

from hyparflow.model.keras_internals.layers import called_graph

__all__ = ["branching_operations", "branching_step"]

_ROWS = 1009  # a prime: the rows of the batch are in each dimension that it divides
_LENGTH = 5  # the size for a dimension of unknown size
_BRANCHES = frozenset(["If", "StatelessIf", "Case", "StatelessCase"])
_LOOPS = frozenset(["While", "StatelessWhile"])
_CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
_CHOICES = frozenset(["Select", "SelectV2", "Minimum", "Maximum", "ClipByValue"])
# Python functions bring values of all replicas into a step, and take values to them.
_PYTHON = frozenset(["PyFunc", "EagerPyFunc"])
_WRITES = ("Assign", "ResourceApply", "ResourceScatter", "ResourceSparseApply")
_ASK_NO_VALUES = frozenset(
    ["Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "TensorListLength"]
    + ["TensorListElementShape", "BroadcastGradientArgs"]
)


class _Of(IntEnum):
    """What part of the inputs a tensor depends on."""

    NOTHING = 0
    ROW = 1  # on one row: an element of a loop over the rows
    ROWS = 2  # each row of it on one row
    COUNT = 3  # on many rows, and an integer
    BATCH = 4  # on many rows


def branching_operations(function: Callable[[Any], Sequence[Any]], types: Any) -> list[str] | None:
    """Names of the operations of `function` that branch on values of the whole batch.

    Args:
        function: takes the inputs; returns tensors. It is traced, and not run.
        types: shape and type of each input; the first dimension has the rows.

    Returns:
        The names; None where it cannot be traced.
    """
    specs = keras.tree.map_structure(
        lambda s: tf.TensorSpec(
            [_ROWS, *(_LENGTH if size is None else size for size in s.shape[1:])], s.dtype
        ),
        types,
    )
    try:
        traced = tf.function(function, autograph=False).get_concrete_function(specs)
    except Exception:  # it must run eagerly, or takes other inputs
        return None
    given = traced.inputs[: len(traced.inputs) - len(traced.captured_inputs)]
    search = _Search()
    search.graph(traced.graph, {x.ref(): _Of.ROWS for x in given}, "")
    return list(dict.fromkeys(search.found))


def branching_step(step: Any, rows: Sequence[Any]) -> list[str]:
    """Names of the operations of a training step that decide by values of the whole batch.

    What a step returns and what it writes counts. Choices between tensors count, too, for steps
    use them to clip gradients, or to leave them out.

    Args:
        step: the traced step, as a concrete function.
        rows: those of its inputs that have the rows of a batch.
    """
    search = _Search(of_step=True)
    search.graph(step.graph, {x.ref(): _Of.ROWS for x in rows}, "")
    return list(dict.fromkeys(search.found))


class _Search:
    """Follows values through a graph and through the graphs that its operations call.

    Args:
        of_step: whether the graph is that of a step, which writes variables, and whose values may
            be joined over replicas in the middle of it.
    """

    def __init__(self, of_step: bool = False) -> None:
        self.found: list[str] = []
        self._of_step = of_step

    def graph(self, graph: Any, values: dict[Any, _Of], place: str) -> list[_Of]:
        """What the outputs of `graph` depend on, from what its inputs depend on."""
        needed = self._needed(graph)
        for operation in graph.get_operations():
            given = [values.get(x.ref(), _Of.NOTHING) for x in operation.inputs]
            if not any(given) or operation.type in _ASK_NO_VALUES:
                continue
            if self._of_step and operation.type in _PYTHON:
                continue
            name = f"{place}/{operation.name}"
            results = self._results(graph, operation, given, name, operation in needed)
            values.update(zip((x.ref() for x in operation.outputs), results, strict=True))
        return [values.get(x.ref(), _Of.NOTHING) for x in graph.outputs]

    def _results(
        self, graph: Any, operation: Any, given: list[_Of], name: str, needed: bool
    ) -> list[_Of]:
        kind, count = operation.type, len(operation.outputs)
        if kind in _LOOPS:
            return self._loop(graph, operation, given, name, needed)
        if kind in _BRANCHES:
            if needed and given[0] >= _Of.COUNT:
                self.found.append(name)
            calls = _called_by(operation)
            results = [self._call(graph, branch, given[1:], name, count) for branch in calls]
            return [max(of) for of in zip(*results, strict=True)]
        if kind in _CALLS:
            return self._call(graph, operation.get_attr("f").name, given, name, count)
        if self._of_step and kind in _CHOICES and needed:
            chosen_by = given[:1] if kind.startswith("Select") else given
            if _Of.BATCH in chosen_by:
                self.found.append(name)
        return [_depends(x, operation, given) for x in operation.outputs]

    def _loop(
        self, graph: Any, operation: Any, given: list[_Of], name: str, needed: bool
    ) -> list[_Of]:
        """What the variables of a loop depend on: repeated until nothing more is added."""
        while True:
            body = operation.get_attr("body").name
            results = self._call(graph, body, given, name, len(given))
            joined = [max(pair) for pair in zip(given, results, strict=True)]
            if joined == given:
                break
            given = joined
        goes_on = self._call(graph, operation.get_attr("cond").name, given, name, 1)
        if needed and goes_on[0] == _Of.BATCH:
            self.found.append(name)
        return given

    def _call(
        self, graph: Any, function: str, given: Sequence[_Of], place: str, count: int
    ) -> list[_Of]:
        """What the `count` results of a function depend on."""
        inner = called_graph(graph, function)
        if inner is None:  # the function was not made by Python
            return [max(given, default=_Of.NOTHING)] * count
        values = {x.ref(): of for x, of in zip(inner.inputs, given, strict=True)}
        return self.graph(inner, values, place)

    def _needed(self, graph: Any) -> set[Any]:
        """The operations that outputs depend on, and of a step what it writes."""
        results = [x.op for x in graph.outputs]
        if self._of_step:
            results += [op for op in graph.get_operations() if self._writes(graph, op)]
        return _upstream(results)

    def _writes(self, graph: Any, operation: Any) -> bool:
        """Whether an operation, or one in the graphs that it calls, writes."""
        if operation.type in _PYTHON or operation.type.startswith(_WRITES):
            return True
        inner = [called_graph(graph, name) for name in _called_by(operation)]
        return any(self._writes(each, op) for each in inner if each for op in each.get_operations())


def _called_by(operation: Any) -> list[str]:
    """The names of the functions that a branch, a loop or a call calls."""
    kind = operation.type
    if "Case" in kind and kind in _BRANCHES:
        return [branch.name for branch in operation.get_attr("branches")]
    if kind in _BRANCHES:
        return [operation.get_attr(f"{way}_branch").name for way in ("then", "else")]
    if kind in _LOOPS:
        return [operation.get_attr(way).name for way in ("body", "cond")]
    return [operation.get_attr("f").name] if kind in _CALLS else []


def _upstream(operations: Sequence[Any]) -> set[Any]:
    """These operations, and those that they depend on."""
    found: set[Any] = set()
    stack = list(operations)
    while stack:
        operation = stack.pop()
        if operation not in found:
            found.add(operation)
            stack += [x.op for x in operation.inputs]
    return found


def _depends(output: Any, operation: Any, given: Sequence[_Of]) -> _Of:
    """What an output of an ordinary operation depends on."""
    if _Of.BATCH in given:
        return _Of.BATCH
    if _Of.ROWS not in given:
        of = max(given)
        return _Of.ROWS if of == _Of.ROW and _has_rows(output) else of
    if operation.type == "TensorListFromTensor":
        first = operation.inputs[0].shape
        over_rows = first.rank and (first[0] is None or first[0] % _ROWS == 0)
        return _Of.ROW if over_rows else _Of.ROWS
    if output.dtype == tf.variant or _has_rows(output) is not False:
        return _Of.ROWS
    return _Of.COUNT if output.dtype.is_integer else _Of.BATCH


def _has_rows(tensor: Any) -> bool | None:
    """Whether a dimension of `tensor` has the rows of the batch in it; None if not known."""
    if tensor.shape.rank is None:
        return None
    if any(size and size % _ROWS == 0 for size in tensor.shape):
        return True
    return None if None in tensor.shape else False
