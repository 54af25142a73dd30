"""What dividing sequences moved and kept, as counted by one rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyparflow.formats.records import Amount, Bytes, Number

__all__ = ["SequenceCounts"]


@dataclass(frozen=True)
class SequenceCounts:
    """What one rank counted since its engine was built.

    Attributes:
        exchanges: all-to-all exchanges of heads and positions.
        bytes_sent: in these, to other ranks.
        bytes_kept: that were put into `sequence_store`.
        bytes_got: that were got from it.
        stalls: seconds that the rank waited for a disk.
        peak: the most bytes that were kept at the same time.
    """

    exchanges: Number = 0
    bytes_sent: Bytes = 0
    bytes_kept: Bytes = 0
    bytes_got: Bytes = 0
    stalls: Amount = 0.0
    peak: Bytes = 0

    def since(self, before: SequenceCounts) -> SequenceCounts:
        """What was counted after `before`, with the peak of both."""
        changes = {name: value - getattr(before, name) for name, value in vars(self).items()}
        return SequenceCounts(**(changes | {"peak": self.peak}))

    @classmethod
    def sum_of(cls, counts: Iterable[SequenceCounts]) -> SequenceCounts:
        """The sum of the counts of several stages."""
        columns = [list(vars(one).values()) for one in (cls(), *counts)]
        return cls(*map(sum, zip(*columns, strict=True)))
