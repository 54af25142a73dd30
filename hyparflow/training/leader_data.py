"""The data that Keras's loop reads on the leader in place of the user's, and back to commands.

Ranks that have the arrays of a call need only the numbers of rows from the leader, and replicas
that read streams of their own only need to be told to read. So Keras is given numbers of rows, or
numbers of steps ("tickets"), and makes batches of them in its own order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from hyparflow.comm.leader import on_leader
from hyparflow.comm.world import World
from hyparflow.model.keras_internals.data import ToldEnd, unpack
from hyparflow.training.call import Call
from hyparflow.training.commands import Command, DrawBatch, StepCommand, TellEpoch
from hyparflow.training.data.array_source import dense, peek
from hyparflow.training.data.streams import tickets

__all__ = ["peek_on_leader", "row_numbers", "step_command", "step_tickets"]

_PREFIX = "hyparflow_rows_of_"
_TICKET = "hyparflow_step_of_"
Order = Callable[[Command], Any]


def peek_on_leader(call: Call, world: World) -> tuple[Any, Any, int | None]:
    """The results of `peek`; on ranks other than the leader, without the stream. Collective."""
    streams = [call.stream]

    def look() -> tuple[Any, Any]:
        streams[0], specs, rows = peek(call.stream, **call.reading)
        return specs, rows

    specs, rows = on_leader(world, look, "the types of the data")
    return streams[0], specs, rows


def row_numbers(source: str, count: int) -> dict[str, np.ndarray]:
    """The data for Keras's `fit` in place of the arrays of `source`: the numbers of their rows."""
    return {_PREFIX + source: np.arange(count)}


def step_tickets(source: str, order: Order) -> Any:
    """The data for Keras's `fit` in place of streams that each replica reads itself.

    Args:
        source: the name of the stream.
        order: gives all ranks a command.
    """
    return tickets(_TICKET + source, lambda event: order(TellEpoch(source, event)))


def step_command(kind: type[StepCommand], data: Any, order: Order) -> tuple[StepCommand, Any]:
    """The command for a batch of Keras's, and rows that go with it where ranks do not have them.

    Args:
        kind: the class of the command.
        data: a batch of what Keras was given.
        order: gives all ranks a command.

    Raises:
        StopIteration: at the end of all streams, which ends Keras's epoch.
    """
    if isinstance(data, tuple) and len(data) == 1:
        data = data[0]
    if isinstance(data, dict) and len(data) == 1:
        key, value = next(iter(data.items()))
        if key.startswith(_PREFIX):
            indices = np.array(value)
            return kind(key.removeprefix(_PREFIX), indices, len(indices)), None
        if key.startswith(_TICKET):
            return _drawn(kind, key.removeprefix(_TICKET), int(value), order), None
    batch = keras.tree.map_structure(lambda x: None if x is None else dense(x), unpack(data))
    first = next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None)
    return kind(rows=len(first)), tuple(batch)


def _drawn(kind: type[StepCommand], source: str, step: int, order: Order) -> StepCommand:
    """The command for the batches that the replicas take from their streams."""
    counts, tell_length = order(DrawBatch(source, is_first=step == 0))
    if not any(counts):
        raise ToldEnd if tell_length else StopIteration
    return kind(source, rows=sum(counts), counts=counts)
