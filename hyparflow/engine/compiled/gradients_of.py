"""Gradients of a function by a tape, and of a graph that is being traced.

Public API of TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["gradients_of", "graph_gradients"]


def gradients_of(function: Callable[[], list[Any]], sources: list[Any]) -> list[Any]:
    """The gradients of the sum of what `function` returns; to be traced."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        targets = function()
    return list(tape.gradient(targets, sources)) if sources else []


def graph_gradients(
    targets: Sequence[Any],
    sources: Sequence[Any],
    seeds: Sequence[Any] | None = None,
    constant: Sequence[Any] = (),
) -> list[Any]:
    """The gradients of the sum of `targets`, each times its seed, as the graph is by now.

    A tape knows what was computed when it was open, not what has been rewritten since.

    Args:
        targets: tensors of the graph.
        sources: the tensors and variables by which gradients are taken.
        seeds: one for each target; None for ones.
        constant: tensors that count as if they depended on nothing.
    """
    return list(tf.gradients(list(targets), list(sources), seeds, stop_gradients=list(constant)))
