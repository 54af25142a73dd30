"""Convolutions by oneDNN, where TensorFlow leaves it off though it is faster.

Proof: the same operation, and its gradients, by another kernel; only the order of sums differs.

Gain: `hyparflow.engine.compiled.one_dnn`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.compiled import one_dnn
from hyparflow.engine.kernels.number_types import is_fast
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.traced import TracedOperations

__all__ = ["KINDS", "NAME", "again", "find", "gains", "is_usual", "settings", "trial", "variant"]

NAME = "convolution"
KINDS = ("Conv2D", "DepthwiseConv2dNative")
_LAYERS = (
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.DepthwiseConv1D),
    *(keras.layers.DepthwiseConv2D, keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)
_ROWS = 2  # of the trial


def gains(layer: Any) -> bool:
    """Whether a layer of Keras has what this kernel is for."""
    return isinstance(layer, _LAYERS) and one_dnn.is_chosen()


def find(traced: TracedOperations) -> Iterator[Rewrite]:
    """The convolutions of images, channels last, each channel with all others or with none."""
    if one_dnn.is_chosen():
        for operation in traced.operations:
            if operation.type in KINDS and is_usual(operation):
                yield _rewrite(operation)


def is_usual(operation: Any) -> bool:
    """Whether a convolution is one of images of known size, channels last."""
    x, filters = operation.inputs
    return (
        is_fast(x, filters)
        and operation.get_attr("data_format") == b"NHWC"
        and operation.get_attr("padding") in (b"SAME", b"VALID")
        and x.shape.rank == 4
        and filters.shape.is_fully_defined()
        and operation.outputs[0].shape[1:].is_fully_defined()
        and x.shape[-1] == filters.shape[2]  # or channels are in groups
    )


def trial(operation: Any) -> list[list[int]]:
    """Shapes of few and small images, and of their filters."""
    shape = operation.inputs[1].shape.as_list()
    reach = [
        (size - 1) * dilation + 2 * stride
        for size, dilation, stride in zip(
            shape[:2],
            operation.get_attr("dilations")[1:3],
            operation.get_attr("strides")[1:3],
            strict=True,
        )
    ]
    return [[_ROWS, *reach, shape[2]], shape]


def variant(operation: Any) -> tuple[Any, ...]:
    """What tells one kind of convolution from another, but for its channels."""
    steps = [tuple(operation.get_attr(name)) for name in ("strides", "dilations")]
    size = operation.inputs[1].shape[:2].as_list()
    kind = operation.type, operation.inputs[0].dtype
    return *kind, *size, operation.get_attr("padding"), *steps


def settings(operation: Any) -> dict[str, Any]:
    """Those of a convolution, by name."""
    names = ("strides", "padding", "explicit_paddings", "data_format", "dilations")
    return {name: operation.get_attr(name) for name in names}


def again(operation: Any, x: Any, filters: Any) -> Any:
    """The same convolution by TensorFlow, of other images and filters."""
    compute = getattr(tf.raw_ops, operation.type)
    return compute(input=x, filter=filters, **settings(operation))


def _rewrite(operation: Any) -> Rewrite:
    def kernel(x: Any, filters: Any) -> list[Any]:
        y = one_dnn.convolved(operation, x, filters)
        # What oneDNN makes of no images has their shape, not that of y.
        return [tf.reshape(y, [-1, *y.shape[1:]])]

    return Rewrite(
        variant=variant(operation),
        inputs=list(operation.inputs),
        replaced=list(operation.outputs),
        kernel=kernel,
        operations=frozenset([operation]),
        trial=trial(operation),
    )
