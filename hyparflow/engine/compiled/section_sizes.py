"""What a section of a traced computation takes, for each position of a row: plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.formats.records import Bytes, Number

__all__ = ["SectionSizes"]


@dataclass(frozen=True)
class SectionSizes:
    """Bytes for each position of a row, of weights, and operations of TensorFlow.

    Attributes:
        made: bytes of all tensors of its forward.
        largest: bytes of the largest of them.
        kept: bytes that its forward keeps for its backward, if asked.
        working: bytes that its backward needs at a time if nothing was kept: its forward runs
            before it, and what it is given and what it returns are there as well.
        rows: bytes of the gradients of weights that have a row for each position: of embeddings.
        tables: bytes of those weights, whatever the number of positions.
        weight: bytes of its largest weight with another gradient, which is there until it is added
            to those of other chunks.
        forward: operations of its forward.
        backward: operations of its backward, if its forward kept what that needs.
        again: the same, if it did not.
    """

    made: Bytes = 0
    largest: Bytes = 0
    kept: Bytes = 0
    working: Bytes = 0
    rows: Bytes = 0
    tables: Bytes = 0
    weight: Bytes = 0
    forward: Number = 0
    backward: Number = 0
    again: Number = 0
