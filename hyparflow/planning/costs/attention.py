"""What attention costs that is computed block by block: plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyparflow.engine.sequence.attention_core import sent_key_heads
from hyparflow.formats.records import Amount, Count, Number
from hyparflow.pipeline.attention_pattern import AttentionPattern

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

    @property
    def kind(self) -> Attention:
        """What all layers have in common that compute the same, as far as costs tell."""
        return replace(self, operation=0)

    @property
    def pattern(self) -> AttentionPattern:
        """Which keys a query attends to."""
        return AttentionPattern(self.causal, self.window)

    def sent_key_heads(self, num_shards: int) -> int:
        """How many heads of keys and values shards exchange."""
        return sent_key_heads(self.heads, self.key_heads, num_shards)
