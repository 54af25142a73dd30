"""A function of a batch, traced for any number of rows so that many batches can be tried fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.compared_constants import compared_constants
from hyparflow.engine.trials.example import Arrays

__all__ = ["TracedTrial"]

_CONSTANTS = 6
_USUAL = (-100.0, 255.0, -9.0)  # where no graph tells the labels that are ignored


class TracedTrial:
    """Runs a function on batches of arrays.

    Args:
        function: takes (y, y_pred, sample weights) and the part's share n / B; returns tensors.
        example: a batch that it takes.
        count: how many of the first results must be finite; all if None.

    Attributes:
        constants: what the function compares with.
    """

    def __init__(
        self, function: Callable[[Any, Any], list[Any]], example: Arrays, count: int | None = None
    ) -> None:
        self._count = count

        def flat(share: Any, *leaves: Any) -> list[Any]:
            given = iter(leaves)
            batch = keras.tree.map_structure(lambda x: None if x is None else next(given), example)
            return function(batch, share)

        specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in _leaves(example)]
        try:
            traced = tf.function(flat, autograph=False).get_concrete_function(
                tf.TensorSpec((), "float32"), *specs
            )
        except Exception:  # it must run eagerly
            self._run: Any = flat
            self.constants: list[float] = list(_USUAL)
        else:
            self._run = traced
            self.constants = compared_constants(traced.graph, _CONSTANTS)

    def __call__(self, batch: Arrays, share: float = 1.0) -> list[np.ndarray]:
        """The results for a batch, as arrays."""
        leaves = [tf.constant(x) for x in _leaves(batch)]
        return [np.asarray(x) for x in self._run(tf.constant(share, "float32"), *leaves)]

    def is_finite(self, results: list[np.ndarray]) -> bool:
        """Whether the results that matter are finite numbers."""
        return all(bool(np.all(np.isfinite(x))) for x in results[: self._count])


def _leaves(batch: Arrays) -> list[np.ndarray]:
    return [x for x in keras.tree.flatten(batch) if x is not None]
