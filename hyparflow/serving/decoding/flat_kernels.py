"""Kernels of attention as the matrices that they are to XLA.

XLA computes the product of one row with a matrix as it lies in memory, but fuses a kernel of more
axes, which it sees reshaped, into the product, and then reads it column by column: three times as
slowly. What is reshaped before XLA sees it is no copy either.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from hyparflow.serving.decoding.product_letters import ProductLetters

__all__ = ["FlatKernels"]


class FlatKernels:
    """The kernels of more than two axes of some layers.

    Args:
        layers: all that compute, also those inside others.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._found: list[tuple[Any, list[int]]] = []
        for layer in layers:
            if isinstance(layer, keras.layers.EinsumDense) and _is_plain(layer):
                count, shape = ProductLetters.of(layer).summed_first, list(layer.kernel.shape)
                if count is not None and len(shape) > 2:
                    matrix = [math.prod(shape[:count]), math.prod(shape[count:])]
                    self._found.append((layer.kernel, matrix))

    def matrices(self) -> list[Any]:
        """The kernels as they are now; called outside of what XLA compiles."""
        return [tf.reshape(kernel.value, matrix) for kernel, matrix in self._found]

    @contextlib.contextmanager
    def given(self, matrices: Sequence[Any]) -> Iterator[None]:
        """While open, layers compute with these matrices.

        Args:
            matrices: what `matrices` returns.
        """
        pairs = zip(self._found, matrices, strict=True)
        mapping = [(kernel, tf.reshape(matrix, kernel.shape)) for (kernel, _), matrix in pairs]
        with keras.StatelessScope(state_mapping=mapping):
            yield


def _is_plain(layer: Any) -> bool:
    """Whether a layer multiplies by its kernel, and by nothing that is made of it."""
    changed = getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False)
    return not changed and isinstance(layer.kernel, keras.Variable)
