"""Moves crossing tensors between the partitions of one replica.

A message is the bytes of a tensor, then the bytes of its mask if it carries one. A header with
type and shape goes before it: the types that Keras knows beforehand are not always those of the
running model. Where the shape follows from the number of rows, both ends remember the header after
the first message. MPI keeps messages of one tag in order, so header, tensor and mask share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.actions import Edge
from hyparflow.comm import Communicator
from hyparflow.pending import Request
from hyparflow.tensor_memory import TensorBuffer

__all__ = ["Transport"]

_MAX_RANK = 16
_HEADER = 1 + 2 * _MAX_RANK  # type of the tensor, shapes of tensor and mask
_TYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2"),
)


class _Incoming:
    """A message that is being received."""

    def __init__(self, requests: list[Request], buffers: list[TensorBuffer] | None) -> None:
        self.requests = requests
        self.buffers = buffers  # None while only the header is known to come


class Transport:
    """The messages of one rank.

    Args:
        comm: the ranks of this replica; rank number = partition number; stage s is on rank s
            modulo their number.
        edges: the table of crossing tensors.
        masked: for each edge, whether its tensor carries a mask.
        fixed_shapes: whether shapes follow from the number of rows, and what depends on what is
            the same in every step.
    """

    def __init__(
        self,
        comm: Communicator,
        edges: Sequence[Edge],
        masked: Sequence[bool],
        fixed_shapes: bool,
    ) -> None:
        self._comm = comm
        self._edges = edges
        self._masked = masked
        self._fixed = fixed_shapes
        self._dtypes: dict[int, np.dtype] = {}  # edge -> type of its tensor
        self._shapes: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        self._reached: dict[int, bool] = {}  # edge -> whether its gradient is more than None
        self._incoming: dict[int, _Incoming] = {}
        self._outgoing: list[Request] = []
        self.moved = 0  # bytes, sent and received

    def carries_mask(self, edge: int) -> bool:
        """Whether a mask comes with the edge's tensor."""
        return self._masked[edge]

    # --- activations ---

    def send_activation(self, edge: int, rows: int, tag: int, parts: Sequence[Any]) -> None:
        """Start to send a tensor (and its mask) of a micro-batch of `rows` rows."""
        arrays = [np.asarray(part, order="C") for part in parts]
        peer = self._edges[edge].consumer % self._comm.size
        key = (edge, rows)
        shapes = [array.shape for array in arrays]
        if self._fixed and self._shapes.get(key, shapes) != shapes:
            raise RuntimeError(
                "The shape of a tensor that crosses a cut must follow from the number of rows. "
                f"Received: tensor {self._edges[edge].tensor} with shapes {self._shapes[key]} and "
                f"{shapes} for {rows} rows. Cut the model elsewhere, with `lpp`."
            )
        if not self._fixed or key not in self._shapes:
            self._shapes[key] = shapes
            self._dtypes[edge] = arrays[0].dtype
            self._outgoing += self._comm.send(_header(arrays), peer, tag)
        for array in arrays:
            self._send(array, peer, tag)

    def post_activation(self, edge: int, rows: int, tag: int) -> None:
        """Start to receive, so that the message finds its buffer waiting."""
        if tag in self._incoming:
            return
        peer = self._edges[edge].producer % self._comm.size
        if self._fixed and (edge, rows) in self._shapes:
            buffers = self._buffers(edge, self._shapes[edge, rows])
            requests = [r for b in buffers for r in self._comm.receive(b.array, peer, tag)]
            self._incoming[tag] = _Incoming(requests, buffers)
        else:
            header = np.zeros(_HEADER, np.int64)
            self._incoming[tag] = _Incoming(self._comm.receive(header, peer, tag), None)
            self._incoming[tag].requests[0].keep = header

    def receive_activation(self, edge: int, rows: int, tag: int, what: str) -> list[Any]:
        """The tensor (and its mask) that `send_activation` sent."""
        self.post_activation(edge, rows, tag)
        incoming = self._incoming.pop(tag)
        self._comm.wait_all(incoming.requests, what)
        if incoming.buffers is None:
            self._dtypes[edge], shapes = _read(incoming.requests[0].keep)
            shapes = self._shapes[edge, rows] = shapes[: 1 + self._masked[edge]]
            peer = self._edges[edge].producer % self._comm.size
            incoming.buffers = self._buffers(edge, shapes)
            for buffer in incoming.buffers:
                self._comm.wait_all(self._comm.receive(buffer.array, peer, tag), what)
        self.moved += sum(buffer.array.nbytes for buffer in incoming.buffers)
        return [buffer.tensor for buffer in incoming.buffers]

    def _buffers(self, edge: int, shapes: Sequence[tuple[int, ...]]) -> list[TensorBuffer]:
        dtypes = [self._dtypes[edge], np.dtype(bool)]
        return [TensorBuffer(shape, kind) for shape, kind in zip(shapes, dtypes, strict=False)]

    # --- gradients: the receiver made the tensor, so it knows type and shape ---

    def send_gradient(self, edge: int, tag: int, gradient: Any) -> None:
        """Start to send the gradient of a tensor back to its producer; None if it has none."""
        peer = self._edges[edge].producer % self._comm.size
        if not self._fixed or edge not in self._reached:
            self._reached[edge] = gradient is not None
            flag = np.array([self._reached[edge]], np.int64)
            self._outgoing += self._comm.send(flag, peer, tag)
        if gradient is not None:
            self._send(np.asarray(gradient, order="C"), peer, tag)

    def receive_gradient(self, edge: int, tag: int, shape: tuple[int, ...], what: str) -> Any:
        """The gradient that the edge's consumer sent."""
        peer = self._edges[edge].consumer % self._comm.size
        if not self._fixed or edge not in self._reached:
            flag = np.zeros(1, np.int64)
            self._comm.wait_all(self._comm.receive(flag, peer, tag), what)
            self._reached[edge] = bool(flag[0])
        if not self._reached[edge]:
            return None
        buffer = TensorBuffer(shape, self._dtypes[edge])
        self._comm.wait_all(self._comm.receive(buffer.array, peer, tag), what)
        self.moved += buffer.array.nbytes
        return buffer.tensor

    def _send(self, array: np.ndarray, peer: int, tag: int) -> None:
        self._outgoing += self._comm.send(array, peer, tag)
        self.moved += array.nbytes

    # --- end of a step ---

    def flush(self, what: str) -> None:
        """Wait until everything that was sent has been taken."""
        self._comm.wait_all(self._outgoing, what)
        self._outgoing.clear()

    def trim(self) -> None:
        """Let go of the buffers of messages that are done."""
        self._outgoing = [request for request in self._outgoing if not request.handle.Test()]


def _header(arrays: Sequence[np.ndarray]) -> np.ndarray:
    header = np.zeros(_HEADER, np.int64)
    if (name := arrays[0].dtype.name) not in _TYPES:
        raise RuntimeError(
            "A tensor that crosses a cut must hold numbers. "
            f"Received: a tensor of type {name}. Cut the model elsewhere, with `lpp`."
        )
    header[0] = _TYPES.index(name)
    for part, array in zip(header[1:].reshape(2, _MAX_RANK), arrays, strict=False):
        part[0] = array.ndim
        part[1 : 1 + array.ndim] = array.shape
    return header


def _read(header: np.ndarray) -> tuple[np.dtype, list[tuple[int, ...]]]:
    """Type and shapes of what `_header` described."""
    parts = header[1:].reshape(2, _MAX_RANK)
    shapes = [tuple(int(size) for size in part[1 : 1 + int(part[0])]) for part in parts]
    return np.dtype(_TYPES[int(header[0])]), shapes
