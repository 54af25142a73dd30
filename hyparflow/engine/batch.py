"""A batch of rows, and its division into parts of replicas and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.row_span import RowSpan

__all__ = [
    "Batch",
    "Rows",
    "split",
    "replica_rows",
    "microbatch_rows",
    "shard_rows",
    "slice_rows",
]


Rows = tuple[int, int]


def split(start: int, stop: int, parts: int) -> list[Rows]:
    """The rows ``start:stop`` in `parts` contiguous parts, larger ones first."""
    size, larger = divmod(stop - start, parts)
    bounds = [start + part * size + min(part, larger) for part in range(parts + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def replica_rows(rows: int, grid: Grid, replica: int) -> Rows:
    """The part of a global batch of `rows` rows that `replica` trains on."""
    return split(0, rows, grid.num_replicas)[replica]


def microbatch_rows(rows: int, grid: Grid, replica: int, num_microbatches: int) -> list[Rows]:
    """A replica's part of a global batch as micro-batches.

    All replicas with rows have equally many: M, or fewer if there are fewer rows.
    """
    counts = [stop - start for start, stop in split(0, rows, grid.num_replicas)]
    return shard_rows(counts, replica, num_microbatches)


def shard_rows(counts: list[int], replica: int, num_microbatches: int) -> list[Rows]:
    """Like `microbatch_rows`, for replicas that read `counts` rows each."""
    start = sum(counts[:replica])
    fewest = min(filter(None, counts), default=1)
    parts = split(start, start + counts[replica], min(num_microbatches, fewest))
    return parts if counts[replica] else []


def slice_rows(structure: Any, start: int, stop: int) -> Any:
    """Rows ``start:stop`` of every array in `structure`; None stays None."""
    return keras.tree.map_structure(lambda x: None if x is None else x[start:stop], structure)


@dataclass
class Batch:
    """What one rank holds of one global batch.

    Attributes:
        rows: rows of the global batch, B.
        microbatches: this replica's micro-batches, as row ranges of the global batch.
        x: inputs of this replica's rows (readers) or of the whole batch (`x_is_global`).
        y, sample_weight: of the whole global batch (last partitions), or None; of this replica's
            rows where each replica reads a stream of its own (`is_shard`).
        is_stand_in: whether this replica has no rows in this batch and computes with a row of
            another replica, at weight 0, to take part in collective operations.
    """

    rows: int
    microbatches: list[Rows]
    x: Any = None
    y: Any = None
    sample_weight: Any = None
    x_is_global: bool = False
    is_stand_in: bool = False
    is_shard: bool = False

    @property
    def start(self) -> int:
        """The first row of this replica's part of the global batch."""
        return self.microbatches[0][0] if self.microbatches else 0

    @property
    def stop(self) -> int:
        """The row after the last of this replica's part."""
        return self.microbatches[-1][1] if self.microbatches else 0

    def inputs(self, microbatch: int) -> Any:
        """The inputs of one micro-batch."""
        start, stop = self.microbatches[microbatch]
        shift = 0 if self.x_is_global else self.start
        return slice_rows(self.x, start - shift, stop - shift)

    def labels(self, microbatch: int) -> tuple[Any, Any]:
        """The labels and sample weights of one micro-batch."""
        start, stop = self.microbatches[microbatch]
        shift = self.start if self.is_shard else 0
        rows = (start - shift, stop - shift)
        return slice_rows(self.y, *rows), slice_rows(self.sample_weight, *rows)

    def size(self, microbatch: int) -> int:
        """The number of rows of one micro-batch, n."""
        start, stop = self.microbatches[microbatch]
        return stop - start

    def span(self, microbatch: int) -> RowSpan:
        """Where the rows of one micro-batch are in the global batch."""
        return RowSpan(self.microbatches[microbatch][0], self.size(microbatch), self.rows)

    def weight(self, microbatch: int) -> int:
        """The number of rows of one micro-batch, 0 for a stand-in."""
        return 0 if self.is_stand_in else self.size(microbatch)

    def share(self, microbatch: int) -> float:
        """The part of the global batch in one micro-batch, n / B."""
        return self.weight(microbatch) / self.rows
