"""Values as tensors that a compiled function takes without a new trace.

Public API of TensorFlow only; without it each number that changes would be traced anew.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

__all__ = ["as_tensors", "as_share"]


def as_share(share: float) -> Any:
    """The part of the global batch in a micro-batch, n / B, as a tensor."""
    return tf.constant(share, tf.float64)


def as_tensors(structure: Any) -> Any:
    """Arrays as TensorFlow tensors; None and tensors stay as they are."""
    return keras.tree.map_structure(
        lambda x: x if x is None or isinstance(x, tf.Tensor) else tf.convert_to_tensor(x), structure
    )
