"""Gradients of depthwise convolutions in bfloat16, computed in float32.

oneDNN has no fast kernel for them: they take many times as long as in float32. Forward is left to
it.

Proof: the gradients' own operations, with wider numbers between, rounded to what was given.

Gain: a sixth of the time on an AMD EPYC (Zen 4), where steps of MobileNetV2 in mixed precision are
slower than in float32 without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.kernels import convolutions
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.traced import TracedOperations

__all__ = ["NAME", "find", "gains"]

NAME = "depthwise gradient"
_KIND = "DepthwiseConv2dNative"
_LAYERS = (
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)


def gains(layer: Any) -> bool:
    """Whether a layer of Keras has what this kernel is for."""
    return isinstance(layer, _LAYERS) and layer.compute_dtype == "bfloat16"


def find(traced: TracedOperations) -> Iterator[Rewrite]:
    """The depthwise convolutions of narrow numbers."""
    if tf.config.list_logical_devices("GPU"):
        return
    for operation in traced.operations:
        is_narrow = operation.type == _KIND and operation.inputs[0].dtype == tf.bfloat16
        if is_narrow and convolutions.is_usual(operation):
            yield _rewrite(operation)


def _rewrite(operation: Any) -> Rewrite:
    settings = convolutions.settings(operation)

    @tf.custom_gradient
    def compute(x: Any, filters: Any) -> Any:
        def gradient(of_y: Any) -> list[Any]:
            wide_x, wide_filters, of_y = (tf.cast(n, tf.float32) for n in (x, filters, of_y))
            of_x = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=wide_filters, out_backprop=of_y, **settings
            )
            of_filters = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=wide_x, filter_sizes=tf.shape(filters), out_backprop=of_y, **settings
            )
            of_x.set_shape(x.shape)
            of_filters.set_shape(filters.shape)
            return [tf.cast(n, x.dtype) for n in (of_x, of_filters)]

        return convolutions.again(operation, x, filters), gradient

    return Rewrite(
        variant=convolutions.variant(operation),
        inputs=list(operation.inputs),
        replaced=list(operation.outputs),
        kernel=lambda x, filters: [compute(x, filters)],
        operations=frozenset([operation]),
        trial=convolutions.trial(operation),
    )
