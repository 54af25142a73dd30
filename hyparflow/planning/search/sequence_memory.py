"""What a model takes whose sequences are divided, beside what waits in a store.

Sections, the parts between attention, and blocks of attention take turns; forwards of sections keep
some tensors. Each section is compiled by itself, and so is what attention layers of each kind
compute of a block. The gradients of embeddings have a row for each token.
"""

from __future__ import annotations

import functools
from collections.abc import Collection

import numpy as np

from hyparflow.engine.sequence.chunks import ChunkCosts, HeadSizes
from hyparflow.engine.sequence.looked_up import LookedUp
from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.pipeline.token_layout import TokenLayout
from hyparflow.planning.costs.costs import Costs

__all__ = [
    "chunk_costs",
    "compiled_operations",
    "compiled_strips",
    "looked_up",
    "section_starts",
]

_NOTHING = 1e-6  # of what a section keeps: shares of sums are not exact


def looked_up(
    costs: Costs, operations: Collection[int], batch_size: int, num_peers: int
) -> LookedUp:
    """The gradients of the embeddings of some operations.

    Args:
        costs: with the sections, and the length of sequences.
        operations: their numbers.
        batch_size: rows of the global batch.
        num_peers: ranks that hold the same weights, each with an equal share of the tokens.
    """
    starts = zip(section_starts(costs), costs.sections, strict=True)
    inside = [section for start, section in starts if start in operations]
    return LookedUp.of(inside, batch_size * (costs.length or 1), num_peers)


def chunk_costs(costs: Costs, num_shards: int, keeps: bool) -> ChunkCosts:
    """What a chunk needs on one of so many shards: the same as `num_sequence_chunks="auto"` has."""
    attention = [
        HeadSizes(
            heads=layer.heads // num_shards,
            key_heads=layer.sent_key_heads(num_shards) // num_shards,
            key_size=layer.key_size,
            value_size=layer.value_size,
            number_size=max(4, layer.number_size),
        )
        for layer in costs.attention
    ]
    return ChunkCosts.of(costs.sections, attention, keeps)


def section_starts(costs: Costs) -> list[int]:
    """The first operation of each section: attention begins the next one.

    A layer that calls attention several times has all sections in between.
    """
    starts = [0, *(layer.operation for layer in costs.attention)]
    more = len(costs.sections) - len(starts)
    return starts[: len(costs.sections)] + starts[-1:] * more


def compiled_operations(costs: Costs, kept: float) -> np.ndarray:
    """How many operations of TensorFlow are compiled, by the operation where their section starts.

    Args:
        costs: with the sections.
        kept: how much of what forwards could keep they keep, 0 to 1. The last sections keep first
            (`hyparflow.engine.sequence.kept_forwards`), and one may for some of its chunks: that
            has both kinds of forwards and of backwards.
    """
    found = np.zeros(len(costs.operations))
    if not costs.sections:
        return found
    *before, (start, last) = zip(section_starts(costs), costs.sections, strict=True)
    found[start] += last.again  # a forward and its backward at once
    left = kept * sum(section.kept for _, section in before)
    for start, section in reversed(before):
        share = min(1.0, left / max(1, section.kept))
        left -= share * section.kept
        if share > _NOTHING:
            found[start] += section.forward + section.backward
        if share < 1 - _NOTHING:
            found[start] += section.forward + section.again
    return found


@functools.cache
def compiled_strips(pattern: AttentionPattern, layout: TokenLayout) -> int:
    """How many strips of blocks are compiled for attention layers of a kind, forward and backward.

    A block whose queries see all its keys has none to speak of. Others have a function for each
    number of strips, which begins, and one that adds to what came before; backwards as many.
    """
    chunks = [layout.chunk(number) for number in range(layout.num_chunks)]
    forms = set()
    for queries in chunks:
        seen = [keys for keys in chunks if pattern.attends(queries, keys)]
        for place, keys in enumerate(seen):
            if not pattern.attends_to_all(queries, keys):
                forms.add((len(pattern.strips(queries, keys)), place > 0))
    return 2 * sum(count for count, _ in forms)
