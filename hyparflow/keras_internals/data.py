"""How Keras reads data."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["array_sources", "is_array_data", "is_ragged", "unpack"]


def is_array_data(x: Any) -> bool:
    """Whether Keras would read `x` as arrays (and not as a dataset or a generator)."""
    from keras.src.trainers.data_adapters import array_data_adapter

    return x is not None and array_data_adapter.can_convert_arrays(x)


def is_ragged(value: Any) -> bool:
    """Whether `value` is a tensor whose rows have different lengths."""
    import tensorflow as tf

    return isinstance(value, tf.RaggedTensor)


def array_sources(
    x: Any, y: Any, sample_weight: Any, class_weight: Any
) -> tuple[tuple[Any, Any, Any], int]:
    """Arrays as Keras prepares them: (x, y, sample weights) of sliceables, and their length.

    Keras's adapter checks lengths, turns class weights into sample weights and picks dtypes;
    its slices are then exactly those of plain `fit`.
    """
    from keras.src.trainers.data_adapters import array_slicing
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    adapter = ArrayDataAdapter(x, y, sample_weight=sample_weight, class_weight=class_weight)
    inputs = adapter._inputs
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    padded = (*inputs, None, None)[:3]
    sliceable = tuple(
        array_slicing.convert_to_sliceable(part, target_backend="numpy") for part in padded
    )
    return sliceable, adapter._num_samples  # type: ignore[return-value]


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """A batch as (x, y, sample weights)."""
    return keras.utils.unpack_x_y_sample_weight(data)
