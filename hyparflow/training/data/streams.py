"""A stream that is already sharded: every replica reads its own, and a step takes a batch of each.

The leader's Keras loop gets tickets in place of the stream: numbers of steps, from 0 whenever
Keras begins to read again. Begins and ends of epochs are passed on to all streams.
Replicas may have batches of different sizes, and different numbers of them; an epoch ends when all
streams have ended, so that no sample is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras

from hyparflow.model.keras_internals.data import open_stream, told_of_epochs, unpack
from hyparflow.training.data.array_source import dense

__all__ = ["Shard", "tickets"]


def tickets(key: str, tell: Callable[[str], object]) -> Any:
    """The data that Keras reads in place of a stream: ``{key: number of the step}``, endless.

    Args:
        key: names the stream.
        tell: called with "begins" and "ends" when an epoch of Keras does.
    """
    import tensorflow as tf

    numbers = tf.data.Dataset.range(sys.maxsize)
    # The length is unknown, not infinite, because then Keras requires `steps_per_epoch`.
    endless = numbers.filter(lambda number: True).map(lambda number: {key: number})
    return told_of_epochs(endless, tell)


class Shard:
    """The stream of one replica.

    Args:
        stream: a dataset, a PyDataset, a generator or another stream that Keras takes.
        reading: Keras's arguments that say how it is read.
    """

    def __init__(self, stream: Any, reading: dict[str, Any]) -> None:
        self._adapter = open_stream(stream, **reading)
        self._batches: Iterator[Any] = iter(())

    @property
    def tells_length(self) -> bool:
        """Whether the number of batches is known."""
        return self._adapter.num_batches is not None

    def epoch(self, event: str) -> None:
        """Tell the stream that an epoch "begins" or "ends"."""
        if event == "begins":
            self._adapter.on_epoch_begin()
        else:
            self._adapter.on_epoch_end()

    def draw(self, is_first: bool) -> Any:
        """The next batch as (x, y, sample weights), or None after the last.

        Args:
            is_first: whether to begin from the start, as far as the stream can.
        """
        if is_first:
            self._batches = iter(self._adapter.get_numpy_iterator())
        batch = next(self._batches, None)
        if batch is None:
            return None
        parts = unpack(batch)
        return keras.tree.map_structure(lambda x: None if x is None else dense(x), parts)
