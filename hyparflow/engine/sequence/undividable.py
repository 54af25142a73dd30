"""The error for models whose sequences cannot be divided."""

from __future__ import annotations

__all__ = ["REMEDY", "undividable"]

REMEDY = "Leave `num_sequence_shards` and `num_sequence_chunks` out for this model."


def undividable(reason: str) -> ValueError:
    """The error, with what stands against it in words."""
    return ValueError(
        "A model whose sequences are divided must treat each position alone, but for its "
        f"attention. Received: a model in which {reason}. {REMEDY}"
    )
