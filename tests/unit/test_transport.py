"""Tensors, masks and gradients arrive as sent; headers go only where a shape is not known."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from hyparflow.comm.communicator import Transfer
from hyparflow.engine.transport import Transport
from hyparflow.pipeline.actions import Edge
from hyparflow.pipeline.placement import wrapped

EDGES = [Edge(0, 0, 1, True), Edge(1, 0, 1, False)]  # the second carries a mask


class Done:
    """A handle of MPI whose message is through."""

    def Test(self) -> bool:
        return True


@dataclass
class Wire:
    """What is between two ranks: per (sender, receiver, tag) the bytes in order, as in MPI."""

    messages: dict[tuple[int, int, int], deque[bytes]] = field(
        default_factory=lambda: defaultdict(deque)
    )
    count: int = 0


class FakeCommunicator:
    """One end of a `Wire`: a receive takes the message of the moment when it was posted."""

    size = 2

    def __init__(self, rank: int, wire: Wire) -> None:
        self.rank, self.wire = rank, wire
        self.posted: dict[tuple[int, int, int], deque[np.ndarray]] = defaultdict(deque)

    def send(self, array: np.ndarray, peer: int, tag: int) -> list[Transfer]:
        self.wire.messages[self.rank, peer, tag].append(array.tobytes())
        self.wire.count += 1
        return [Transfer(Done(), array)]

    def receive(self, array: np.ndarray, peer: int, tag: int) -> list[Transfer]:
        self.posted[peer, self.rank, tag].append(array)
        return [Transfer(Done(), array)]

    def wait_all(self, requests: list[Transfer], what: str) -> None:
        for key, buffers in self.posted.items():
            while buffers and self.wire.messages[key]:
                data, buffer = self.wire.messages[key].popleft(), buffers.popleft()
                assert len(data) == buffer.nbytes, f"{key}: a buffer of the wrong size"
                buffer[...] = np.frombuffer(data, buffer.dtype).reshape(buffer.shape)


def pair(fixed_shapes: bool) -> tuple[Transport, Transport, Wire]:
    """The transports of two partitions, and what is between them."""
    wire = Wire()
    first, second = (
        Transport(FakeCommunicator(rank, wire), wrapped(2), EDGES, [False, True], fixed_shapes)  # type: ignore[arg-type]
        for rank in range(2)
    )
    return first, second, wire


def tensor(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3)).astype("float32")


@pytest.mark.parametrize("fixed_shapes", [True, False])
def test_activation(fixed_shapes: bool) -> None:
    first, second, _ = pair(fixed_shapes)
    for tag, rows in enumerate((4, 4, 2, 4)):
        sent = tensor(rows, seed=tag)
        first.send_activation(0, rows, tag, [sent])
        (received,) = second.receive_activation(0, rows, tag, "a tensor")
        assert received.dtype == sent.dtype and np.array_equal(received, sent)


@pytest.mark.parametrize("fixed_shapes", [True, False])
def test_mask_travels_with_its_tensor(fixed_shapes: bool) -> None:
    first, second, _ = pair(fixed_shapes)
    codes = np.arange(8).reshape(4, 2)
    for tag in range(2):
        first.send_activation(1, 4, tag, [codes, codes > 3])
        tensor, mask = second.receive_activation(1, 4, tag, "a tensor and its mask")
        assert np.array_equal(tensor, codes)
        assert mask.dtype == bool and np.array_equal(mask, codes > 3)


def test_headers_where_shapes_follow_from_rows() -> None:
    """One header per edge and number of rows."""
    first, second, wire = pair(fixed_shapes=True)
    counts = []
    for tag, rows in enumerate((4, 4, 2, 2, 4)):
        before = wire.count
        first.send_activation(0, rows, tag, [tensor(rows)])
        second.receive_activation(0, rows, tag, "a tensor")
        counts.append(wire.count - before)
    assert counts == [2, 1, 2, 1, 1]


def test_headers_where_shapes_vary() -> None:
    """As many rows, but another length each time."""
    first, second, wire = pair(fixed_shapes=False)
    for tag, length in enumerate((3, 5, 1)):
        sent = np.full((2, length, 4), tag, "float32")
        first.send_activation(0, 2, tag, [sent])
        (received,) = second.receive_activation(0, 2, tag, "a tensor")
        assert np.array_equal(received, sent)
    assert wire.count == 6


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 1, 2, 3, 1, 2)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    first, second, _ = pair(fixed_shapes=True)
    sent = np.ones(shape, "float32")
    first.send_activation(0, 4, 7, [sent])
    (received,) = second.receive_activation(0, 4, 7, "a tensor")
    assert received.shape == shape and np.array_equal(received, sent)


@pytest.mark.parametrize("fixed_shapes", [True, False])
def test_posted_ahead(fixed_shapes: bool) -> None:
    """While one micro-batch is computed, the next one's buffer waits; posting twice is once."""
    first, second, _ = pair(fixed_shapes)
    first.send_activation(0, 4, 0, [tensor(4, 0)])
    second.receive_activation(0, 4, 0, "the first")
    second.post_activation(0, 4, 1)
    second.post_activation(0, 4, 1)
    first.send_activation(0, 4, 1, [tensor(4, 1)])
    (received,) = second.receive_activation(0, 4, 1, "the second")
    assert np.array_equal(received, tensor(4, 1))


def test_not_contiguous() -> None:
    first, second, _ = pair(fixed_shapes=True)
    sent = tensor(6).T
    first.send_activation(0, 3, 0, [sent])
    (received,) = second.receive_activation(0, 3, 0, "a tensor")
    assert np.array_equal(received, sent)


@pytest.mark.parametrize("fixed_shapes", [True, False])
def test_gradient_goes_back(fixed_shapes: bool) -> None:
    first, second, wire = pair(fixed_shapes)
    first.send_activation(0, 4, 0, [tensor(4)])
    second.receive_activation(0, 4, 0, "a tensor")
    before = wire.count
    for tag in (1, 2):
        second.send_gradient(0, tag, tensor(4, seed=tag))
        received = first.receive_gradient(0, tag, tensor(4), "a gradient")
        assert received is not None and np.array_equal(received, tensor(4, seed=tag))
    # Before the first, whether there is any; no shape, for the receiver made the tensor.
    assert wire.count - before == (3 if fixed_shapes else 4)


def test_no_gradient_sends_no_array() -> None:
    first, second, wire = pair(fixed_shapes=True)
    for tag in (1, 2):
        second.send_gradient(0, tag, None)
        assert first.receive_gradient(0, tag, tensor(4), "a gradient") is None
    assert wire.count == 1


def test_type_is_that_of_the_running_model() -> None:
    for name in ("uint8", "bool", "int64", "float16"):
        first, second, _ = pair(fixed_shapes=True)
        sent = np.arange(6).reshape(2, 3).astype(name)
        first.send_activation(0, 2, 0, [sent])
        (received,) = second.receive_activation(0, 2, 0, "a tensor")
        assert received.dtype == sent.dtype and np.array_equal(received, sent)
    with pytest.raises(RuntimeError, match="must hold numbers"):
        first.send_activation(0, 3, 1, [np.array(["a", "b", "c"], object)])


def test_a_gradient_has_the_type_of_its_own_micro_batch() -> None:
    first, second, _ = pair(fixed_shapes=False)
    sent = [tensor(4).astype(name) for name in ("float64", "float32")]
    for tag, x in enumerate(sent):  # both are under way before a gradient comes back
        first.send_activation(0, 4, tag, [x])
        second.receive_activation(0, 4, tag, "a tensor")
    for tag, x in enumerate(sent):
        second.send_gradient(0, tag, x)
        received = first.receive_gradient(0, tag, x, "a gradient")
        assert received.dtype == x.dtype and np.array_equal(received, x)


def test_a_mask_may_come_with_some_batches_only() -> None:
    first, second, _ = pair(fixed_shapes=False)
    for tag, mask in enumerate([None, np.ones((4, 2), bool), None]):
        first.send_activation(1, 4, tag, [tensor(4), mask])
        received, its_mask = second.receive_activation(1, 4, tag, "a tensor")
        assert np.array_equal(received, tensor(4))
        assert its_mask is None if mask is None else np.array_equal(its_mask, mask)


def test_what_is_remembered_may_not_change() -> None:
    first, second, _ = pair(fixed_shapes=True)
    first.send_activation(0, 4, 0, [tensor(4)])
    with pytest.raises(RuntimeError, match="tensor 0 of .* float32, and then of .* float64"):
        first.send_activation(0, 4, 1, [tensor(4).astype("float64")])
    second.send_gradient(0, 0, tensor(4))
    with pytest.raises(RuntimeError, match="tensor 0 without one, unlike before"):
        second.send_gradient(0, 1, None)


def test_nothing_is_left_over() -> None:
    first, second, wire = pair(fixed_shapes=True)
    for tag in range(3):
        first.send_activation(1, 4, tag, [np.ones((4, 2), "int64"), np.ones((4, 2), bool)])
        second.receive_activation(1, 4, tag, "a tensor and its mask")
    first.flush("its messages")
    left: list[Any] = [message for queue in wire.messages.values() for message in queue]
    assert left == []
