"""How much a traced graph holds, in its loops and in the lists that these fill, too."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.xla_function import is_by_xla

__all__ = ["TracedGraph"]

_LOOPS = ("While", "StatelessWhile")
_ALIASES = ("ReadVariableOp", "Identity", "Const")  # of what lies elsewhere


class TracedGraph:
    """Tells the sizes of what is in a graph.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def count(self, operations: Iterable[Any]) -> int:
        """How many operations these are with those of loops and functions, XLA's apart."""
        total, waiting = 0, [op.node_def for op in operations if not is_by_xla(op)]
        while waiting:
            total += 1
            for value in waiting.pop().attr.values():
                names = [function.name for function in (value.func, *value.list.func)]
                waiting += [node for name in names if name for node in self._nodes(name)]
        return total

    def bytes_of(self, tensor: Any) -> int:
        """The bytes of a tensor, or of what a list holds; 0 where a shape is not known."""
        if tensor.dtype == tf.variant:
            return self._of_list(tensor)
        if tensor.dtype in (tf.resource, tf.string) or tensor.shape.rank is None:
            return 0
        return _bytes(tensor.shape.as_list(), tensor.dtype)

    def _of_list(self, made: Any) -> int:
        """Of the tensor that it was made from, or that is made of it, or of what a loop adds."""
        if made.op.type == "TensorListFromTensor":
            return self.bytes_of(made.op.inputs[0])
        stacked = [x.outputs[0] for x in made.consumers() if x.type == "TensorListStack"]
        if stacked:
            return self.bytes_of(stacked[0])
        if made.op.type in _LOOPS:
            return _turns(made.op) * self._added(made.op).get(made.value_index, 0)
        return 0

    def _nodes(self, function: str) -> Iterable[Any]:
        return self._functions[function].node_def if function in self._functions else ()

    @functools.cached_property
    def _functions(self) -> dict[str, Any]:
        """The functions of the graph, by name, with shapes."""
        library = self._graph.as_graph_def(add_shapes=True).library
        return {function.signature.name: function for function in library.function}

    def _added(self, loop: Any) -> dict[int, int]:
        """The bytes that each turn of a loop adds to those of its outputs that are lists.

        A loop under a gradient adds what the gradient needs; each tensor counts once.
        """
        body = self._functions[loop.get_attr("body").name]
        nodes = {node.name: node for node in body.node_def}
        found: dict[int, int] = {}
        seen = set()
        for index, output in enumerate(body.signature.output_arg):
            push = nodes.get(_maker(body.ret[output.name]))
            if push is None or push.op != "TensorListPushBack":
                continue
            source = push.input[1]
            maker = nodes.get(_maker(source))
            if maker is not None and maker.op not in _ALIASES and source not in seen:
                seen.add(source)
                found[index] = _bytes_of_node(maker, tf.as_dtype(push.attr["element_dtype"].type))
        return found


def _turns(loop: Any) -> int:
    """How often a loop runs, from the length of a list that it fills; 0 if that is not known."""
    lists = [x.op for x in loop.inputs if x.op.type == "TensorListReserve"]
    lengths = [tf.get_static_value(x.inputs[1]) for x in lists]
    return max((int(length) for length in lengths if length is not None), default=0)


def _maker(name: str) -> str:
    """The operation that makes what a function calls `name`, as in "cell/Tanh:y:0"."""
    return name.split(":")[0]


def _bytes_of_node(node: Any, kind: Any) -> int:
    """The bytes of the first output of an operation of a function."""
    shapes = node.attr["_output_shapes"].list.shape
    if not shapes or shapes[0].unknown_rank:
        return 0
    return _bytes([None if of.size < 0 else of.size for of in shapes[0].dim], kind)


def _bytes(shape: list[int | None], kind: Any) -> int:
    known = [size for size in shape if size is not None]
    return math.prod(known) * kind.size if len(known) == len(shape) else 0
