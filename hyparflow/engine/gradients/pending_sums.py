"""Sums of flat buffers that go on between ranks, until their tensors are taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyparflow.comm.requests import Pending
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.engine.gradients.flat_buffer import FlatBuffer

__all__ = ["PendingSums"]


class PendingSums:
    """The sums of one step.

    Args:
        count: how many tensors are summed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._begun: list[tuple[Pending, Sequence[int], FlatBuffer, TensorBuffer | None]] = []

    def add(
        self,
        pending: Pending,
        members: Sequence[int],
        buffer: FlatBuffer,
        total: TensorBuffer | None,
    ) -> None:
        """Note a sum that has begun.

        Args:
            pending: the exchange.
            members: the numbers of the tensors in the buffer.
            buffer: packs and unpacks them.
            total: where the sum goes; None if another rank gets it.
        """
        self._begun.append((pending, members, buffer, total))

    def advance(self) -> bool:
        """Let MPI make progress; returns whether the sums are done."""
        done = [pending.advance() for pending, *_ in self._begun]  # all, not only the first
        return all(done)

    def finish(self) -> list[Any]:
        """The sums, in the order of the tensors; None for those that other ranks get."""
        result: list[Any] = [None] * self._count
        for pending, members, buffer, total in self._begun:
            pending.wait()
            if total is not None:
                for i, value in zip(members, buffer.unpack(total), strict=True):
                    result[i] = value
        self._begun.clear()
        return result
