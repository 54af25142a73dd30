"""Faster kernels in place of what Keras's layers write out, in a traced graph."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from rewritten import assert_close, numbers, train

from hyparflow.engine import kernels
from hyparflow.engine.kernels import batch_normalization, recurrent_layers
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.rewriter import IN_INFERENCE, IN_TRAINING, Rewriter
from hyparflow.engine.kernels.traced import TracedOperations

NAME = batch_normalization.NAME


def layer_for(shape: tuple[int, ...], **arguments: Any) -> keras.layers.BatchNormalization:
    layer = keras.layers.BatchNormalization(**arguments)
    layer.build((None, *shape[1:]))
    random = np.random.default_rng(1)
    layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "arguments", [{}, {"scale": False}, {"center": False}, {"axis": "last"}], ids=str
)
@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 5), (5, 4, 3, 6), (3, 2, 3, 2, 4)], ids=str)
def test_batch_normalization_is_what_keras_computes(
    shape: tuple[int, ...], arguments: dict[str, Any], known: bool
) -> None:
    if "axis" in arguments:  # Keras then computes with vectors of more axes
        arguments = {"axis": len(shape) - 1}
    layer, x = layer_for(shape, **arguments), numbers(shape)

    def call(inputs: Any) -> Any:
        return layer(inputs, training=True)

    expected, _ = train(call, layer, x, None, known)
    found, counts = train(call, layer, x, Rewriter(), known)
    assert counts == {NAME: 1}
    assert_close(found, expected)


def test_normalizations_one_after_the_other_read_each_other() -> None:
    first, second = layer_for((8, 4)), layer_for((8, 4))
    both = keras.Sequential([keras.Input((4,)), first, second, keras.layers.ReLU()])

    def call(inputs: Any) -> Any:
        return both(inputs, training=True)

    expected, _ = train(call, both, numbers((8, 4)), None)
    found, counts = train(call, both, numbers((8, 4)), Rewriter())
    assert counts == {NAME: 2}
    assert_close(found, expected)


def test_one_row_has_the_variance_that_keras_computes() -> None:
    layer, x = layer_for((1, 3)), numbers((1, 3))

    def call(inputs: Any) -> Any:
        return layer(inputs, training=True)

    expected, _ = train(call, layer, x, None)
    found, counts = train(call, layer, x, Rewriter())
    assert counts == {NAME: 1}
    assert_close(found, expected)


class OfMean(keras.layers.BatchNormalization):
    """Returns the mean as well as what is normalized: the kernel has no gradient for it."""

    def _moments(self, inputs: Any, mask: Any) -> Any:
        self.seen = super()._moments(inputs, mask)
        return self.seen

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        return super().call(inputs, training=training, mask=mask) + self.seen[0]


def left_alone() -> Iterator[Any]:
    shape = (4, 3, 3, 3)
    yield pytest.param(layer_for(shape, axis=1), "float32", True, id="other axis")
    yield pytest.param(layer_for(shape, dtype="float64"), "float64", True, id="float64")
    yield pytest.param(layer_for(shape, renorm=True), "float32", True, id="renorm")
    yield pytest.param(layer_for(shape), "float32", False, id="inference")
    mean = OfMean()
    mean.build((None, *shape[1:]))
    yield pytest.param(mean, "float32", True, id="gradient of the mean")
    yield pytest.param(keras.layers.LayerNormalization(), "float32", True, id="other layer")


@pytest.mark.parametrize(("layer", "dtype", "training"), list(left_alone()))
def test_what_the_kernel_does_not_compute_is_left_alone(
    layer: Any, dtype: str, training: bool
) -> None:
    x = numbers((4, 3, 3, 3), dtype)
    if not layer.built:
        layer.build(x.shape)

    def call(inputs: Any) -> Any:
        takes = "training" in layer._call_signature.parameters
        return layer(inputs, training=training) if takes else layer(inputs)

    expected, _ = train(call, layer, x, None)
    found, counts = train(call, layer, x, Rewriter())
    assert not counts
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_masked_rows_are_left_alone() -> None:
    layer, x = layer_for((4, 3, 5)), numbers((4, 3, 5))
    mask = tf.constant([[True, True, False]] * 4)

    def call(inputs: Any) -> Any:
        return layer(inputs, training=True, mask=mask)

    expected, _ = train(call, layer, x, None)
    found, counts = train(call, layer, x, Rewriter())
    assert not counts
    assert_close(found, expected)


def test_a_kernel_that_is_wrong_is_left_out_and_said_once() -> None:
    def wrong(traced: TracedOperations) -> Iterator[Rewrite]:
        for found in batch_normalization.find(traced):
            yield Rewrite(
                found.variant,
                found.inputs,
                found.replaced,
                lambda *inputs, kernel=found.kernel: [1.001 * y for y in kernel(*inputs)],
                found.operations,
                found.without_gradient,
            )

    layer, x, rewriter = layer_for((4, 5)), numbers((4, 5)), Rewriter({NAME: wrong})

    def call(inputs: Any) -> Any:
        return layer(inputs, training=True)

    expected, _ = train(call, layer, x, None)
    with pytest.warns(UserWarning, match="faster kernel for batch normalization is left out"):
        found, counts = train(call, layer, x, rewriter)
    assert not counts
    assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(call, layer, x, rewriter)


def test_a_kernel_that_does_not_run_is_left_out() -> None:
    def broken(traced: TracedOperations) -> Iterator[Rewrite]:
        for found in batch_normalization.find(traced):
            kernel = found.kernel

            def fail(*inputs: Any, kernel: Any = kernel) -> list[Any]:
                with tf.control_dependencies([tf.debugging.Assert(False, ["no such kernel"])]):
                    return [tf.identity(y) for y in kernel(*inputs)]

            yield dataclasses.replace(found, kernel=fail)

    layer, x = layer_for((4, 5)), numbers((4, 5))

    def call(inputs: Any) -> Any:
        return layer(inputs, training=True)

    expected, _ = train(call, layer, x, None)
    with pytest.warns(UserWarning, match="is left out"):
        found, counts = train(call, layer, x, Rewriter({NAME: broken}))
    assert not counts
    assert_close(found, expected)


def test_every_kernel_has_a_name_of_its_own() -> None:
    modules = [
        importlib.import_module(m.name)
        for m in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}.")
    ]
    names = [module.NAME for module in modules if hasattr(module, "NAME")]
    assert sorted(names) == sorted({*IN_TRAINING, *IN_INFERENCE, recurrent_layers.NAME})
