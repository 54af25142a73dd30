"""Moves crossing tensors between the partitions of one replica.

A message is the bytes of a tensor, then the bytes of its mask if it carries one. A header with
types and shapes goes before it: the types that Keras knows beforehand are not always those of the
running model, and a mask may come with some batches only. Where the shape follows from the number
of rows, both ends remember the header after the first message. MPI keeps messages of one tag in
order, so header, tensor and mask share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.requests import Transfer
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.pipeline.actions import Edge
from hyparflow.pipeline.placement import Placement

__all__ = ["Transport"]

_MAX_AXES = 16
_PART = 2 + _MAX_AXES  # type, number of axes, sizes
_HEADER = 2 * _PART  # tensor and mask
_MISSING = -1  # stands for the type of a missing part
_TYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2"),
)

_Form = tuple[tuple[int, ...], np.dtype] | None  # shape and type of a part; None: there is none


class _Incoming:
    """A message that is being received."""

    def __init__(self, requests: list[Transfer], buffers: list[TensorBuffer | None] | None) -> None:
        self.requests = requests
        self.buffers = buffers  # None while only the header is known to come


class Transport:
    """The messages of one rank.

    Args:
        comm: the ranks of this replica; rank number = partition number.
        placement: which partition holds which stage.
        edges: the table of crossing tensors.
        masked: for each edge, whether its tensor carries a mask.
        fixed_shapes: whether shapes follow from the number of rows, and the same tensors have a
            gradient in every step.
    """

    def __init__(
        self,
        comm: Communicator,
        placement: Placement,
        edges: Sequence[Edge],
        masked: Sequence[bool],
        fixed_shapes: bool,
    ) -> None:
        self._comm = comm
        self._edges = edges
        self._producers = [placement.partitions[edge.producer] for edge in edges]
        self._consumers = [placement.partitions[edge.consumer] for edge in edges]
        self._masked = masked
        self._fixed = fixed_shapes
        self._forms: dict[tuple[int, int], list[_Form]] = {}  # (edge, rows) -> tensor and mask
        self._reached: dict[int, bool] = {}  # edge -> whether its gradient is more than None
        self._incoming: dict[tuple[int, int], _Incoming] = {}  # by sender and tag
        self._outgoing: list[Transfer] = []
        self.moved = 0  # bytes, sent and received

    def carries_mask(self, edge: int) -> bool:
        """Whether a mask may come with the edge's tensor."""
        return self._masked[edge]

    # --- activations ---

    def send_activation(self, edge: int, rows: int, tag: int, parts: Sequence[Any]) -> None:
        """Start to send a tensor (and its mask, or None) of a micro-batch of `rows` rows."""
        arrays = [None if part is None else np.asarray(part, order="C") for part in parts]
        peer = self._consumers[edge]
        key = (edge, rows)
        forms: list[_Form] = [None if x is None else (x.shape, x.dtype) for x in arrays]
        if self._fixed and self._forms.get(key, forms) != forms:
            raise RuntimeError(
                "Shape and type of a tensor that crosses a cut, and of its mask, must follow from "
                f"the number of rows. Received: tensor {self._edges[edge].tensor} of "
                f"{_described(self._forms[key])}, and then of {_described(forms)}, for {rows} "
                "rows. Cut the model elsewhere, with `lpp`."
            )
        if not self._fixed or key not in self._forms:
            self._forms[key] = forms
            self._outgoing += self._comm.send(_header(forms), peer, tag)
        for array in arrays:
            if array is not None:
                self._send(array, peer, tag)

    def post_activation(self, edge: int, rows: int, tag: int) -> None:
        """Start to receive, so that the message finds its buffer waiting."""
        peer = self._producers[edge]
        key = peer, tag
        if key in self._incoming:
            return
        if self._fixed and (edge, rows) in self._forms:
            buffers = _buffers(self._forms[edge, rows])
            arrays = [buffer.array for buffer in buffers if buffer is not None]
            requests = [r for array in arrays for r in self._comm.receive(array, peer, tag)]
            self._incoming[key] = _Incoming(requests, buffers)
        else:
            header = np.zeros(_HEADER, np.int64)
            self._incoming[key] = _Incoming(self._comm.receive(header, peer, tag), None)
            self._incoming[key].requests[0].keep = header

    def receive_activation(self, edge: int, rows: int, tag: int, what: str) -> list[Any]:
        """The tensor (and its mask, or None) that `send_activation` sent."""
        self.post_activation(edge, rows, tag)
        incoming = self._incoming.pop((self._producers[edge], tag))
        self._comm.wait_all(incoming.requests, what)
        if incoming.buffers is None:
            forms = _read(incoming.requests[0].keep)[: 1 + self._masked[edge]]
            self._forms[edge, rows] = forms
            peer = self._producers[edge]
            incoming.buffers = _buffers(forms)
            for buffer in incoming.buffers:
                if buffer is not None:
                    self._comm.wait_all(self._comm.receive(buffer.array, peer, tag), what)
        self.moved += sum(buffer.array.nbytes for buffer in incoming.buffers if buffer is not None)
        return [None if buffer is None else buffer.tensor for buffer in incoming.buffers]

    # --- gradients: the receiver made the tensor, so it knows type and shape ---

    def send_gradient(self, edge: int, tag: int, gradient: Any) -> None:
        """Start to send the gradient of a tensor back to its producer; None if it has none."""
        peer = self._producers[edge]
        reached = gradient is not None
        if self._fixed and self._reached.get(edge, reached) != reached:
            raise RuntimeError(
                "A tensor that crosses a cut must have a gradient in each step, or in none. "
                f"Received: tensor {self._edges[edge].tensor} {'with' if reached else 'without'} "
                "one, unlike before. Cut the model elsewhere, with `lpp`, or compile it with "
                "run_eagerly=True."
            )
        if not self._fixed or edge not in self._reached:
            self._reached[edge] = reached
            self._outgoing += self._comm.send(np.array([reached], np.int64), peer, tag)
        if reached:
            self._send(np.asarray(gradient, order="C"), peer, tag)

    def receive_gradient(self, edge: int, tag: int, like: Any, what: str) -> Any:
        """The gradient that the edge's consumer sent, of a tensor `like` this."""
        peer = self._consumers[edge]
        if not self._fixed or edge not in self._reached:
            flag = np.zeros(1, np.int64)
            self._comm.wait_all(self._comm.receive(flag, peer, tag), what)
            self._reached[edge] = bool(flag[0])
        if not self._reached[edge]:
            return None
        dtype = np.dtype(getattr(like.dtype, "as_numpy_dtype", like.dtype))
        buffer = TensorBuffer(tuple(like.shape), dtype)
        self._comm.wait_all(self._comm.receive(buffer.array, peer, tag), what)
        self.moved += buffer.array.nbytes
        return buffer.tensor

    def _send(self, array: np.ndarray, peer: int, tag: int) -> None:
        self._outgoing += self._comm.send(array, peer, tag)
        self.moved += array.nbytes

    # --- end of a step ---

    def flush(self, what: str) -> None:
        """Wait until all sent messages are taken, and release their buffers: the end of a step."""
        self._comm.wait_all(self._outgoing, what)
        self._outgoing.clear()

    def trim(self) -> None:
        """Release the buffers of messages that are already taken; does not wait."""
        self._outgoing = [request for request in self._outgoing if not request.handle.Test()]


def _header(forms: Sequence[_Form]) -> np.ndarray:
    header = np.zeros((2, _PART), np.int64)
    header[:, 0] = _MISSING
    for part, form in zip(header, forms, strict=False):
        if form is None:
            continue
        shape, dtype = form
        if dtype.name not in _TYPES:
            raise RuntimeError(
                "A tensor that crosses a cut must hold numbers. "
                f"Received: a tensor of type {dtype.name}. Cut the model elsewhere, with `lpp`."
            )
        part[:2] = _TYPES.index(dtype.name), len(shape)
        part[2 : 2 + len(shape)] = shape
    return header.reshape(-1)


def _read(header: np.ndarray) -> list[_Form]:
    """The shapes and types in a header."""
    return [
        None
        if kind == _MISSING
        else (tuple(int(size) for size in sizes[:count]), np.dtype(_TYPES[kind]))
        for kind, count, *sizes in header.reshape(2, _PART)
    ]


def _buffers(forms: Sequence[_Form]) -> list[TensorBuffer | None]:
    return [None if form is None else TensorBuffer(*form) for form in forms]


def _described(forms: Sequence[_Form]) -> str:
    return " and ".join("none" if form is None else f"{form[0]} {form[1]}" for form in forms)
