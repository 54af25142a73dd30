"""What is to be planned, and one way to do it."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from hyparflow.formats.text import shortened
from hyparflow.options import check_choice, lpp_of
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.partition import Partitioning
from hyparflow.pipeline.schedules import SCHEDULES, in_words, placement_of
from hyparflow.planning.costs.cluster import Cluster
from hyparflow.planning.costs.costs import Costs

__all__ = ["Candidate", "Problem", "Constraints", "limited"]


@dataclass(frozen=True)
class Problem:
    """What is to be planned.

    Attributes:
        graph: the model's operations.
        costs: what they cost.
        cluster: the machine.
        batch_size: rows of the global batch.
    """

    graph: OperationGraph
    costs: Costs
    cluster: Cluster
    batch_size: int


@dataclass(frozen=True)
class Candidate:
    """One way to spread a model over ranks.

    Attributes:
        grid: replicas and partitions, and which stages these hold.
        num_microbatches: M.
        schedule: one of `hyparflow.pipeline.schedules.SCHEDULES`.
        partitioning: the stages and what crosses between them.
    """

    grid: Grid
    num_microbatches: int
    schedule: str
    partitioning: Partitioning

    @property
    def in_words(self) -> str:
        """The schedule in words; empty where there is no pipeline to have one."""
        return in_words(self.schedule, self.grid.placement)

    @property
    def is_plain_keras(self) -> bool:
        """Whether there is nothing for hyparflow to do."""
        return self.grid.size * self.num_microbatches == 1

    def stages(self, partition: int) -> tuple[int, ...]:
        """The stages of a partition."""
        return self.grid.placement.stages(partition)

    def operations(self, partition: int) -> list[int]:
        """The numbers of the operations of a partition."""
        return [n for s in self.stages(partition) for n in self.partitioning.operations(s)]


# Beyond these the search would take hours, for what no machine has.
_MOST = {
    "num_ranks": 2**17,
    "num_partitions": 2**17,
    "num_replicas": 2**17,
    "num_microbatches": 2**16,
    "stages_per_partition": 2**16,
}


@dataclass(frozen=True)
class Constraints:
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

    def __post_init__(self) -> None:
        counts = ("num_partitions", "num_replicas", "num_microbatches", "stages_per_partition")
        for name in ("num_ranks", *counts):
            value = getattr(self, name)
            if name == "num_ranks" or value is not None:
                object.__setattr__(self, name, limited(name, value, _MOST[name]))
        if self.schedule is not None:
            check_choice("schedule", self.schedule, SCHEDULES, " or None")
        if self.lpp is not None:
            object.__setattr__(self, "lpp", lpp_of(self.lpp))
        if self.schedule is not None:
            placement_of(self.schedule, 1, self.stages_per_partition)
        parts, replicas = self.num_partitions or 1, self.num_replicas or 1
        exact = self.num_partitions is not None and self.num_replicas is not None
        if parts * replicas != self.num_ranks if exact else self.num_ranks % (parts * replicas):
            raise ValueError(
                "The number of ranks must be num_partitions x num_replicas. Received: "
                f"num_partitions={self.num_partitions}, num_replicas={self.num_replicas} for "
                f"num_ranks={self.num_ranks}"
            )


def limited(name: str, value: Any, most: int) -> int:
    """The value of the argument `name`, a positive integer of at most `most`.

    Raises:
        ValueError: if it is not.
    """
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or not 1 <= value <= most:
        raise ValueError(
            f"`{name}` of a plan must be a positive integer, {most} at most. "
            f"Received: {name}={shortened(value)}"
        )
    return int(value)
