"""`keras.layers.TimeDistributed` for any number of positions.

Keras makes a loop over the positions, whose number must be known when it is traced; without, it
counts rows in their place (``ops.shape`` before axes are swapped), and so fails or errs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from hyparflow.model.keras_internals.patched import patched

__all__ = ["positions_as_rows"]


@contextlib.contextmanager
def positions_as_rows() -> Iterator[None]:
    """While open, such layers compute all positions at once, each as a row of its own."""

    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        shape = ops.shape(inputs)
        more: dict[str, Any] = {}
        if self.layer._call_has_mask_arg and mask is not None:
            more["mask"] = ops.reshape(mask, [-1, *mask.shape[2:]])
        if self.layer._call_has_training_arg:
            more["training"] = training
        made = self.layer.call(ops.reshape(inputs, [-1, *inputs.shape[2:]]), **more)
        return ops.reshape(made, [shape[0], shape[1], *made.shape[1:]])

    with patched(keras.layers.TimeDistributed, call=call):
        yield
