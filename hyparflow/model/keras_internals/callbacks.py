"""Access to private parts of Keras's callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

__all__ = ["is_of_keras", "write_scalars"]


def write_scalars(board: Any, values: Mapping[str, float], step: int) -> None:
    """Write values into the file of a TensorBoard callback's training run.

    A file of our own in the same folder would be taken for a run that began anew.
    """
    import tensorflow as tf

    with board._train_writer.as_default():
        for name, value in values.items():
            tf.summary.scalar(name, value, step=step)


def is_of_keras(callback: Any) -> bool:
    """Whether a callback is Keras's own, without functions of the user's."""
    own = type(callback).__module__.startswith("keras.")
    return own and not isinstance(callback, keras.callbacks.LambdaCallback)
