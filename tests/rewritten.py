"""Runs layers of Keras once as they are and once rewritten, in tests of faster kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.stages.recorded import Recorded, rewritten

__all__ = ["assert_close", "infer", "numbers", "takes_no_rows", "train"]

ROUNDING = 1e-5


def train(
    compute: Callable[[Any], Any],
    layer: keras.layers.Layer,
    x: np.ndarray,
    rewriter: Rewriter | None,
    known: bool = False,
) -> tuple[list[np.ndarray], Any]:
    """Outputs, gradients and state after one call of `compute`; and what was rewritten."""
    before = layer.get_weights()
    seen = {}

    def step(inputs: Any) -> list[Any]:
        variables = [v.value for v in layer.trainable_variables]
        recorded = Recorded(lambda: [compute(inputs)], [inputs, *variables], rewriter)
        seen["counts"] = recorded.rewritten
        (made,) = recorded.results
        seed = tf.cos(tf.reshape(tf.cast(tf.range(tf.size(made)), made.dtype), tf.shape(made)))
        return [made, *recorded.gradients([made], [seed])]

    spec = tf.TensorSpec(x.shape if known else (None, *x.shape[1:]), x.dtype)
    made = tf.function(step, autograph=False, input_signature=[spec])(tf.constant(x))
    after = layer.get_weights()
    layer.set_weights(before)
    return [np.asarray(m) for m in made] + after, seen["counts"]


def infer(
    compute: Callable[[Any], Any], x: np.ndarray, rewriter: Rewriter | None
) -> tuple[list[np.ndarray], Any]:
    """Outputs of `compute` for any number of rows, without gradients; and what was rewritten."""
    seen = {}

    def step(inputs: Any) -> Any:
        (made,), seen["counts"] = rewritten(lambda: [compute(inputs)], rewriter, training=False)
        return made

    spec = tf.TensorSpec((None, *x.shape[1:]), x.dtype)
    made = tf.function(step, autograph=False, input_signature=[spec])(tf.constant(x))
    return [np.asarray(made)], seen["counts"]


def takes_no_rows(compute: Callable[[], Any]) -> bool:
    """Whether TensorFlow's own operations compute with no rows.

    As a whole, oneDNN loses the shape of no images; hyparflow gives no part without rows.
    """
    try:
        compute()
    except tf.errors.OpError:
        return False
    return True


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(1.0, 2.0, shape).astype(dtype)


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = max(
            np.abs(other).max(initial=0), 0.1
        )  # gradients that cancel have the rounding of others
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING * largest)
