"""Access to private parts of Keras's callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

__all__ = ["runs_own_code", "write_scalars"]


def write_scalars(board: Any, values: Mapping[str, float], step: int) -> None:
    """Write values into the file of a TensorBoard callback's training run.

    A file of our own in the same folder would be taken for a run that began anew.
    """
    import tensorflow as tf

    with board._train_writer.as_default():
        for name, value in values.items():
            tf.summary.scalar(name, value, step=step)


def runs_own_code(callback: Any, hooks: Iterable[str]) -> bool:
    """Whether a callback runs code of the user's in one of these methods."""
    kind = type(callback)
    if kind.__module__.startswith("keras."):
        return isinstance(callback, keras.callbacks.LambdaCallback)
    base = keras.callbacks.Callback
    return any(
        hook in vars(callback) or getattr(kind, hook) is not getattr(base, hook) for hook in hooks
    )
