"""What attention costs that is computed block by block: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.formats.records import Amount, Count, Number
from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.pipeline.token_layout import TokenLayout

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """An attention layer that can be computed block by block.

    Attributes:
        operation: the number of the operation that calls it.
        heads: of queries.
        key_heads: of keys and values.
        key_size, value_size: numbers of a head.
        number_size: bytes of a number.
        causal: whether keys after a query are left out.
        window: keys at this distance, and farther ones, are left out; None for no such bound.
        forward, backward: seconds for each row, head, query and key.
    """

    operation: Number
    heads: Count
    key_heads: Count
    key_size: Count
    value_size: Count
    number_size: Count
    causal: bool
    window: Count | None
    forward: Amount
    backward: Amount

    def sent_key_heads(self, num_shards: int) -> int:
        """How many heads of keys and values shards exchange."""
        return self._core().sent_key_heads(num_shards)

    def pairs(self, length: int, num_chunks: int) -> int:
        """How many pairs of a query and a key are computed for a sequence in so many chunks."""
        layout, pattern = TokenLayout(length, num_chunks), self._core().pattern
        chunks = [layout.chunk(n) for n in range(num_chunks)]
        return sum(
            (a[1] - a[0]) * (b[1] - b[0]) for a in chunks for b in chunks if pattern.attends(a, b)
        )

    def _core(self) -> AttentionCore:
        pattern = AttentionPattern(self.causal, self.window)
        return AttentionCore(
            name="",
            heads=self.heads,
            key_heads=self.key_heads,
            repeats=1,
            scale=1.0,
            pattern=pattern,
        )
