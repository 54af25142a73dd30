"""Whether two traced functions are the same but for the variables that they captured.

Operations, their settings and their inputs are compared in the order of tracing; their names, which
tell of layers, are not. Public API of TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hyparflow.engine.compiled.captured import captures_of

__all__ = ["same_graphs"]

# Settings that name things, as arguments, neighbours on a device, gradients of one trace.
_NAMES = (*("_class", "_gradient_op_type", "_user_specified_name", "shared_name", "debug_name"),)


def same_graphs(
    left: Any, right: Any, replace: Callable[[Any], Any | None], count: int | None = None
) -> bool:
    """Whether the graphs of two traced functions are the same.

    Args:
        left, right: the graphs (`FuncGraph`).
        replace: (what left captured) -> what right must have captured in its place.
        count: how many operations of left must be all those of right; None for all.
    """
    outside = (
        {inner.name: outer for outer, inner in captures_of(graph)} for graph in (left, right)
    )
    theirs, mine = ({n.partition(":")[0]: x for n, x in found.items()} for found in outside)
    definitions = left.as_graph_def(), right.as_graph_def()
    nodes = [definitions[0].node[:count], definitions[1].node]
    names = [[node.name for node in found] for found in nodes]
    if len(names[0]) != len(names[1]):
        return False
    for a, b in zip(*names, strict=True):
        if (a in theirs) != (b in mine) or (a in theirs and replace(theirs[a]) is not mine[b]):
            return False
    libraries = [{f.signature.name: f for f in x.library.function} for x in definitions]
    return _Comparison(*libraries).nodes(*nodes)


class _Comparison:
    """Compares lists of operations, and the functions that these call."""

    def __init__(self, left: dict[str, Any], right: dict[str, Any]) -> None:
        self._left, self._right = left, right
        self._known: dict[tuple[str, str], bool] = {}

    def nodes(self, left: Any, right: Any, given: tuple[Any, Any] = ((), ())) -> bool:
        """Whether two lists of operations are the same; `given` are names known before them."""
        if len(left) != len(right):
            return False
        places = [
            {name: n for n, name in enumerate([*known, *(node.name for node in found)])}
            for known, found in zip(given, (left, right), strict=True)
        ]
        return all(self._node(a, b, *places) for a, b in zip(left, right, strict=True))

    def _node(self, a: Any, b: Any, left: dict[str, int], right: dict[str, int]) -> bool:
        if a.op != b.op and not (a.op in self._left and self._functions(a.op, b.op)):
            return False
        if [_place(x, left) for x in a.input] != [_place(x, right) for x in b.input]:
            return False
        keys = [key for key in a.attr if key not in _NAMES]
        if sorted(keys) != sorted(key for key in b.attr if key not in _NAMES):
            return False
        return all(self._settings(a.attr[key], b.attr[key]) for key in keys)

    def _settings(self, a: Any, b: Any) -> bool:
        kind = a.WhichOneof("value")
        if kind != b.WhichOneof("value"):
            return False
        if kind == "func":
            return self._functions(a.func.name, b.func.name)
        if kind == "list" and a.list.func:
            pairs = zip(a.list.func, b.list.func, strict=False)
            same_length = len(a.list.func) == len(b.list.func)
            return same_length and all(self._functions(x.name, y.name) for x, y in pairs)
        return bool(a.SerializeToString() == b.SerializeToString())

    def _functions(self, a: str, b: str) -> bool:
        """Whether two functions of the graphs' libraries are the same."""
        if (a, b) not in self._known:
            self._known[a, b] = True  # one that calls itself is the same if the rest of it is
            one, other = self._left.get(a), self._right.get(b)
            if one is None or other is None:
                self._known[a, b] = one is other and a == b
            else:
                self._known[a, b] = self._bodies(one, other)
        return self._known[a, b]

    def _bodies(self, one: Any, other: Any) -> bool:
        names, others = ([x.name for x in f.signature.input_arg] for f in (one, other))
        given = names, others
        types = [[x.type for x in f.signature.input_arg] for f in (one, other)]
        if types[0] != types[1] or not self.nodes(one.node_def, other.node_def, given):
            return False
        places = [
            {name: n for n, name in enumerate([*known, *(node.name for node in f.node_def)])}
            for known, f in zip(given, (one, other), strict=True)
        ]
        results = [
            [_place(f.ret[x.name], known) for x in f.signature.output_arg]
            for f, known in zip((one, other), places, strict=True)
        ]
        return bool(results[0] == results[1])


def _place(source: str, places: dict[str, int]) -> tuple[bool, int | str, str]:
    """An input without its name: whether it is only waited for, whose it is, and which of its."""
    name, _, rest = source.lstrip("^").partition(":")
    return source.startswith("^"), places.get(name, name), rest
