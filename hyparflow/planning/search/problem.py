"""The problem of a plan, one candidate for its solution, and the constraints of the user."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from hyparflow.formats.text import shortened
from hyparflow.options import Options, is_given, planned_names
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.partition import Partitioning
from hyparflow.pipeline.schedules import in_words, placement_of
from hyparflow.planning.costs.cluster import Cluster
from hyparflow.planning.costs.costs import Costs

__all__ = ["Candidate", "Constraints", "Problem", "constrained", "limited"]


@dataclass(frozen=True)
class Problem:
    """The model, the batch and the machine to plan for.

    Attributes:
        graph: the model's operations.
        costs: the costs of the operations.
        cluster: the machine.
        batch_size: rows of the global batch.
        apart: whether no rank holds the whole model before or after the steps.
    """

    graph: OperationGraph
    costs: Costs
    cluster: Cluster
    batch_size: int
    apart: bool = False


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
        """The schedule in words; an empty string if there is no pipeline."""
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


# With more, the search would take hours; no machine has as many.
_MOST = {
    "num_ranks": 2**17,
    "num_partitions": 2**17,
    "num_replicas": 2**17,
    "num_microbatches": 2**16,
    "stages_per_partition": 2**16,
}


@dataclass(frozen=True)
class Constraints:
    """The constraints of the user.

    Attributes:
        num_ranks: ranks to use, all of them.
        options: the arguments that are decided; the planner chooses those with a default value.
        memory_limit: bytes that training may add to a rank.
    """

    num_ranks: int
    options: Options
    memory_limit: int | None = None

    @property
    def decided(self) -> dict[str, Any]:
        """The arguments that are not left to the planner."""
        values = {name: getattr(self.options, name) for name in planned_names()}
        return {name: value for name, value in values.items() if is_given(name, value)}


def constrained(num_ranks: int, memory_limit: int | None = None, **decided: Any) -> Constraints:
    """The constraints of the user, checked.

    Args:
        num_ranks, memory_limit: as for `Constraints`.
        decided: parallel arguments; None leaves one to the planner.

    Raises:
        ValueError: if one is not valid, or they do not fit `num_ranks`.
    """
    num_ranks = limited("num_ranks", num_ranks, _MOST["num_ranks"])
    given = {name: value for name, value in decided.items() if value is not None}
    for name in _MOST.keys() & given.keys():
        if is_given(name, given[name]):
            given[name] = limited(name, given[name], _MOST[name])
    options = Options(**given)
    placement_of(options.schedule, 1, options.stages_per_partition)
    parts, replicas = options.num_partitions or 1, options.num_replicas or 1
    exact = options.num_partitions is not None and options.num_replicas is not None
    if parts * replicas != num_ranks if exact else num_ranks % (parts * replicas):
        raise ValueError(
            "The number of ranks must be num_partitions x num_replicas. Received: "
            f"num_partitions={options.num_partitions}, num_replicas={options.num_replicas} for "
            f"num_ranks={num_ranks}"
        )
    return Constraints(num_ranks, options, memory_limit)


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
