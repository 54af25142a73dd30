"""Moves the values of variables between ranks piece by piece, so that no whole model is copied.

Large variables travel alone, small ones joined to pieces of about as many bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.tags import Tag
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.model.keras_internals.deferred_variables import (
    Ordinary,
    is_absent,
    overwrite,
    raw_variable,
)
from hyparflow.model.variable_sizes import bytes_of, numpy_type

__all__ = [
    "broadcast",
    "checksum",
    "first_piece",
    "pieces",
    "receive",
    "send",
    "value_of",
]

_LARGE = 1 << 22  # bytes


def value_of(variable: Any) -> np.ndarray:
    """The value of a variable, between steps: its own memory, where nothing must be copied.

    Keras and TensorFlow take several times as long, which counts where there are many variables.
    """
    raw = raw_variable(variable)
    if type(raw) is Ordinary or is_absent(raw):
        tensor = tf.raw_ops.ReadVariableOp(resource=raw.handle, dtype=raw.dtype)
    else:
        tensor = tf.convert_to_tensor(variable)
    # NumPy refuses a tensor of no dimensions and one of the types that it does not have itself.
    return np.asarray(tensor if tensor.shape.rank else tensor.numpy(), order="C")


def pieces(variables: Sequence[Any]) -> Iterator[list[Any]]:
    """The variables in pieces of one message each."""
    piece: list[Any] = []
    size = 0
    for variable in variables:
        own = bytes_of(variable)
        if own >= _LARGE:
            yield [variable]
            continue
        piece.append(variable)
        size += own
        if size >= _LARGE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def first_piece(variables: Iterable[Any]) -> list[Any]:
    """The first of the variables, as many as one message takes."""
    piece: list[Any] = []
    size = 0
    for variable in variables:
        own = bytes_of(variable)
        if piece and size + own > _LARGE:
            break
        piece.append(variable)
        size += own
    return piece


def broadcast(piece: Sequence[Any], root: int, comm: Communicator) -> None:
    """Give the values of rank `root` to all ranks of `comm`. Collective."""
    what = f"weights from rank {root}"
    if comm.rank == root:
        comm.broadcast(_packed(piece), root, what)
    else:
        room = _Room(piece)
        comm.broadcast(room.array, root, what)
        room.unpack()


def send(piece: Sequence[Any], peer: int, comm: Communicator) -> None:
    """Send the values to rank `peer`, which calls `receive`."""
    requests = comm.send(_packed(piece), peer, Tag.WEIGHTS)
    comm.wait_all(requests, f"rank {peer} to take weights")


def receive(piece: Sequence[Any], peer: int, comm: Communicator) -> None:
    """Take the values of rank `peer`, which calls `send`."""
    room = _Room(piece)
    comm.wait_all(comm.receive(room.array, peer, Tag.WEIGHTS), f"weights from rank {peer}")
    room.unpack()


def _packed(piece: Sequence[Any]) -> np.ndarray:
    """The bytes of the values; those of one variable are not copied."""
    values = [value_of(variable) for variable in piece]
    if len(values) == 1:
        return values[0].reshape(-1).view(np.uint8)
    return np.concatenate([value.reshape(-1).view(np.uint8) for value in values])


def checksum(variable: Any) -> int:
    """A checksum of the variable's own memory: a copy of a large weight would take too much."""
    return zlib.crc32(value_of(variable).reshape(-1).view(np.uint8).data)


class _Room:
    """Memory for the values that a message brings.

    Attributes:
        array: where the message goes.

    Args:
        piece: the variables whose values come; a large one takes the memory itself.
    """

    def __init__(self, piece: Sequence[Any]) -> None:
        self._piece = list(piece)
        self._buffer: TensorBuffer | None = None
        if len(self._piece) == 1 and bytes_of(piece[0]) >= _LARGE:
            self._buffer = TensorBuffer(tuple(piece[0].shape), numpy_type(piece[0].dtype))
            self.array = self._buffer.array
        else:
            self.array = np.empty(sum(bytes_of(variable) for variable in piece), np.uint8)

    def unpack(self) -> None:
        """Give the variables their values."""
        if self._buffer is not None:
            self._piece[0].assign(self._buffer.tensor)
            return
        start = 0
        for variable in self._piece:
            size = bytes_of(variable)
            part = self.array[start : start + size].copy()
            start += size
            overwrite(
                variable, part.view(numpy_type(variable.dtype)).reshape(tuple(variable.shape))
            )
