"""Who is who: rank <-> (replica, partition, shard). Pure integers, no MPI."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.pipeline.placement import Placement, wrapped

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """The ranks as a table of ``num_replicas`` rows and ``num_partitions`` columns.

    The partitions of one replica are neighbouring ranks, because they talk at every
    micro-batch, while replicas talk once per step (HyPar-Flow, section 5: the ranks of
    one model replica share a node). Where ranks share each sequence, the shards of a partition are
    neighbours, for they talk in each attention layer.

    The peers of a rank are the ranks with its partition, of all replicas and shards: they hold the
    same weights, whose gradients they add up.

    Args:
        num_partitions: columns.
        num_replicas: rows.
        placement: which partition holds which stage of the model; by default each holds one.
        num_shards: ranks in each place of the table, which share each sequence.
    """

    num_partitions: int
    num_replicas: int
    placement: Placement = Placement(())
    num_shards: int = 1

    def __post_init__(self) -> None:
        for name in ("num_partitions", "num_replicas", "num_shards"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        if not self.placement.partitions:
            object.__setattr__(self, "placement", wrapped(self.num_partitions))

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.num_partitions * self.num_replicas * self.num_shards

    @property
    def num_peers(self) -> int:
        """How many ranks hold the same weights."""
        return self.num_replicas * self.num_shards

    def rank(self, replica: int, partition: int, shard: int = 0) -> int:
        """The rank that has `partition` of `replica`, and `shard` of its sequences."""
        return (replica * self.num_partitions + partition) * self.num_shards + shard

    def replica(self, rank: int) -> int:
        """The replica that `rank` belongs to."""
        return rank // (self.num_partitions * self.num_shards)

    def partition(self, rank: int) -> int:
        """The partition that `rank` owns."""
        return rank // self.num_shards % self.num_partitions

    def shard(self, rank: int) -> int:
        """The shard of sequences that `rank` computes."""
        return rank % self.num_shards

    def peer(self, rank: int) -> int:
        """The number of `rank` among the ranks that hold the same weights."""
        return self.replica(rank) * self.num_shards + self.shard(rank)

    def peer_rank(self, peer: int, partition: int) -> int:
        """The rank that has `partition` and the number `peer` among those who do."""
        replica, shard = divmod(peer, self.num_shards)
        return self.rank(replica, partition, shard)

    def is_reader(self, rank: int) -> bool:
        """Whether `rank` reads inputs: it has the first stage of its replica."""
        return self.partition(rank) == 0

    def is_last(self, rank: int) -> bool:
        """Whether `rank` computes the loss: it has the last stage of its replica."""
        return self.partition(rank) == self.placement.last_partition

    def last_rank(self, replica: int, shard: int = 0) -> int:
        """The rank of `replica`, and of this shard of its sequences, that computes the loss."""
        return self.rank(replica, self.placement.last_partition, shard)

    def replica_ranks(self, replica: int) -> list[int]:
        """The ranks of one replica, first partition first; those with the first shard."""
        return [self.rank(replica, partition) for partition in range(self.num_partitions)]

    @property
    def numbers(self) -> str:
        """Replicas, shards of sequences if there are several, and partitions, as "2 x 4"."""
        shards = [self.num_shards] if self.num_shards > 1 else []
        return " x ".join(map(str, (self.num_replicas, *shards, self.num_partitions)))

    @property
    def in_words(self) -> str:
        """The numbers, and what they count."""
        shards = " x sequence shards" if self.num_shards > 1 else ""
        return f"{self.numbers} (replicas{shards} x partitions)"

    def describe(self, rank: int) -> str:
        """`rank` in words, for messages."""
        shard = f", sequence shard {self.shard(rank)}" if self.num_shards > 1 else ""
        return (
            f"rank {rank} (replica {self.replica(rank)}, partition {self.partition(rank)}{shard})"
        )
