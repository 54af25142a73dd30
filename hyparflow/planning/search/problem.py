"""The problem of a plan, one candidate for its solution, and the constraints of the user."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np

from hyparflow.formats.text import shortened
from hyparflow.options import Options, is_given, planned_names
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.partition import Partitioning
from hyparflow.pipeline.schedules import in_words, placement_of
from hyparflow.pipeline.units import Units
from hyparflow.planning.costs.cluster import Cluster
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.search.activations import Activations
from hyparflow.planning.search.sequence_layout import SequenceLayout, costs_divided
from hyparflow.planning.search.shared_experts import held_costs, without_experts

__all__ = ["Candidate", "Constraints", "Problem", "Saving", "constrained", "limited"]


@dataclass(frozen=True)
class Saving:
    """What a layout does to need less memory.

    Attributes:
        recompute: what computes forwards again: "block", "segments" or None.
        shard_optimizer: whether replicas share out the optimizer's state.
        apart: whether no rank holds the whole model before or after the steps.
        sequences: how sequences are divided; None if they are not.
        expert_parallel: whether replicas share out experts.
    """

    recompute: str | None = None
    shard_optimizer: bool = False
    apart: bool = False
    sequences: SequenceLayout | None = None
    expert_parallel: bool = False

    @property
    def num_shards(self) -> int:
        """The number of ranks that share each sequence."""
        return 1 if self.sequences is None else self.sequences.num_shards

    def in_words(self, num_peers: int) -> str:
        """What is passed to `fit` for it; an empty string if nothing is."""
        given = [] if self.recompute is None else [f"recompute={self.recompute!r}"]
        given += ["shard_optimizer=True"] if self.shard_optimizer and num_peers > 1 else []
        given += ["expert_parallel=True"] if self.expert_parallel and num_peers > 1 else []
        given += ["gather=False"] if self.apart else []
        given += [] if self.sequences is None else [self.sequences.in_words]
        return ", ".join(given)


@dataclass(frozen=True)
class Problem:
    """The model, the batch and the machine to plan for.

    Attributes:
        graph: the model's operations.
        costs: the costs of the operations, each run once.
        cluster: the machine.
        batch_size: rows of the global batch.
        saving: what layouts do to need less memory.
        units: the units of the whole model that are compiled once for all of a kind; None if
            stages are compiled whole.
        balanced: names of layers whose loss, which balances experts, is of a whole batch.
    """

    graph: OperationGraph
    costs: Costs
    cluster: Cluster
    batch_size: int
    saving: Saving = field(default_factory=Saving)
    units: Units | None = None
    balanced: tuple[str, ...] = ()

    def compiled_units(self, grid: Grid) -> Units | None:
        """The units that ranks compile; None if these compile stages whole.

        Where replicas exchange something in the middle of a stage, none is compiled for others.
        """
        exchanges = self.saving.expert_parallel or bool(self.balanced)
        if self.units is None or grid.num_peers == 1 or not exchanges:
            return self.units
        if self.saving.recompute is None:
            return None
        return dataclasses.replace(self.units, kinds=tuple(range(len(self.units.kinds))))

    def sharers(self, grid: Grid) -> int:
        """How many replicas share out the experts; 1 if each has all."""
        return grid.num_replicas if self.saving.expert_parallel else 1

    def held(self, grid: Grid) -> Costs:
        """The costs with the weights that a rank holds while it trains."""
        return self.held_by_one_of(self.sharers(grid))

    @cached_property
    def held_by_one_of(self) -> Callable[[int], Costs]:
        """(replicas that share out the experts) -> the costs with the weights that one holds."""
        return functools.cache(lambda n: self.spent if n == 1 else held_costs(self.spent, n))

    @cached_property
    def without_experts(self) -> Costs:
        """The costs with those trained weights whose gradients replicas that share them out sum."""
        return without_experts(self.spent)

    @cached_property
    def activations(self) -> Activations:
        """The activations of stages."""
        how, costs = self.saving.recompute, self.costs
        if self.saving.sequences is not None:
            how, costs = None, self.spent
        again = self.units.table.boundaries if how and self.units else None
        return Activations(self.graph, costs, again, how == "segments")

    @cached_property
    def spent(self) -> Costs:
        """The costs, with what is computed again; memory as if the model were one stage."""
        if self.saving.sequences is not None:
            link = self.cluster.within
            keeps = self.saving.recompute is None
            return costs_divided(self.costs, self.graph, self.saving.sequences, link, keeps)
        if self.saving.recompute is None or self.units is None:
            return self.costs
        costs = self.costs
        kept, working = self.activations.of_operations()
        again = costs.forward.copy()
        if self.saving.recompute == "block":  # the backward of the last unit follows at once
            again[self.units.table.boundaries[-2] :] = 0.0
        once, twice = float(costs.backward.sum()), float((costs.backward + again).sum())
        of_inputs, of_weights = costs.halves
        share = once / twice if twice else 1.0
        return dataclasses.replace(
            costs,
            backward=costs.backward + again,
            fused=costs.fused + again,
            kept=kept,
            working=working,
            halves=(1.0 - share + share * of_inputs, share * of_weights),
        )

    @cached_property
    def compiled_shares(self) -> np.ndarray:
        """For each operation, how much of it is compiled: its part of all units that are alike."""
        if self.units is None:
            return np.ones(len(self.graph.operations))
        kinds = np.array(self.units.kinds)
        _, place, count = np.unique(kinds, return_inverse=True, return_counts=True)
        lengths = np.diff(self.units.table.boundaries)
        return np.repeat(1.0 / count[place], lengths)


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
    "num_sequence_shards": 2**17,
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
    names = ("num_partitions", "num_replicas", "num_sequence_shards")
    counts = [getattr(options, name) for name in names]
    product = math.prod(count or 1 for count in counts)
    exact = None not in (counts if options.divides_sequences else counts[:2])
    if product != num_ranks if exact else num_ranks % product:
        pairs = zip(names, counts, strict=True)
        received = ", ".join(f"{name}={count}" for name, count in pairs if count is not None)
        raise ValueError(
            "The number of ranks must be num_partitions x num_replicas x num_sequence_shards. "
            f"Received: {received} for num_ranks={num_ranks}"
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
