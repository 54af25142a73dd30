"""Who is who: rank <-> (replica, partition). Pure integers, no MPI."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.pipeline.placement import Placement, wrapped

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """The ranks as a table of ``num_replicas`` rows and ``num_partitions`` columns.

    The partitions of one replica are neighbouring ranks, because they talk at every
    micro-batch, while replicas talk once per step (HyPar-Flow, section 5: the ranks of
    one model replica share a node).

    Args:
        num_partitions: columns.
        num_replicas: rows.
        placement: which partition holds which stage of the model; by default each holds one.
    """

    num_partitions: int
    num_replicas: int
    placement: Placement = Placement(())

    def __post_init__(self) -> None:
        for name in ("num_partitions", "num_replicas"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        if not self.placement.partitions:
            object.__setattr__(self, "placement", wrapped(self.num_partitions))

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.num_partitions * self.num_replicas

    def rank(self, replica: int, partition: int) -> int:
        """The rank that owns `partition` of `replica`."""
        return replica * self.num_partitions + partition

    def replica(self, rank: int) -> int:
        """The replica that `rank` belongs to."""
        return rank // self.num_partitions

    def partition(self, rank: int) -> int:
        """The partition that `rank` owns."""
        return rank % self.num_partitions

    def is_reader(self, rank: int) -> bool:
        """Whether `rank` reads inputs: it has the first stage of its replica."""
        return self.partition(rank) == 0

    def is_last(self, rank: int) -> bool:
        """Whether `rank` computes the loss: it has the last stage of its replica."""
        return self.partition(rank) == self.placement.last_partition

    def last_rank(self, replica: int) -> int:
        """The rank of `replica` that computes the loss."""
        return self.rank(replica, self.placement.last_partition)

    def replica_ranks(self, replica: int) -> list[int]:
        """The ranks of one replica, first partition first."""
        return [self.rank(replica, partition) for partition in range(self.num_partitions)]

    def describe(self, rank: int) -> str:
        """`rank` in words, for messages."""
        return f"rank {rank} (replica {self.replica(rank)}, partition {self.partition(rank)})"
