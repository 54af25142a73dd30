"""A stream that is already sharded: every replica reads its own, and a step takes a batch of each.

The leader's Keras loop gets tickets in place of the stream: numbers of steps, from 0 whenever
Keras begins to read anew. Replicas may have batches of different sizes, and different numbers of
them; an epoch ends when all streams have ended, so that no sample is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import keras

from hyparflow import keras_internals
from hyparflow.data import dense

__all__ = ["Shard", "tickets"]


def tickets(key: str) -> Any:
    """What Keras reads in place of a stream: ``{key: number of the step}``, without end."""
    import tensorflow as tf

    numbers = tf.data.Dataset.range(sys.maxsize)
    # Of unknown length: Keras asks for `steps_per_epoch` where data never end.
    return numbers.filter(lambda number: True).map(lambda number: {key: number})


class Shard:
    """The stream of one replica.

    Args:
        stream: a dataset, a PyDataset, a generator or what else Keras takes as a stream.
        reading: Keras's arguments that say how it is read.
    """

    def __init__(self, stream: Any, reading: dict[str, Any]) -> None:
        self._adapter = keras_internals.open_stream(stream, **reading)
        self._batches: Iterator[Any] = iter(())
        self._is_reading = False
        self._adapter.on_epoch_end()  # as Keras does before it reads

    def draw(self, is_first: bool) -> Any:
        """The next batch as (x, y, sample weights), or None after the last.

        Args:
            is_first: whether to begin from the start, as far as the stream can.
        """
        if is_first:
            if self._is_reading:  # the epoch before had fewer steps than batches
                self._adapter.on_epoch_end()
            self._is_reading = True
            self._adapter.on_epoch_begin()
            self._batches = iter(self._adapter.get_numpy_iterator())
        batch = next(self._batches, None)
        if batch is None:
            if self._is_reading:
                self._adapter.on_epoch_end()
            self._is_reading = False
            return None
        parts = keras_internals.unpack(batch)
        return keras.tree.map_structure(lambda x: None if x is None else dense(x), parts)
