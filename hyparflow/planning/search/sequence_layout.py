"""Costs of a model whose sequences are divided into chunks and over shards. (FPDT, section 4.)

Each position costs a forward, and in the backward that forward again, but for those chunks that
keep what their backward needs; attention costs its blocks. What waits for the backward lies in a
store: queries, keys and values, what attention made, and what goes on beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyparflow.engine.sequence.chunks import BLOCKS, TILE
from hyparflow.pipeline.crossing import Reads, reads_of
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.token_layout import TokenLayout
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.cluster import Link
from hyparflow.planning.costs.costs import Costs

__all__ = ["SequenceLayout", "costs_divided"]

_OF_A_TILE = 3  # tensors of the size of a tile at the same time
# Of what is stored; on a disk nothing stays in memory.
_KEPT = {"memory": 1.0, "host": 1.0, "bf16": 0.5}


@dataclass(frozen=True)
class SequenceLayout:
    """How sequences are divided.

    Attributes:
        num_shards: ranks that share each.
        num_chunks: of each.
        store: where chunks wait for their backward.
    """

    num_shards: int = 1
    num_chunks: int = 1
    store: str = "memory"

    @property
    def in_words(self) -> str:
        """What is passed to `fit` for it."""
        given = [f"num_sequence_shards={self.num_shards}"] if self.num_shards > 1 else []
        given += [f"num_sequence_chunks={self.num_chunks}"]
        given += [f"sequence_store={self.store!r}"] if self.store != "memory" else []
        return ", ".join(given)


def costs_divided(
    costs: Costs, graph: OperationGraph, layout: SequenceLayout, link: Link, keeps: bool = True
) -> Costs:
    """What a rank spends on each row of a batch.

    Args:
        costs: of sequences that are whole, with their length and attention.
        graph: the model's operations.
        layout: how sequences are divided.
        link: between two of the ranks that share a sequence.
        keeps: whether forwards keep what their backwards need, up to what a chunk needs.
    """
    shards, length, linear = layout.num_shards, costs.length or 1, _linear(costs)
    forward = linear[0, :, None] * costs.forward / shards
    rows, working = np.array(costs.rows, float), _of_chunk(costs, layout)
    whole = linear[3] * costs.kept / shards
    room = working.max() / max(1.0, whole.sum()) if keeps else 0.0
    share = max(0.0, min(1.0, room, 2 * room - 1))  # see `hyparflow.engine.sequence.kept_forwards`
    again, kept = (1 - share) * forward, share * whole
    again[max((layer.operation + 1 for layer in costs.attention), default=0) :] = 0.0
    backward = linear[1, :, None] * costs.backward / shards + again
    stored, reads = _KEPT.get(layout.store, 0.0), reads_of(graph)
    chunks = TokenLayout(length, layout.num_chunks)
    pairs_of = functools.cache(lambda pattern: pattern.pairs(chunks))
    for layer in costs.attention:
        number = layer.operation
        each = _Each(layer, length, layout, pairs_of(layer.pattern))
        forward[number] += each.seconds(layer.forward, each.forward_bytes, rows, link)
        backward[number] += each.seconds(layer.backward, each.backward_bytes, rows, link)
        beside = _beside(reads, costs, number, graph.operations[number].inputs)
        kept[number] += each.kept + stored * beside / shards
        working[number] += each.working
    return dataclasses.replace(
        costs,
        forward=forward,
        backward=backward,
        fused=forward + backward,
        kept=kept,
        working=working,
        tensors=costs.tensors / shards,
    )


@dataclass(frozen=True)
class _Each:
    """What one attention layer costs a rank for each row."""

    layer: Attention
    length: int
    layout: SequenceLayout
    pairs: int  # of a query and a key, that are computed

    @property
    def _numbers(self) -> tuple[int, int, int]:
        """Numbers of a position in queries; in keys and values as sent; in what attention makes."""
        layer, sent = self.layer, self.layer.sent_key_heads(self.layout.num_shards)
        sizes = layer.key_size + layer.value_size
        return layer.heads * layer.key_size, sent * sizes, layer.heads * layer.value_size

    @property
    def _own(self) -> float:
        """Bytes of a number at each of this rank's positions."""
        return self.length / self.layout.num_shards * self.layer.number_size

    @property
    def forward_bytes(self) -> float:
        """Bytes that are exchanged: queries, keys, values; and what attention made."""
        return sum(self._numbers) * self._own

    @property
    def backward_bytes(self) -> float:
        """The same for their gradients, with a number for each query and head."""
        return (sum(self._numbers) + self.layer.heads) * self._own

    def seconds(self, pair: float, size: float, rows: np.ndarray, link: Link) -> np.ndarray:
        """Seconds of blocks and exchanges, for micro-batches of these rows."""
        shards, chunks = self.layout.num_shards, self.layout.num_chunks
        pairs = self.pairs * self.layer.heads / shards
        others = (shards - 1) / shards
        sent = 2 * chunks * (shards - 1) * link.latency + rows * size * others / link.bandwidth
        return np.asarray(rows * pairs * pair + sent)

    @property
    def kept(self) -> float:
        """Bytes in memory from the forward to the backward."""
        logarithms = self.layer.heads * self.length / self.layout.num_shards * 4
        return _KEPT.get(self.layout.store, 0.0) * (self.forward_bytes + logarithms)

    @property
    def working(self) -> float:
        """Bytes besides: a block, and in memory the gradients of this layer."""
        chunk = math.ceil(self.length / self.layout.num_chunks)
        heads = self.layer.heads / self.layout.num_shards
        block = BLOCKS * chunk**2 * heads * max(4, self.layer.number_size)
        return block + _KEPT.get(self.layout.store, 0.0) * self.backward_bytes


def _linear(costs: Costs) -> np.ndarray:
    return np.ones((5, len(costs.operations))) if costs.linear is None else costs.linear


def _of_chunk(costs: Costs, layout: SequenceLayout) -> np.ndarray:
    """For each operation, bytes that a rank needs for its part of a chunk, between attentions."""
    length, linear = costs.length or 1, _linear(costs)
    own = math.ceil(math.ceil(length / layout.num_chunks) / layout.num_shards) / length
    kept, working = linear[3] * costs.kept * own, linear[4] * costs.working * own
    edges = sorted({0, *(layer.operation for layer in costs.attention), len(kept)})
    needed = np.zeros(len(kept))
    for start, stop in zip(edges, edges[1:], strict=False):
        # The attention at the start ends in this section, that at the stop begins in it.
        inside = slice(start, min(stop + 1, len(kept)))
        size = kept[inside].sum() + working[inside].max()
        if stop == len(kept):
            size = min(size, kept[start] + _OF_A_TILE * TILE)
        needed[inside] = np.maximum(needed[inside], size)
    return needed


def _beside(
    reads: tuple[Reads, np.ndarray], costs: Costs, number: int, inputs: Sequence[int]
) -> float:
    """Bytes of what is made before the operation of this number, and read after it.

    If nothing goes past an operation, it has what goes past its attention inside: a residual.
    """
    past = [
        tensor
        for (maker, readers), tensor in zip(*reads, strict=True)
        if maker < number < max(readers, default=-1)
    ]
    return float(costs.tensors[past or list(inputs)].sum())
