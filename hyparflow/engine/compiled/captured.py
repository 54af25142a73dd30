"""The variables that a traced function uses.

TensorFlow has them in a set, whose order differs from rank to rank; the order in which the function
captured them is not public. Seen to work with TensorFlow 2.20 and 2.21.
"""

from __future__ import annotations

from typing import Any

__all__ = ["captured_tensors", "captured_variables", "captures_of"]


def captured_variables(concrete: Any) -> list[Any]:
    """The variables of a concrete function, in an order that all ranks share."""
    graph = concrete.graph
    place = {id(outside): n for n, (outside, _) in enumerate(graph.captures)}
    return sorted(graph.variables, key=lambda v: place.get(id(v.handle), -1))


def captures_of(graph: Any) -> list[tuple[Any, Any]]:
    """What a traced function captured, each with the tensor that stands for it in its graph."""
    return list(graph.captures)


def captured_tensors(concrete: Any) -> list[Any]:
    """What a concrete function captured: constants, and the handles of variables."""
    return [outside for outside, _ in captures_of(concrete.graph)]
