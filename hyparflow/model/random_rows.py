"""Random rows that a model can be tried on."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

__all__ = ["random_rows"]


def random_rows(shape: Sequence[int], dtype: str, seed: int = 0) -> tf.Tensor:
    """Random numbers, the same in each call; integers are 0 or 1, which every embedding has.

    Args:
        shape: of the tensor.
        dtype: its type.
        seed: chooses the numbers.
    """
    random = np.random.default_rng(seed)
    dtype = keras.backend.standardize_dtype(dtype)
    if "float" in dtype:
        return tf.cast(random.normal(size=shape), dtype)
    return tf.cast(random.integers(0, 2, shape), dtype)
