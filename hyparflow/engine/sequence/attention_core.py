"""What one attention layer computes of queries, keys and values: plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyparflow.pipeline.attention_pattern import AttentionPattern

__all__ = ["AttentionCore", "require_heads", "sent_key_heads"]


@dataclass(frozen=True)
class AttentionCore:
    """Softmax attention, as a trial found it (`hyparflow.engine.sequence.attention_trial`).

    Attributes:
        name: the layer's.
        heads: of queries.
        key_heads: of keys and values, without repetitions.
        repeats: how often the layer repeats each head of them; 1 if it leaves them as they are.
        scale: by what scores are multiplied.
        soft_cap: the bound under which a hyperbolic tangent presses scores, or None.
        pattern: which keys a query attends to.
        is_padded: whether some keys may be left out as padding.
        dropout: the rate at which scores are dropped out in training.
    """

    name: str
    heads: int
    key_heads: int
    repeats: int
    scale: float
    pattern: AttentionPattern
    soft_cap: float | None = None
    is_padded: bool = False
    dropout: float = 0.0

    @property
    def unnamed(self) -> AttentionCore:
        """What all layers have in common that compute the same."""
        return replace(self, name="")

    def require_shards(self, num_shards: int) -> None:
        """Check that shards can have equally many heads.

        Raises:
            ValueError: if they cannot, with the numbers of shards that can.
        """
        require_heads(self.heads, num_shards, f"'{self.name}'")

    def sent_key_heads(self, num_shards: int) -> int:
        """How many heads of keys and values the shards exchange."""
        return sent_key_heads(self.heads, self.key_heads, num_shards)


def require_heads(heads: int, num_shards: int, owner: str) -> None:
    """Check that shards can have equally many of the heads of a layer, `owner` in words.

    Raises:
        ValueError: if they cannot, with the numbers of shards that can.
    """
    if heads % num_shards:
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"`num_sequence_shards` must divide the {heads} heads of {owner}. Received: "
            f"num_sequence_shards={num_shards}. Use one of {divisors}, and replicas or partitions "
            "for the other ranks."
        )


def sent_key_heads(heads: int, key_heads: int, num_shards: int) -> int:
    """How many heads of keys and values shards exchange, which all get equally many.

    As many as there are, if that is a multiple of the shards; one for each shard, where some share
    one; else one for each head of queries.
    """
    for count in (key_heads, num_shards):
        if count % num_shards == 0 and count % key_heads == 0:
            return count
    return heads
