"""What users ask of all ranks (a call), and what the leader tells them in its course (commands)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hyparflow.engine.batch import Rows, microbatch_rows, replica_rows
from hyparflow.options import Options
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.microbatches import automatic_microbatches
from hyparflow.tracing.collect import TraceRequest
from hyparflow.training.data.array_source import ArraySource

__all__ = ["DEFAULT_BATCH", "Call", "Command"]

DEFAULT_BATCH = 32  # Keras's


@dataclass
class Call:
    """One call of a method of the model.

    Attributes:
        method: "fit", "evaluate" or "predict".
        options: the checked parallel arguments.
        sources: its arrays, by name.
        stream: its data where they are no arrays; only the leader reads it.
        reading: Keras's arguments that say how the stream is read.
        shards: streams of which each replica reads its own, with the arguments that say how, by
            name.
        rows: rows of a full batch; None where a stream does not tell.
        arguments: what must be the same on all ranks beside model and data.
        trace: the trace that is wanted of it.
    """

    method: str
    options: Options
    sources: dict[str, ArraySource]
    stream: Any
    rows: int | None
    arguments: dict[str, Any]
    reading: dict[str, Any] = field(default_factory=dict)
    shards: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    trace: TraceRequest | None = None

    @property
    def num_microbatches(self) -> int:
        """M for a full batch."""
        count = self.options.num_microbatches
        if isinstance(count, int):
            return count
        return automatic_microbatches(self.rows or DEFAULT_BATCH, self.options.grid)

    @property
    def part_rows(self) -> list[int]:
        """How many rows the micro-batches of a full batch have, each number once."""
        rows, grid = self.rows or 0, self.options.grid
        parts = [
            stop - start
            for replica in range(grid.num_replicas)
            for start, stop in microbatch_rows(rows, grid, replica, self.num_microbatches)
        ]
        return sorted(set(parts) - {0})


@dataclass
class Command:
    """One thing that all ranks do together.

    Attributes:
        name: the method of `hyparflow.training.worker.Worker` to call.
        source: which arrays the row numbers mean, or None for rows sent by the leader.
        indices: row numbers of the global batch.
        rows: rows of the global batch.
        counts: rows of each replica where they read streams of their own, else None.
        values: anything else.
    """

    name: str
    source: str | None = None
    indices: Any = None
    rows: int = 0
    counts: list[int] | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def replica_rows(self, grid: Grid, replica: int) -> Rows:
        """The rows of the global batch that `replica` computes."""
        if self.counts is None:
            return replica_rows(self.rows, grid, replica)
        start = sum(self.counts[:replica])
        return start, start + self.counts[replica]
