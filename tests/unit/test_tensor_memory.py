"""Tensors that are filled from outside."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from hyparflow.engine.compiled.tensor_buffer import TensorBuffer

TYPES = ("bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("name", [*TYPES, "complex64", "float8_e4m3fn"])
def test_what_is_written_is_what_the_tensor_holds(name: str) -> None:
    dtype = np.dtype(tf.as_dtype(name).as_numpy_dtype)
    buffer = TensorBuffer((2, 3), dtype)
    buffer.array[...] = np.arange(6).reshape(2, 3).astype(dtype)
    assert buffer.tensor.dtype == tf.as_dtype(name)
    assert np.array_equal(np.asarray(buffer.tensor), np.arange(6).reshape(2, 3).astype(dtype))


def test_nothing_is_copied() -> None:
    buffer = TensorBuffer((4, 5), np.dtype(np.float32))
    assert np.asarray(buffer.tensor).ctypes.data == buffer.array.ctypes.data


def test_each_has_memory_of_its_own() -> None:
    buffers = [TensorBuffer((1000,), np.dtype(np.float32)) for _ in range(3)]
    for number, buffer in enumerate(buffers):
        buffer.array[:] = number
    sums = [float(tf.reduce_sum(buffer.tensor)) for buffer in buffers]
    assert sums == [0.0, 1000.0, 2000.0]


def test_the_tensor_outlives_the_buffer() -> None:
    buffer = TensorBuffer((1000,), np.dtype(np.float64))
    buffer.array[:] = 7
    tensor = buffer.tensor
    del buffer
    others = [tf.ones([1000], tf.float64) for _ in range(20)]
    assert float(tf.reduce_sum(tensor)) == 7000.0
    assert len(others) == 20


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    buffer = TensorBuffer(shape, np.dtype(np.float32))
    buffer.array[...] = 2.0
    assert tuple(buffer.tensor.shape) == shape
    assert np.array_equal(np.asarray(buffer.tensor), np.full(shape, 2.0, np.float32))
