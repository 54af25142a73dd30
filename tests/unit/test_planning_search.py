"""Cuts by dynamic programming are the best of all cuts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hyparflow.pipeline.placement import wrapped
from hyparflow.planning.search.boundaries import StageSeconds, candidates
from hyparflow.planning.search.cuts import Division, Fits, Search, rounds_of

Reads = list[tuple[int, list[int], float]]


def random_model(random: np.random.Generator, count: int) -> tuple[np.ndarray, Reads]:
    """Seconds of each operation, and who reads what."""
    reads = []
    for maker in range(count):
        later = np.arange(maker + 1, count)
        readers = random.choice(later, size=min(len(later), random.integers(0, 3)), replace=False)
        reads.append((maker, sorted(readers.tolist()), float(random.random() / 2)))
    return random.random(count), reads


def stage_seconds(seconds: np.ndarray, reads: Reads, positions: np.ndarray) -> np.ndarray:
    """What the planner computes."""
    edges = [(maker, readers) for maker, readers, _ in reads]
    return StageSeconds(edges, positions).matrix(seconds, np.array([p for _, _, p in reads]))


def best_cuts(costs: list[np.ndarray], rounds: float, tolerance: float) -> list[Division]:
    """What the planner finds: of stages alike but for where they are possible."""
    cost = np.min(costs, axis=0)

    def holds(stage: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.isfinite(costs[stage][start, end])

    def longest(stage: int) -> int:
        start, end = np.nonzero(np.isfinite(costs[stage]))
        return int((end - start).max(initial=0))

    return Search(cost).best(len(costs), rounds, Fits(holds, longest), tolerance)


def by_hand(seconds: np.ndarray, reads: Reads, start: int, end: int) -> float:
    """What a stage takes: its operations, and each tensor that it receives once."""
    received = [
        price
        for maker, readers, price in reads
        if maker < start and any(start <= reader < end for reader in readers)
    ]
    return float(seconds[start:end].sum()) + sum(received)


def brute_force(costs: list[np.ndarray], rounds: float) -> float:
    """The least value over all divisions."""
    last = costs[0].shape[0] - 1
    best = np.inf
    for inner in itertools.combinations(range(1, last), len(costs) - 1):
        bounds = (0, *inner, last)
        stages = [costs[s][bounds[s], bounds[s + 1]] for s in range(len(costs))]
        if np.isfinite(stages).all():
            best = min(best, sum(stages) + rounds * max(stages))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_stage_seconds_are_those_counted_by_hand(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 12))
    seconds, reads = random_model(random, count)
    positions = np.array(sorted({0, count, *random.integers(0, count, 5).tolist()}))
    cost = stage_seconds(seconds, reads, positions)
    for a, start in enumerate(positions):
        for b, end in enumerate(positions):
            expected = by_hand(seconds, reads, start, end) if b > a else np.inf
            assert cost[a, b] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rounds", [0, 1, 7, 31])
@pytest.mark.parametrize("seed", range(60))
def test_best_cuts_are_the_best_of_all(seed: int, rounds: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(4, 10))
    stages = int(random.integers(1, 5))
    cost = stage_seconds(*random_model(random, count), np.arange(count + 1))
    # A stage may be impossible at some places: too much memory, for example.
    costs = [np.where(random.random(cost.shape) < 0.1, np.inf, cost) for _ in range(stages)]
    found = best_cuts(costs, rounds, tolerance=0.0)
    expected = brute_force(costs, rounds)
    if not found:
        assert expected == np.inf
        return
    assert found[0].value(rounds) == pytest.approx(expected, rel=1e-12)
    bounds = found[0].boundaries
    stage_costs = [costs[s][bounds[s], bounds[s + 1]] for s in range(stages)]
    assert found[0].total == pytest.approx(sum(stage_costs))
    assert found[0].slowest == pytest.approx(max(stage_costs))


def test_tolerance_bounds_what_is_lost() -> None:
    random = np.random.default_rng(0)
    cost = stage_seconds(*random_model(random, 60), np.arange(61))
    exact = best_cuts([cost] * 6, 15, tolerance=0.0)[0].value(15)
    rough = best_cuts([cost] * 6, 15, tolerance=0.01)[0].value(15)
    assert exact <= rough <= exact * 1.01


def test_interleaved_rounds_give_the_textbook_step() -> None:
    """(M V + P - 1) stages' time for equal stages."""
    for partitions, microbatches, stages in itertools.product((2, 4), (4, 8), (1, 2, 3)):
        rounds = rounds_of(wrapped(partitions, stages), microbatches)
        assert partitions * stages + rounds == microbatches * stages + partitions - 1


def test_candidates_are_all_allowed_places_of_a_small_model() -> None:
    allowed = [True, True, False, True, True]
    found = candidates(np.ones(4), np.array([0, 1, 1, 1, 0]), allowed, 10)
    assert found.tolist() == [0, 1, 3, 4]


def test_candidates_of_a_large_model_are_where_little_crosses() -> None:
    count = 1000
    crossing = np.where(np.arange(count + 1) % 10 == 5, 1.0, 9.0)
    found = candidates(np.ones(count), crossing, [True] * (count + 1), 100)
    assert len(found) <= 102
    assert (found[1:-1] % 10 == 5).all()
