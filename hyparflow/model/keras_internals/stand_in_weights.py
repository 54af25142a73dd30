"""Random numbers in the place of a model's weights, drawn as they are read and kept by nobody."""

from __future__ import annotations

import zlib
from typing import Any

import keras
import numpy as np

from hyparflow.model.keras_internals.deferred_variables import is_absent

__all__ = ["StandInWeights"]


class StandInWeights(keras.StatelessScope):  # type: ignore[misc]
    """While open, weights that are trained read as random numbers of unit size; writes do nothing.

    Dependences cannot hide behind weights that are zero, or small. Weights that have no memory yet
    need none.
    """

    def is_written(self, variable: Any) -> bool:
        """Whether something has written to a variable."""
        return super().get_current_value(variable) is not None

    def get_current_value(self, variable: Any) -> Any:
        """Keras's own: the value that a variable is to have; None for the one that it has."""
        written = super().get_current_value(variable)
        is_real = not variable.trainable and not is_absent(variable)  # a table, or a mask
        if written is not None or "float" not in variable.dtype or is_real:
            return written
        draw = np.random.default_rng(zlib.crc32(variable.path.encode()))
        shape = tuple(variable.shape)
        drawn = draw.standard_normal(shape, np.float32)
        values = drawn * np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 1 + drawn / 4
        return keras.ops.cast(values, variable.dtype)
