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

from hyparflow.pipeline.crossing import Reads, reads_of
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.token_layout import TokenLayout
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.cluster import Link
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.search.sequence_memory import (
    chunk_costs,
    compiled_operations,
    section_starts,
)

__all__ = ["SequenceLayout", "costs_divided"]

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
    def waits_in_memory(self) -> bool:
        """Whether what waits in the store takes memory."""
        return self.store in _KEPT

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
    rows, chunk = np.array(costs.rows, float), chunk_costs(costs, shards, keeps)
    given = 1, length, layout.num_chunks, shards
    working = np.full(len(costs.operations), float(chunk.at_a_time(*given)))
    kept = _kept(costs, shards)
    share = chunk.kept(*given) / max(1.0, kept.sum())
    again, kept = (1 - share) * forward, share * kept
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
        working[number] += stored * each.backward_bytes  # the gradients of this layer
    return dataclasses.replace(
        costs,
        forward=forward,
        backward=backward,
        fused=forward + backward,
        kept=kept,
        working=working,
        program=compiled_operations(costs, share),
        tensors=costs.tensors / shards,
        # That of whole sequences is of the masks of their attention.
        overheads=dataclasses.replace(costs.overheads, scratch=0.0),
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


def _linear(costs: Costs) -> np.ndarray:
    return np.ones((5, len(costs.operations))) if costs.linear is None else costs.linear


def _kept(costs: Costs, num_shards: int) -> np.ndarray:
    """Bytes that forwards would keep of a row, if they kept all, where their section starts."""
    found = np.zeros(len(costs.operations))
    own = math.ceil((costs.length or 1) / num_shards)
    for start, section in zip(section_starts(costs), costs.sections[:-1], strict=False):
        found[start] += own * section.kept
    return found


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
