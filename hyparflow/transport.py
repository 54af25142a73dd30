"""Moves crossing tensors between the partitions of one replica.

A message is the bytes of a tensor, then the bytes of its mask if it carries one. Where the shape
of a tensor follows from the number of rows, both ends remember it after its first message;
otherwise a small header with the shape goes before each message. MPI keeps messages of one tag in
order, so header, tensor and mask share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.actions import Edge
from hyparflow.comm import Communicator, Request

__all__ = ["Transport"]

_MAX_RANK = 16  # a header holds the shapes of tensor and mask


class _Incoming:
    """A message that is being received."""

    def __init__(self, requests: list[Request], buffers: list[np.ndarray] | None) -> None:
        self.requests = requests
        self.buffers = buffers  # None while only the header is known to come


class Transport:
    """The messages of one rank.

    Args:
        comm: the ranks of this replica; rank number = partition number.
        edges: the table of crossing tensors.
        dtypes: numpy dtype of each edge's tensor.
        masked: for each edge, whether its tensor carries a mask.
        fixed_shapes: whether shapes follow from the number of rows.
    """

    def __init__(
        self,
        comm: Communicator,
        edges: Sequence[Edge],
        dtypes: Sequence[np.dtype],
        masked: Sequence[bool],
        fixed_shapes: bool,
    ) -> None:
        self._comm = comm
        self._edges = edges
        self._dtypes = dtypes
        self._masked = masked
        self._fixed = fixed_shapes
        self._shapes: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._outgoing: list[Request] = []

    # --- activations ---

    def send_activation(self, edge: int, rows: int, tag: int, parts: Sequence[Any]) -> None:
        """Start to send a tensor (and its mask) of a micro-batch of `rows` rows."""
        arrays = [np.asarray(part, order="C") for part in parts]
        peer = self._edges[edge].consumer
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
            self._outgoing += self._comm.send(_header(self._shapes[key]), peer, tag)
        for array in arrays:
            self._outgoing += self._comm.send(array, peer, tag)

    def post_activation(self, edge: int, rows: int, tag: int) -> None:
        """Start to receive, so that the message finds its buffer waiting."""
        if tag in self._incoming:
            return
        peer = self._edges[edge].producer
        if self._fixed and (edge, rows) in self._shapes:
            buffers = self._buffers(edge, self._shapes[edge, rows])
            requests = [r for buffer in buffers for r in self._comm.receive(buffer, peer, tag)]
            self._incoming[tag] = _Incoming(requests, buffers)
        else:
            header = np.zeros(2 * _MAX_RANK, np.int64)
            self._incoming[tag] = _Incoming(self._comm.receive(header, peer, tag), None)
            self._incoming[tag].requests[0].keep = header

    def receive_activation(self, edge: int, rows: int, tag: int, what: str) -> list[np.ndarray]:
        """The tensor (and its mask) that `send_activation` sent."""
        self.post_activation(edge, rows, tag)
        incoming = self._incoming.pop(tag)
        self._comm.wait_all(incoming.requests, what)
        if incoming.buffers is None:
            shapes = _shapes(incoming.requests[0].keep)[: 1 + self._masked[edge]]
            self._shapes[edge, rows] = shapes
            peer = self._edges[edge].producer
            incoming.buffers = self._buffers(edge, shapes)
            for buffer in incoming.buffers:
                self._comm.wait_all(self._comm.receive(buffer, peer, tag), what)
        return incoming.buffers

    def _buffers(self, edge: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        dtypes = [self._dtypes[edge], np.dtype(bool)]
        return [np.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=False)]

    # --- gradients: the receiver made the tensor, so it knows the shape ---

    def send_gradient(self, edge: int, tag: int, gradient: Any) -> None:
        """Start to send the gradient of a tensor back to its producer."""
        array = np.asarray(gradient, order="C")
        self._outgoing += self._comm.send(array, self._edges[edge].producer, tag)

    def post_gradient(self, edge: int, tag: int, shape: tuple[int, ...]) -> None:
        """Start to receive a gradient."""
        if tag not in self._incoming:
            buffer = np.empty(shape, self._dtypes[edge])
            peer = self._edges[edge].consumer
            self._incoming[tag] = _Incoming(self._comm.receive(buffer, peer, tag), [buffer])

    def receive_gradient(
        self, edge: int, tag: int, shape: tuple[int, ...], what: str
    ) -> np.ndarray:
        """The gradient that the edge's consumer sent."""
        self.post_gradient(edge, tag, shape)
        incoming = self._incoming.pop(tag)
        self._comm.wait_all(incoming.requests, what)
        return incoming.buffers[0]  # type: ignore[index]

    # --- end of a step ---

    def flush(self, what: str) -> None:
        """Wait until everything that was sent has been taken."""
        self._comm.wait_all(self._outgoing, what)
        self._outgoing.clear()

    def trim(self) -> None:
        """Let go of the buffers of messages that are done."""
        self._outgoing = [request for request in self._outgoing if not request.handle.Test()]


def _header(shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    header = np.zeros(2 * _MAX_RANK, np.int64)
    for index, shape in enumerate(shapes):
        header[index * _MAX_RANK] = len(shape)
        header[index * _MAX_RANK + 1 : index * _MAX_RANK + 1 + len(shape)] = shape
    return header


def _shapes(header: np.ndarray) -> list[tuple[int, ...]]:
    return [
        tuple(int(size) for size in part[1 : 1 + int(part[0])])
        for part in header.reshape(2, _MAX_RANK)
    ]
