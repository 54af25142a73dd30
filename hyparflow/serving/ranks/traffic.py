"""What one rank has sent to others while it served, by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Traffic"]


@dataclass
class Traffic:
    """Counts what this rank sends, or adds to a sum.

    Attributes:
        messages: how many, by kind: "records" of windows, one to each rank, "heartbeats" to ranks
            without any, "tensors" between partitions, "tokens" from the last partition to the
            first, "sums" over shards.
        bytes: as many, of their contents.
    """

    messages: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, size: int) -> None:
        """Count a message of so many bytes."""
        self.messages[kind] += 1
        self.bytes[kind] += size
