"""A computation whose gradients are taken later: by a tape, or by the graph once rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.gradients_of import graph_gradients
from hyparflow.engine.kernels.rewriter import Rewriter

__all__ = ["Recorded", "rewritten"]


def rewritten(
    compute: Callable[[], Sequence[Any]],
    rewriter: Rewriter | None,
    training: bool,
    sizes_repeat: bool = False,
) -> tuple[list[Any], Counter[str]]:
    """What a computation makes with faster kernels, and how often which of them was put in.

    Args:
        compute: () -> a flat list of tensors and others.
        rewriter: None leaves all as it is, and so does eager execution.
        training: whether gradients are taken.
        sizes_repeat: whether axes of unknown size have few sizes, again and again.
    """
    if tf.executing_eagerly() or rewriter is None:
        return list(compute()), Counter()
    graph = tf.compat.v1.get_default_graph()
    start = len(graph.get_operations())
    with rewriter.tracing(training) as of_layers:
        results = list(compute())
    places = [n for n, x in enumerate(results) if isinstance(x, tf.Tensor)]
    operations, targets = graph.get_operations()[start:], [results[n] for n in places]
    made, counts = rewriter.rewrite(operations, targets, training, sizes_repeat)
    for place, tensor in zip(places, made, strict=True):
        results[place] = tensor
    return results, counts + of_layers


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

        def on_tape() -> Sequence[Any]:
            with tf.GradientTape(watch_accessed_variables=False) as self._tape:
                floating = [x for x in sources if _is_floating(x)]
                self._tape.watch(floating)
                return compute()

        self.results, self.rewritten = rewritten(on_tape, rewriter, training=True)

    def gradients(self, targets: Sequence[Any], seeds: Sequence[Any] | None) -> list[Any]:
        """The gradients of the sum of `targets`, each times its seed; None where none depends."""
        if self.rewritten:
            return graph_gradients(targets, self._sources, seeds)
        return list(self._tape.gradient(list(targets), self._sources, output_gradients=seeds))


def _is_floating(source: Any) -> bool:
    return not isinstance(source, tf.Tensor) or source.dtype.is_floating
