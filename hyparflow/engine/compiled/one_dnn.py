"""Operations by oneDNN's kernels, one by one, where TensorFlow takes its own for all.

TensorFlow takes oneDNN for a whole process or not at all, and leaves it off where a processor has
AVX2 alone, though most of its kernels are faster there, too (`hyparflow.comm.one_dnn`). It knows
them by names of their own, under which a single operation can be made.

Relies on these names, and gives the operations their gradients, which TensorFlow makes before it
puts them in. Gain: steps of ResNet-20 took 0.76 and of MobileNetV2 0.82 times as long on an AMD
EPYC (Zen 1), with the fused batch normalization (``benchmarks/kernels``). Seen to work on
TensorFlow 2.21. Without it nothing is made by oneDNN that TensorFlow does not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.framework import op_def_registry

from hyparflow.comm.one_dnn import is_left_off

__all__ = [
    "batched_product",
    "convolved",
    "convolved_and_added",
    "is_chosen",
    "normalized",
    "scaled",
]

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
_KERNEL = attr_value_pb2.AttrValue(s=b"MklNameChangeOp")  # under which oneDNN's are registered


def is_chosen() -> bool:
    """Whether operations are to be made by oneDNN: it is there, left off, and nobody chose that."""
    return is_left_off(os.environ) and _is_there() and not tf.config.list_logical_devices("GPU")


@functools.cache
def _is_there() -> bool:
    kinds = [f"{kind}{end}" for kind in _CONVOLUTIONS for end in ("", "BackpropInput")]
    kinds += ["Conv2DBackpropFilter", "FusedBatchNormV3", "FusedBatchNormGradV3"]
    kinds += [f"Fused{kind}" for kind in _CONVOLUTIONS]
    names = [*(f"_MklNative{kind}" for kind in kinds), "_MklBatchMatMulV2", "_MklMatMul"]
    return all(op_def_registry.get(name) is not None for name in names)


# --- what kernels are made of ---


def convolved(like: Any, x: Any, filters: Any) -> Any:
    """A convolution of x.

    Args:
        like: a traced operation, "Conv2D" or "DepthwiseConv2dNative", whose strides and padding
            are taken.
    """
    return _made(f"_MklNative{like.type}", [x, filters], _attributes(like))[0]


def convolved_and_added(like: Any, x: Any, filters: Any, bias: Any) -> Any:
    """A convolution and its bias; without a gradient. `like` is that of `convolved`."""
    attributes = {
        **_attributes(like),
        **{n: _value(v) for n, v in {"num_args": 1, "num_host_args": 0}.items()},
        "TArgs": _list(type=[tf.float32.as_datatype_enum]),
        "fused_ops": _list(s=[b"BiasAdd"]),
    }
    return _made(f"_MklNativeFused{like.type}", [x, filters, bias], attributes)[0]


def batched_product(x: Any, y: Any, adj_x: bool, adj_y: bool) -> Any:
    """Matrix products of all pairs, as `tf.linalg.matmul` has them."""
    attributes = {"T": x.dtype, "adj_x": adj_x, "adj_y": adj_y}
    return _made("_MklBatchMatMulV2", [x, y], {n: _value(v) for n, v in attributes.items()})[0]


def product(x: Any, y: Any, transpose_x: bool, transpose_y: bool) -> Any:
    """The product of two matrices, each of which may be transposed before."""
    attributes = {"T": x.dtype, "transpose_a": transpose_x, "transpose_b": transpose_y}
    made = _made("_MklMatMul", [x, y], {n: _value(v) for n, v in attributes.items()})[0]
    made.set_shape([x.shape[int(transpose_x)], y.shape[1 - int(transpose_y)]])
    return made


def normalized(x: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Batch normalization in training of x, of shape [rows, height, width, channels].

    Returns:
        The normalized x, its mean, and its unbiased variance.
    """
    nothing = tf.constant([], tf.float32)
    given = {"epsilon": epsilon, "is_training": True}
    made = _normalized(x, scale, offset, (nothing, nothing), **given)
    return made[0], made[1], made[2]


def scaled(x: Any, scale: Any, offset: Any) -> Any:
    """x * scale + offset by channel, of images; without a gradient."""
    of_rows = tf.zeros_like(scale), tf.ones_like(scale)
    return _normalized(x, scale, offset, of_rows, epsilon=0.0, is_training=False)[0]


def _normalized(x: Any, scale: Any, offset: Any, of_rows: tuple[Any, Any], **more: Any) -> Any:
    """All that the operation makes, from the mean and variance of rows where it takes them."""
    attributes = {"T": x.dtype, "U": x.dtype, "data_format": "NHWC", **more}
    attributes["exponential_avg_factor"] = 1.0
    known = {name: _value(value) for name, value in attributes.items()}
    return _made("_MklNativeFusedBatchNormV3", [x, scale, offset, *of_rows], known)


def _made(kind: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> list[Any]:
    """The outputs of a new operation of the graph that is being traced."""
    definition = op_def_registry.get(kind)
    known = {a.name: attributes[a.name] for a in definition.attr if a.name in attributes}
    types = [tf.as_dtype(known[output.type_attr].type) for output in definition.output_arg]
    graph = tf.compat.v1.get_default_graph()
    attributes = {**known, "_kernel": _KERNEL}
    operation = graph.create_op(kind, list(inputs), types, attrs=attributes, name=kind.lstrip("_"))
    return list(operation.outputs)


def _attributes(operation: Any) -> dict[str, Any]:
    return {n: value for n, value in operation.node_def.attr.items() if n[0] != "_"}


def _value(value: Any) -> Any:
    if isinstance(value, tf.DType):
        return attr_value_pb2.AttrValue(type=value.as_datatype_enum)
    if isinstance(value, bool):
        return attr_value_pb2.AttrValue(b=value)
    if isinstance(value, int):
        return attr_value_pb2.AttrValue(i=value)
    if isinstance(value, float):
        return attr_value_pb2.AttrValue(f=value)
    return attr_value_pb2.AttrValue(s=value.encode())


def _list(**given: Any) -> Any:
    return attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(**given))


# --- their gradients, by oneDNN, too ---


@tf.RegisterGradient("_MklNativeConv2D")
def _convolution_gradients(operation: Any, gradient: Any) -> list[Any]:
    x, filters = operation.inputs
    attributes, kind = _attributes(operation), "_MklNativeConv2DBackpropFilter"
    of_filters = _made(kind, [x, tf.shape(filters), gradient], attributes)[0]
    of_filters.set_shape(filters.shape)
    return [_gradient_of_images(operation, gradient), of_filters]


@tf.RegisterGradient("_MklNativeDepthwiseConv2dNative")
def _depthwise_gradients(operation: Any, gradient: Any) -> list[Any]:
    """Those of filters by TensorFlow, which took a fifteenth of oneDNN's time (MobileNetV2)."""
    x, filters = operation.inputs
    of_filters = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=x,
        filter_sizes=tf.shape(filters),
        out_backprop=gradient,
        strides=operation.get_attr("strides"),
        padding=operation.get_attr("padding"),
        explicit_paddings=operation.get_attr("explicit_paddings"),
        data_format=operation.get_attr("data_format"),
        dilations=operation.get_attr("dilations"),
    )
    return [_gradient_of_images(operation, gradient), of_filters]


def _gradient_of_images(operation: Any, gradient: Any) -> Any:
    x, filters = operation.inputs
    inputs, kind = [tf.shape(x), filters, gradient], f"{operation.type}BackpropInput"
    of_images = _made(kind, inputs, _attributes(operation))[0]
    of_images.set_shape(x.shape)
    return of_images


@tf.RegisterGradient("_MklNativeFusedBatchNormV3")
def _normalization_gradients(operation: Any, gradient: Any, *others: Any) -> list[Any]:
    x, scale, *_ = operation.inputs
    inputs = [gradient, x, scale, *operation.outputs[3:]]
    made = _made("_MklNativeFusedBatchNormGradV3", inputs, _attributes(operation))
    return [*made[:3], None, None]


@tf.RegisterGradient("_MklMatMul")
def _product_gradients(operation: Any, gradient: Any) -> list[Any]:
    x, y = operation.inputs
    of_rows, of_columns = operation.get_attr("transpose_a"), operation.get_attr("transpose_b")
    if of_rows:
        of_x = product(y, gradient, of_columns, True)
    else:
        of_x = product(gradient, y, False, not of_columns)
    if of_columns:
        of_y = product(gradient, x, True, of_rows)
    else:
        of_y = product(x, gradient, not of_rows, False)
    return [of_x, of_y]


@tf.RegisterGradient("_MklBatchMatMulV2")
def _batched_product_gradients(operation: Any, gradient: Any) -> list[Any]:
    x, y = operation.inputs
    adj_x, adj_y = operation.get_attr("adj_x"), operation.get_attr("adj_y")
    of_x = (y, gradient, adj_y, True) if adj_x else (gradient, y, False, not adj_y)
    of_y = (gradient, x, True, adj_x) if adj_y else (x, gradient, not adj_x, False)
    return [_added_up(batched_product(*given), to) for given, to in ((of_x, x), (of_y, y))]


def _added_up(gradient: Any, to: Any) -> Any:
    """A gradient of what was repeated along some axes: the sum over them."""
    if gradient.shape.is_fully_defined() and gradient.shape == to.shape:
        return gradient
    wanted, given = tf.shape(to), tf.shape(gradient)
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=wanted[:-2], s1=given[:-2])
    added = tf.reshape(tf.reduce_sum(gradient, axes), wanted)
    added.set_shape(to.shape)
    return added
