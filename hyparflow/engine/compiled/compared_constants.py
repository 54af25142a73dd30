"""The constants with which a traced function compares values: ignored labels, thresholds.

Public API of TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["compared_constants"]

_COMPARISONS = frozenset(["Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual"])
_LIMITS = frozenset(["Maximum", "Minimum", "ClipByValue"])
_SHIFTS = frozenset(["Sub", "AddV2", "Add"])  # relu(x - 5) has a threshold, too
_PASSING = frozenset(["Identity", "Cast", "BroadcastTo", "Fill", "ExpandDims", "Reshape"])
_FEW = 4  # values of a constant that may be a list of labels
_SMALLEST = 1e-3  # smaller constants keep a function from dividing by 0
_LARGEST = 1e6  # larger ones stand for infinity


def compared_constants(graph: Any, count: int) -> list[float]:
    """The first `count` constants that operations of `graph` compare with, or limit to.

    Args:
        graph: a TensorFlow graph, whose functions are searched, too.
        count: the largest number of constants.
    """
    definition = graph.as_graph_def()
    bodies = [definition.node, *(function.node_def for function in definition.library.function)]
    found = [
        value
        for kinds in (_COMPARISONS, _LIMITS, _SHIFTS)
        for nodes in bodies
        for value in _of(nodes, kinds)
    ]
    usable = (x for x in found if x == 0 or _SMALLEST <= abs(x) <= _LARGEST)
    return list(dict.fromkeys(usable))[:count]


def _of(nodes: Iterable[Any], kinds: frozenset[str]) -> Iterator[float]:
    """The constants that operations of these kinds take, apart from those of gradients."""
    by_name = {node.name: node for node in nodes}
    for node in by_name.values():
        if node.op in kinds and not node.name.startswith("gradient_tape/"):
            for name in node.input:
                yield from _values(by_name, name)


def _values(by_name: dict[str, Any], name: str) -> list[float]:
    node = by_name.get(name.partition(":")[0])
    while node is not None and node.op in _PASSING and node.input:
        # The values of `Fill` are its second input, those of the others the first.
        source = node.input[1 if node.op == "Fill" else 0]
        node = by_name.get(source.partition(":")[0])
    if node is None or node.op != "Const":
        return []
    array = np.asarray(tf.make_ndarray(node.attr["value"].tensor))
    if array.size > _FEW or array.dtype.kind not in "iufb":
        return []
    return [float(x) for x in array.ravel() if np.isfinite(x)]
