"""The quick player says what the simulator says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies
from random_edges import random_edges

from hyparflow.pipeline.actions import Action, Edge, Kind, Step
from hyparflow.pipeline.lowering import fused, lower
from hyparflow.pipeline.makespan import makespan
from hyparflow.pipeline.schedules import SCHEDULES, TABLE, make_schedule, placement_of
from hyparflow.pipeline.simulator import play


def chain_and_more(rng: random.Random, stages: int) -> list[Edge]:
    """Each stage feeds the next, and some of the later ones."""
    chain = [Edge(stage, stage, stage + 1, True) for stage in range(stages - 1)]
    return chain + random_edges(rng, stages, first=stages)


@settings(deadline=None)  # other processes may share the cores
@given(
    name=strategies.sampled_from(SCHEDULES),
    partitions=strategies.integers(1, 5),
    several=strategies.integers(1, 3),
    microbatches=strategies.integers(1, 12),
    seed=strategies.integers(0, 2**16),
)
def test_a_step_ends_when_the_simulator_says(
    name: str, partitions: int, several: int, microbatches: int, seed: int
) -> None:
    rng = random.Random(seed)
    placement = placement_of(name, partitions, several if TABLE[name].free else None)
    edges = chain_and_more(rng, placement.num_stages)
    known: dict[object, float] = {}

    def cost(step: Step) -> float:
        if step.kind == Kind.START_REDUCE:
            return 0.0
        key = step._replace(microbatch=min(step.microbatch, 1))
        return known.setdefault(key, rng.uniform(0.1, 3.0))

    schedule = make_schedule(name, placement, microbatches)
    expected = play(lower(schedule, edges), cost).makespan
    assert makespan(fused(schedule), edges, cost) == expected


def test_a_schedule_that_deadlocks_is_reported() -> None:
    """The forward of the second stage needs that of the first, which comes after its backward."""
    forward, backward = Action(0, Kind.FORWARD, 0), Action(0, Kind.BACKWARD, 0)
    other = [Action(1, Kind.FUSED, 0)]
    with pytest.raises(RuntimeError, match="The schedule deadlocks"):
        makespan([[backward, forward], other], [Edge(0, 0, 1, True)], lambda step: 1.0)
