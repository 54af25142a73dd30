"""One call of a method of the model, on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hyparflow.checkpoint.settings import Checkpoint
from hyparflow.engine.batch import microbatch_rows
from hyparflow.options import Options
from hyparflow.pipeline.microbatches import automatic_microbatches
from hyparflow.tracing.collect import TraceRequest
from hyparflow.training.data.array_source import ArraySource

__all__ = ["DEFAULT_BATCH", "Call", "is_shown"]

DEFAULT_BATCH = 32  # Keras's


@dataclass
class Call:
    """One call of a method of the model.

    Attributes:
        method: "fit", "evaluate" or "predict".
        options: the checked parallel arguments.
        sources: its arrays, by name.
        stream: its data, if they are no arrays; only the leader reads it.
        reading: Keras's arguments that say how the stream is read.
        shards: by name, this replica's own streams, with the arguments that say how they are read.
        rows: rows of a full batch; None where a stream does not tell.
        arguments: further values that must be the same on all ranks.
        trace: the trace that is wanted, or None.
        checkpoint: where and when checkpoints are kept, or None.
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
    checkpoint: Checkpoint | None = None

    @property
    def num_microbatches(self) -> int:
        """M for a full batch."""
        count = self.options.num_microbatches
        if isinstance(count, int):
            return count
        return automatic_microbatches(self.rows or DEFAULT_BATCH, self.options.grid)

    @property
    def part_rows(self) -> list[int]:
        """The different numbers of rows of the micro-batches of a full batch."""
        rows, grid = self.rows or 0, self.options.grid
        parts = [
            stop - start
            for replica in range(grid.num_replicas)
            for start, stop in microbatch_rows(rows, grid, replica, self.num_microbatches)
        ]
        return sorted(set(parts) - {0})


def is_shown(arguments: Mapping[str, Any]) -> bool:
    """Whether a call with these arguments of Keras's shows what it does; not with ``verbose=0``."""
    return bool(arguments.get("verbose", "auto") != 0)
