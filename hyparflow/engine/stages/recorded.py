"""A computation whose gradients are taken later: by a tape, or by the graph once rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.gradients_of import graph_gradients
from hyparflow.engine.kernels.rewriter import Rewriter

__all__ = ["Recorded"]


class Recorded:
    """What a computation made, and the gradients of it.

    Attributes:
        results: the tensors that the computation made; other results as they are.
        rewritten: how often which kernel was put in.

    Args:
        compute: () -> a flat list of tensors and others.
        sources: the tensors and variables by which gradients are taken.
        rewriter: puts in faster kernels; None leaves all as it is.
    """

    def __init__(
        self,
        compute: Callable[[], Sequence[Any]],
        sources: Sequence[Any],
        rewriter: Rewriter | None,
    ) -> None:
        self._sources = list(sources)
        self.rewritten = Counter[str]()
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        start = len(graph.get_operations()) if graph else 0
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x for x in sources if not isinstance(x, tf.Tensor) or x.dtype.is_floating])
            self.results = list(compute())
        self._tape = tape
        if graph is not None and rewriter is not None:
            self._rewrite(rewriter, graph.get_operations()[start:])

    def _rewrite(self, rewriter: Rewriter, operations: Sequence[Any]) -> None:
        places = [n for n, x in enumerate(self.results) if isinstance(x, tf.Tensor)]
        made, self.rewritten = rewriter.rewrite(operations, [self.results[n] for n in places])
        for place, tensor in zip(places, made, strict=True):
            self.results[place] = tensor

    def gradients(self, targets: Sequence[Any], seeds: Sequence[Any] | None) -> list[Any]:
        """The gradients of the sum of `targets`, each times its seed; None where none depends."""
        if self.rewritten:
            return graph_gradients(targets, self._sources, seeds)
        return list(self._tape.gradient(list(targets), self._sources, output_gradients=seeds))
