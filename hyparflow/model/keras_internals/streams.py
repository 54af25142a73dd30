"""A stream as Keras reads it, opened once: types and rows are known before anything is trained.

Keras takes it in place of the stream, and reads every batch as often, and in the same order, as
without hyparflow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter

from hyparflow.model.keras_internals.patched import patched

__all__ = ["OpenedStream", "ToldDataset", "untuned"]

_LOOKED_AT = 256  # rows of which the labels are kept


def untuned(data: Any) -> Any:
    """`data`, if it is a dataset without tf.data's own tuning, unless its options ask for that."""
    if not isinstance(data, tf.data.Dataset) or data.options().autotune.enabled is not None:
        return data
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


class OpenedStream(DataAdapter):  # type: ignore[misc]
    """The adapter by which Keras reads a dataset, a PyDataset or a generator, already opened.

    Keras itself looks at the first batches of a PyDataset or a generator for their types. The
    first batch of a dataset that does not tell its rows is taken out, and put back in front.

    Args:
        x: the stream.
        **arguments: further ones of `fit` that decide how it is read: y, sample_weight, shuffle,
            class_weight.

    Raises:
        ValueError: Keras's own, where `x` cannot be read or the arguments do not go with it.

    Attributes:
        spec: the TensorFlow types of a batch, None where it has no part.
        rows: the rows of the first batch, as far as they are known.
    """

    def __init__(self, x: Any, **arguments: Any) -> None:
        self._adapter = data_adapters.get_data_adapter(x=untuned(x), **arguments)
        self._sizes: list[int | None] = []
        self._labels: Any = None  # of the first batch, with sample weights
        dataset = self._look()
        self._begun: tuple[Any, Any] | None = None
        self.spec = keras.tree.map_structure(
            lambda spec: None if isinstance(spec, tf.OptionalSpec) else spec, dataset.element_spec
        )
        self.rows = self._sizes[0] if self._sizes else _rows(self.spec)
        self._is_dataset = isinstance(x, tf.data.Dataset)
        if self.rows is None and self._is_dataset:
            self.rows = self._begin(dataset)

    def _look(self) -> Any:
        """The dataset that Keras makes; notes the rows of the batch that it reads for the types."""
        adapter = self._adapter
        if not isinstance(adapter, PyDatasetAdapter):
            for first in (getattr(adapter, "_first_batches", None) or ())[:1]:  # of a generator
                self._note(first)
            return adapter.get_tf_dataset()
        standardize = adapter._standardize_batch

        def noting(batch: Any) -> Any:
            batch = standardize(batch)
            self._note(batch)
            return batch

        with patched(adapter, _standardize_batch=noting):
            return adapter.get_tf_dataset()

    def _note(self, batch: Any) -> None:
        """Note rows and labels of a batch that was read."""
        self._sizes.append(_rows(batch))
        if len(self._sizes) == 1:
            self._labels = _first_labels(batch)

    def first_labels(self) -> Any:
        """The first rows of (y, sample weights) as arrays; None if they cannot be read twice."""
        if self._is_dataset and self._begun is None and self._labels is None:
            self._begin(self._adapter.get_tf_dataset())
        return self._labels

    def _begin(self, dataset: Any) -> int | None:
        """Take the first batch out of a dataset, to be put back in front; returns its rows."""
        iterator = iter(dataset)
        first = next(iterator, None)
        if first is None:
            return None
        self._begun = first, iterator
        self._labels = _first_labels(first)
        return _rows(first)

    def get_tf_dataset(self) -> Any:
        """The dataset that Keras iterates over, once an epoch."""
        dataset = untuned(self._adapter.get_tf_dataset())
        return dataset if self._begun is None else _Once(self, dataset)

    def get_numpy_iterator(self) -> Iterator[Any]:
        """The batches of an epoch as arrays."""
        begun = self.take_begun()
        if begun is None:
            yield from self._adapter.get_numpy_iterator()
            return
        first, rest = begun
        for batch in itertools.chain((first,), rest):
            yield keras.tree.map_structure(
                lambda x: None if x is None else keras.ops.convert_to_numpy(x), batch
            )

    def take_begun(self) -> tuple[Any, Any] | None:
        """The first batch and the iterator after it, if they have not been taken."""
        begun, self._begun = self._begun, None
        return begun

    def on_epoch_begin(self) -> None:
        """Keras's own."""
        self._adapter.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Keras's own."""
        self._adapter.on_epoch_end()

    @property
    def num_batches(self) -> int | None:
        """Keras's own."""
        return self._adapter.num_batches  # type: ignore[no-any-return]

    @property
    def batch_size(self) -> int | None:
        """Keras's own."""
        return self._adapter.batch_size  # type: ignore[no-any-return]

    @property
    def has_partial_batch(self) -> bool | None:
        """Keras's own."""
        return getattr(self._adapter, "has_partial_batch", None)

    @property
    def partial_batch_size(self) -> int | None:
        """Keras's own."""
        return getattr(self._adapter, "partial_batch_size", None)


class ToldDataset(TFDatasetAdapter):  # type: ignore[misc]
    """A dataset that passes on what Keras tells it of epochs.

    Args:
        dataset: the dataset that Keras reads.
        tell: called with "begins" or "ends".
    """

    def __init__(self, dataset: Any, tell: Callable[[str], object]) -> None:
        super().__init__(dataset)
        self._tell = tell

    def on_epoch_begin(self) -> None:
        """Called by Keras before it reads."""
        self._tell("begins")

    def on_epoch_end(self) -> None:
        """Called by Keras when it has read, and once before."""
        self._tell("ends")


class _Once:
    """A dataset whose first iterator is the one that was begun."""

    def __init__(self, stream: OpenedStream, dataset: Any) -> None:
        self._stream = stream
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        begun = self._stream.take_begun()
        return iter(self._dataset) if begun is None else _Begun(*begun)


class _Begun(tf.data.Iterator):  # type: ignore[misc]
    """An iterator of a dataset, with its first element put back in front."""

    def __init__(self, first: Any, rest: Any) -> None:
        self._first = [first]
        self._rest = rest

    def get_next(self) -> Any:
        """The next element."""
        return self._first.pop() if self._first else self._rest.get_next()

    def get_next_as_optional(self) -> Any:
        """The next element, or none at the end."""
        if self._first:
            return tf.experimental.Optional.from_value(self._first.pop())
        return self._rest.get_next_as_optional()

    def __next__(self) -> Any:
        return self._first.pop() if self._first else next(self._rest)

    def __iter__(self) -> Iterator[Any]:
        return self

    @property
    def element_spec(self) -> Any:
        """The types of an element."""
        return self._rest.element_spec

    @property
    def _type_spec(self) -> Any:
        return self._rest._type_spec


def _first_labels(batch: Any) -> Any:
    """The first rows of the labels and sample weights of a batch, as arrays; None if not arrays."""
    parts = keras.utils.unpack_x_y_sample_weight(batch)[1:]
    try:
        return keras.tree.map_structure(
            lambda x: None if x is None else keras.ops.convert_to_numpy(x[:_LOOKED_AT]), parts
        )
    except Exception:  # ragged rows, objects: refused when they are read
        return None


def _rows(batch: Any) -> int | None:
    """The number of rows of a batch, or of its types; None if that is not known."""
    for leaf in keras.tree.flatten(batch):
        shape = getattr(leaf, "shape", None)
        if shape is not None and len(shape):
            return None if shape[0] is None else int(shape[0])
    return None
