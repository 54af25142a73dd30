"""A search that plays no more than it must finds what a search finds that plays everything."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from plans_on_paper import FREE, INSTANT, MEGABYTE, chain, costs

from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.operations import Operation, OperationGraph
from hyparflow.pipeline.partition import make_partitioning
from hyparflow.pipeline.schedules import SCHEDULES, placement_of
from hyparflow.planning.costs.cluster import Cluster, Link
from hyparflow.planning.make_plan import make_plan
from hyparflow.planning.plan import Plan
from hyparflow.planning.search import predict
from hyparflow.planning.search.layouts import best_of
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Candidate, Constraints, Problem, constrained
from hyparflow.planning.search.saving import search

OVERHEADS = dataclasses.replace(
    FREE, call=0.01, step=0.02, message=0.005, accumulate_weight=0.003, apply_weight=0.004
)
NETWORK = Link(0.002, 50 * MEGABYTE)


def random_graph(random: np.random.Generator, count: int) -> OperationGraph:
    """A chain with shortcuts; some tensors carry no gradient, some operations read no other."""
    operations = [Operation("op0", (0,), (1,))]
    for number in range(1, count):
        before = random.choice(number + 1, size=min(2, number), replace=False).tolist()
        read = before if random.random() < 0.2 else [number, *before[: random.integers(0, 2)]]
        operations.append(Operation(f"op{number}", tuple(sorted(set(read))), (number + 1,)))
    with_gradient = frozenset(n for n in range(1, count + 1) if random.random() < 0.9)
    return OperationGraph(tuple(operations), (0,), (count,), with_gradient)


def random_problem(seed: int, count: int, ranks: int) -> Problem:
    random = np.random.default_rng(seed)
    seconds = (random.random(count) + 0.05).tolist()
    table = costs(seconds, OVERHEADS, kept=random.random(count) * 3 * MEGABYTE)
    table = dataclasses.replace(table, fused=2.6 * table.forward)
    cluster = Cluster(2, ranks // 2, NETWORK, NETWORK, sum_bandwidth=INSTANT)
    return Problem(random_graph(random, count), table, cluster, 32)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_step_is_faster_than_its_lower_bound(schedule: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    problem = random_problem(seed, 12, 8)
    placement = placement_of(schedule, int(random.integers(1, 5)))
    inner = random.choice(np.arange(1, 12), placement.num_stages - 1, replace=False)
    table = make_partitioning(problem.graph, (0, *sorted(inner.tolist()), 12))
    grid = Grid(placement.num_partitions, 2, placement)
    for count in (1, 2, 5, 16):
        found = Prediction(problem, Candidate(grid, count, schedule, table))
        assert 0 < found.least_seconds <= found.step_seconds
        assert found.step_seconds == pytest.approx(found.timeline.makespan + OVERHEADS.step)


def test_the_lower_bound_of_equal_stages_is_what_a_step_takes() -> None:
    """The last partition waits for the first micro-batch, and the first for the last one."""
    graph, table = chain(4), costs([1.0] * 4)
    problem = Problem(graph, table, Cluster(1, 4, Link(0.0, INSTANT), sum_bandwidth=INSTANT), 16)
    stages = make_partitioning(graph, (0, 1, 2, 3, 4))
    found = Prediction(problem, Candidate(Grid(4, 1), 16, "1f1b", stages))
    assert found.least_seconds == pytest.approx(found.step_seconds)
    assert found.step_seconds == pytest.approx(3.0 * (16 + 3))


def planned(problem: Problem, constraints: Constraints) -> Plan | str:
    """The plan with its alternatives; or why there is none."""

    def with_saving(saving: Any) -> Problem:
        return dataclasses.replace(problem, saving=saving)

    found = search(with_saving, constraints)
    whole = make_partitioning(problem.graph, (0, len(problem.graph.operations)))
    single = Prediction(problem, Candidate(Grid(1, 1), 1, "1f1b", whole))
    try:
        best = best_of(found, constraints.memory_limit)
    except ValueError as error:
        return str(error)
    return make_plan("m", "f", problem, best, single, found, constraints.memory_limit)


@pytest.mark.parametrize(
    "limit, recompute", [(None, None), (None, "auto"), (0.8, None), (0.3, None)]
)
@pytest.mark.parametrize("seed", range(6))
def test_the_same_plan_is_found_as_by_playing_everything(
    seed: int, limit: float | None, recompute: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(seed, 16, 4)
    free = planned(problem, constrained(4))
    assert isinstance(free, Plan)
    most = max(partition.memory.total for partition in free.partitions)
    room = None if limit is None else int(limit * most)
    wishes = constrained(4, room, recompute=recompute)
    found = planned(problem, wishes)
    monkeypatch.setattr(predict, "least_seconds", lambda *_: -np.inf)
    assert planned(problem, wishes) == found
