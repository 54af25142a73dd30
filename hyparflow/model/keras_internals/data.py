"""Access to Keras's readers of data."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from hyparflow.model.keras_internals.passed_over import PassedOver, passing_over
from hyparflow.model.keras_internals.patched import patched

__all__ = [
    "ToldEnd",
    "array_sources",
    "is_array_data",
    "is_ragged",
    "is_stream",
    "open_stream",
    "told_of_epochs",
    "unpack",
    "untuned_datasets",
]


class ToldEnd(StopIteration):
    """The end of data whose length was known."""


def is_array_data(x: Any) -> bool:
    """Whether Keras would read `x` as arrays (and not as a dataset or a generator)."""
    from keras.src.trainers.data_adapters import array_data_adapter

    return x is not None and array_data_adapter.can_convert_arrays(x)


def is_stream(x: Any) -> bool:
    """Whether Keras would read `x` batch by batch: a dataset, a PyDataset, a generator."""
    from keras.src.trainers import data_adapters

    kinds = (keras.utils.PyDataset, data_adapters.data_adapter.DataAdapter, types.GeneratorType)
    readers = ("is_tf_dataset", "is_torch_dataloader", "is_grain_dataset")
    return isinstance(x, kinds) or any(getattr(data_adapters, is_one)(x) for is_one in readers)


def is_ragged(value: Any) -> bool:
    """Whether `value` is a tensor whose rows have different lengths."""
    import tensorflow as tf

    return isinstance(value, tf.RaggedTensor)


def open_stream(x: Any, **arguments: Any) -> Any:
    """Open a dataset, a PyDataset or a generator: the adapter by which Keras reads it."""
    from hyparflow.model.keras_internals.streams import OpenedStream

    return x if isinstance(x, OpenedStream) else OpenedStream(x, **arguments)


def told_of_epochs(dataset: Any, tell: Callable[[str], object]) -> Any:
    """`dataset` for Keras's loops; `tell` is called with "begins" and "ends" of their epochs."""
    from hyparflow.model.keras_internals.streams import ToldDataset

    return ToldDataset(dataset, tell)


@contextlib.contextmanager
def untuned_datasets(passed: PassedOver | None = None) -> Iterator[None]:
    """While open, what Keras's loops read is not tuned by tf.data, unless its options ask for it.

    Keras does not warn of the end of data whose length was known (`ToldEnd`).

    Args:
        passed: what the first loop passes over; None for nothing.

    The end of an iterator waits for the thread that tunes it. TensorFlow wakes this thread before
    it sets the flag that stops it; on a rank's only core the thread runs at once, finds no flag and
    sleeps again, for as long as the epoch took, up to a minute (TensorFlow: `OptimizeLoop` in
    tensorflow/core/framework/model.cc, `StartCancel` in tsl/framework/cancellation.cc).
    """
    from keras.src.backend.tensorflow import trainer

    from hyparflow.model.keras_internals.streams import untuned

    original = trainer.TFEpochIterator
    left = [] if passed is None else [passed]

    class Untuned(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._distributed_dataset: Any = untuned(self._get_iterator())
            self._passed = left.pop() if left else None

        def _enumerate_iterator(self) -> Iterator[Any]:
            passed, self._passed = self._passed, None
            begin = super()._enumerate_iterator
            return begin() if passed is None else passing_over(begin, passed)

        def _interrupted_warning(self) -> None:
            # If the length is known, Keras itself takes no more batches.
            if self.steps_per_epoch or not isinstance(sys.exc_info()[1], ToldEnd):
                super()._interrupted_warning()

    with patched(trainer, TFEpochIterator=Untuned):
        yield


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

    def sliceable(array: Any) -> Any:
        if _is_cast(array):
            return _CastRows(array)
        return array_slicing.convert_to_sliceable(array, target_backend="numpy")

    parts = tuple(keras.tree.map_structure(sliceable, part) for part in padded)
    return parts, adapter._num_samples  # type: ignore[return-value]


def _is_cast(array: Any) -> bool:
    """Whether Keras would cast the whole of `array` to its float type."""
    if not isinstance(array, np.ndarray) or not keras.backend.is_float_dtype(array.dtype):
        return False
    return keras.backend.standardize_dtype(array.dtype) != keras.config.floatx()


class _CastRows:
    """An array whose rows are cast when they are read: it may be larger than memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __getitem__(self, indices: Any) -> np.ndarray:
        return np.asarray(self.array[indices], keras.config.floatx())

    @classmethod
    def convert_to_numpy(cls, rows: np.ndarray) -> np.ndarray:
        return rows


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """A batch as (x, y, sample weights)."""
    return keras.utils.unpack_x_y_sample_weight(data)
