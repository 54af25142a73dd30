"""Which partition holds which stage, as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

__all__ = ["Placement", "v_shaped", "wrapped"]


@dataclass(frozen=True)
class Placement:
    """Which partition holds which stage; every partition holds as many.

    Attributes:
        partitions: the partition of each stage, first stage first.
    """

    partitions: tuple[int, ...]

    @property
    def num_partitions(self) -> int:
        """P."""
        return max(self.partitions) + 1

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self.partitions)

    @property
    def depth(self) -> int:
        """V: how many stages each partition holds."""
        return self.num_stages // self.num_partitions

    @property
    def last_partition(self) -> int:
        """The partition of the last stage, which computes the loss."""
        return self.partitions[-1]

    def stages(self, partition: int) -> tuple[int, ...]:
        """The stages that `partition` holds, in order."""
        return self._stages[partition]

    @cached_property
    def _stages(self) -> list[tuple[int, ...]]:
        held: list[list[int]] = [[] for _ in range(self.num_partitions)]
        for stage, holder in enumerate(self.partitions):
            held[holder].append(stage)
        return [tuple(stages) for stages in held]


def wrapped(num_partitions: int, stages_per_partition: int = 1) -> Placement:
    """Every P-th stage on one partition, so that each stage follows on another.

    Source: Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters
    Using Megatron-LM", section 2.2.
    """
    return Placement(tuple(range(num_partitions)) * stages_per_partition)


def v_shaped(num_partitions: int) -> Placement:
    """Two stages per partition, down from the first to the last and up again.

    The first partition holds the first stage and the last, and computes the loss.

    Source: Qi et al. 2024, "Zero Bubble Pipeline Parallelism", section 6.
    """
    return Placement((*range(num_partitions), *reversed(range(num_partitions))))
