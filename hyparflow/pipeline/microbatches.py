"""How many micro-batches a replica's rows are cut into for `num_microbatches="auto"`."""

from __future__ import annotations

from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.placement import Placement

__all__ = ["automatic_microbatches", "most_microbatches"]

_SMALLEST = 16  # rows: in a smaller micro-batch each row costs noticeably more on CPUs


def automatic_microbatches(batch_size: int, grid: Grid) -> int:
    """The number of micro-batches that "auto" stands for.

    Up to four per partition, which leaves at most a fifth of the time idle (GPipe, section
    2.3), of at least 16 rows each, but at least one per partition where there are rows enough.
    One without partitions. Where a partition has V > 4 stages, 16 / V per partition leave as
    little idle as four stages do with four.
    """
    if grid.num_partitions == 1:
        return 1
    rows = max(1, batch_size // grid.num_replicas)
    wanted = max(min(most_microbatches(grid.placement), rows // _SMALLEST), grid.num_partitions)
    return min(wanted, rows)


def most_microbatches(placement: Placement) -> int:
    """The number that "auto" stands for if there are enough rows."""
    partitions = placement.num_partitions
    most = min(4 * partitions, 16 * partitions // placement.depth)
    return max(most, partitions)
