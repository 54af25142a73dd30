"""Cuts that are moved for a schedule: against the simulator, and against all other cuts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies

from hyparflow.pipeline.actions import Edge, Kind, Step
from hyparflow.pipeline.balance import balance
from hyparflow.pipeline.lowering import lower
from hyparflow.pipeline.placement import Placement, wrapped
from hyparflow.pipeline.refine import refine, step_lengths
from hyparflow.pipeline.schedules import SCHEDULES, TABLE, make_schedule, placement_of
from hyparflow.pipeline.simulator import play

FUSED = 0.9  # of the last stage's cost
PACE = "interleaved", wrapped(2, 2), 2


def played(
    name: str,
    placement: Placement,
    microbatches: int,
    sizes: Sequence[float],
    fused: float = FUSED,
) -> float:
    """What the simulator says of stages of these sizes, each of which feeds the next.

    The last takes the part `fused` of its size.
    """
    sizes = [*sizes[:-1], fused * sizes[-1]]
    schedule = make_schedule(name, placement, microbatches)
    edges = [Edge(stage, stage, stage + 1, True) for stage in range(len(sizes) - 1)]
    shares = {Kind.FORWARD: 1, Kind.BACKWARD: 2, Kind.FUSED: 3}
    shares |= {Kind.INPUT_BACKWARD: 1, Kind.WEIGHT_BACKWARD: 1}

    def cost(step: Step) -> float:
        return shares.get(step.kind, 0) * sizes[step.stage] / 3

    return play(lower(schedule, edges), cost).makespan


def sizes_of(costs: Sequence[float], boundaries: Sequence[int]) -> list[float]:
    return [sum(costs[a:b]) for a, b in itertools.pairwise(boundaries)]


@given(
    name=strategies.sampled_from(SCHEDULES),
    partitions=strategies.integers(1, 5),
    several=strategies.integers(1, 4),
    microbatches=strategies.integers(1, 12),
    random=strategies.randoms(use_true_random=False),
)
def test_a_step_is_as_long_as_the_simulator_says(
    name: str, partitions: int, several: int, microbatches: int, random: random.Random
) -> None:
    """Whatever the division: sizes of stages that differ by up to a hundred times."""
    placement = placement_of(name, partitions, several if TABLE[name].free else None)
    divisions = [[random.uniform(0.1, 10) for _ in placement.partitions] for _ in range(3)]
    lengths = step_lengths(make_schedule(name, placement, microbatches), np.array(divisions).T)
    expected = [played(name, placement, microbatches, sizes, 1.0) for sizes in divisions]
    np.testing.assert_allclose(lengths, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "partitions, each, microbatches", [(2, 2, 2), (2, 2, 7), (2, 4, 2), (3, 2, 40), (4, 4, 9)]
)
def test_steps_end_sooner_than_with_equal_stages(
    partitions: int, each: int, microbatches: int
) -> None:
    rng = random.Random(1)
    costs = [rng.choice([1.0, 2.0, 3.0, 8.0]) for _ in range(400)]
    allowed = [rng.random() < 0.8 for _ in range(401)]
    equal = balance(costs, partitions * each, allowed)
    pace = "interleaved", wrapped(partitions, each), microbatches
    moved = refine(equal, costs, [0.0] * 401, allowed, *pace, FUSED)
    assert moved[0] == 0 and moved[-1] == 400 and len(moved) == len(equal)
    assert list(moved) == sorted(set(moved))
    assert all(allowed[cut] for cut in moved[1:-1])
    before = played(*pace, sizes_of(costs, equal))
    after = played(*pace, sizes_of(costs, moved))
    assert after < before


@pytest.mark.parametrize("seed", range(5))
def test_many_microbatches_take_no_longer(seed: int) -> None:
    rng = random.Random(seed)
    costs = [rng.choice([1.0, 2.0, 3.0, 8.0]) for _ in range(100)]
    pace = "interleaved", wrapped(2, 4), 60  # of which only some are played
    equal = balance(costs, 8)
    moved = refine(equal, costs, [0.0] * 101, [True] * 101, *pace, FUSED)
    assert played(*pace, sizes_of(costs, moved)) <= played(*pace, sizes_of(costs, equal))


def test_the_last_stage_becomes_smaller() -> None:
    costs = [1.0] * 160
    pace = "interleaved", wrapped(2, 4), 2
    moved = refine(range(0, 161, 20), costs, [0.0] * 161, [True] * 161, *pace, FUSED)
    *others, last = sizes_of(costs, moved)
    assert last <= 0.8 * min(others)
    assert played(*pace, [*others, last]) < 0.99 * played(*pace, [20] * 8)


def test_nearly_as_good_as_the_best_of_all_cuts() -> None:
    rng = random.Random(2)
    for _ in range(10):
        costs = [rng.choice([1.0, 2.0, 5.0]) for _ in range(12)]
        every = [(0, *cuts, 12) for cuts in itertools.combinations(range(1, 12), 3)]
        best = min(played(*PACE, sizes_of(costs, cuts)) for cuts in every)
        moved = refine(balance(costs, 4), costs, [0.0] * 13, [True] * 13, *PACE, FUSED)
        assert played(*PACE, sizes_of(costs, moved)) < 1.03 * best


def test_cuts_stay_where_no_other_is_allowed() -> None:
    allowed = [True, False, True, False, True, False, True, False, True]
    costs, crossing = [1.0] * 8, [0.0] * 9
    pace = "interleaved", wrapped(2, 2), 4
    assert refine((0, 2, 4, 6, 8), costs, crossing, allowed, *pace) == (0, 2, 4, 6, 8)


def test_cuts_move_to_where_less_crosses() -> None:
    # Blocks of four operations; within one, twice as much crosses as between two.
    costs = [1.0] * 64
    crossing = [2.0 if cut % 4 else 1.0 for cut in range(65)]
    pace = "interleaved", wrapped(2, 2), 8
    moved = refine((0, 14, 30, 46, 64), costs, crossing, [True] * 65, *pace)
    assert all(cut % 4 == 0 for cut in moved)


def test_many_stages_are_moved_in_seconds_or_not_at_all() -> None:
    stages = 512  # 128 partitions of 4 stages: more to play than is allowed
    boundaries = tuple(range(0, 8 * stages + 1, 8))
    count = 8 * stages
    costs, crossing, allowed = [1.0] * count, [0.0] * (count + 1), [True] * (count + 1)
    pace = "interleaved", wrapped(128, 4), 256
    assert refine(boundaries, costs, crossing, allowed, *pace) == boundaries
