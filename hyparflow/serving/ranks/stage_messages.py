"""What partitions of a replica send each other while they decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.requests import Transfer
from hyparflow.comm.tags import Tag
from hyparflow.serving.ranks.stage import DecodingStage
from hyparflow.serving.ranks.traffic import Traffic
from hyparflow.serving.scheduling.sampling import MOST_LOGPROBS

__all__ = ["StageMessages"]


class StageMessages:
    """Messages of one partition.

    Attributes:
        num_partitions: how many there are.
        is_first, is_last: which of them this is.

    Args:
        stage: its layers.
        ranks: those of the replica, one of each partition, in order.
        traffic: counts what is sent.
    """

    def __init__(self, stage: DecodingStage, ranks: Communicator, traffic: Traffic) -> None:
        self._stage, self._ranks, self._traffic = stage, ranks, traffic
        self.num_partitions = ranks.size
        self.is_first, self.is_last = ranks.rank == 0, ranks.rank == ranks.size - 1
        self._sent: list[Transfer] = []

    def receive(self, rows: int, tokens: int) -> dict[int, Any]:
        """Tensors that other partitions send to this one."""
        found, waiting = {}, list[Transfer]()
        for number, edges in self._stage.received.items():
            array = np.empty(*self._stage.like(number, rows, tokens))
            waiting += self._ranks.receive(array, edges[0].producer, Tag.SERVED_TENSORS)
            found[number] = array
        self._ranks.wait_all(waiting, "tensors of another partition")
        return {number: tf.constant(array) for number, array in found.items()}

    def send(self, made: dict[int, Any]) -> None:
        """Start to send tensors to the partitions that take them."""
        for number, edges in self._stage.sent.items():
            array = np.ascontiguousarray(made[number].numpy())
            for edge in edges:
                self._sent += self._ranks.send(array, edge.consumer, Tag.SERVED_TENSORS)
                self._traffic.add("tensors", array.nbytes)

    def send_tokens(self, made: Sequence[Any]) -> None:
        """Start to send what was chosen to the first partition."""
        packed = np.concatenate([np.ascontiguousarray(x).view(np.uint8).reshape(-1) for x in made])
        self._sent += self._ranks.send(packed, 0, Tag.SERVED_TOKENS)
        self._traffic.add("tokens", packed.nbytes)

    def receive_tokens(self, rows: int, has_logprobs: bool) -> list[Any]:
        """What the last partition chose."""
        shapes: list[tuple[tuple[int, ...], Any]] = [((rows,), np.int32)]
        if has_logprobs:
            shapes += [((rows,), np.float32)]
            shapes += [((rows, MOST_LOGPROBS), kind) for kind in (np.int32, np.float32)]
        sizes = [4 * int(np.prod(shape)) for shape, _ in shapes]
        packed = np.empty(sum(sizes), np.uint8)
        waiting = self._ranks.receive(packed, self.num_partitions - 1, Tag.SERVED_TOKENS)
        self._ranks.wait_all(waiting, "tokens of the last partition")
        parts = np.split(packed, np.cumsum(sizes)[:-1])
        return [
            part.view(kind).reshape(shape)
            for part, (shape, kind) in zip(parts, shapes, strict=True)
        ]

    def finish(self) -> None:
        """Wait until what was sent has been taken."""
        self._ranks.wait_all(self._sent, "other partitions to take tensors")
        self._sent.clear()
