"""What is to be planned, and one way to do it."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.grid import Grid
from hyparflow.operations import OperationGraph
from hyparflow.partition import Partitioning
from hyparflow.planning.cluster import Cluster
from hyparflow.planning.costs import Costs
from hyparflow.schedule import in_words

__all__ = ["Candidate", "Problem"]


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
        grid: replicas and partitions.
        num_microbatches: M.
        schedule: one of `hyparflow.schedule.SCHEDULES`.
        partitioning: the stages and what crosses between them; an interleaved schedule has
            several for each partition.
    """

    grid: Grid
    num_microbatches: int
    schedule: str
    partitioning: Partitioning

    @property
    def stages_per_partition(self) -> int:
        """V."""
        return self.partitioning.num_stages // self.grid.num_partitions

    @property
    def in_words(self) -> str:
        """The schedule in words; empty where there is no pipeline to have one."""
        return in_words(self.schedule, self.grid.num_partitions, self.stages_per_partition)

    @property
    def is_plain_keras(self) -> bool:
        """Whether there is nothing for hyparflow to do."""
        return self.grid.size * self.num_microbatches == 1

    def stages(self, partition: int) -> range:
        """The stages of a partition."""
        return self.grid.stages(partition, self.partitioning.num_stages)

    def operations(self, partition: int) -> list[int]:
        """The numbers of the operations of a partition."""
        return [n for s in self.stages(partition) for n in self.partitioning.operations(s)]
