"""What the user of the planner fixed."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Wishes"]


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None leaves it to the planner.

    Attributes:
        num_ranks: ranks to use, all of them.
        num_partitions, num_replicas, num_microbatches, schedule: as for `hyparflow.parallelize`.
        stages_per_partition: of an interleaved schedule.
        lpp: operations per stage, in place of the search.
        memory_limit: bytes that a rank may use, beyond what it uses before training.
    """

    num_ranks: int
    num_partitions: int | None = None
    num_replicas: int | None = None
    num_microbatches: int | None = None
    schedule: str | None = None
    stages_per_partition: int | None = None
    lpp: tuple[int, ...] | None = None
    memory_limit: int | None = None
