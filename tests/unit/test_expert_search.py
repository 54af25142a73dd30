"""The search for a placement: as good as all there are, within the load, and honest about gains."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routers import all_layers, divisors, likely_trace, traces

import hyparflow as hf
from hyparflow.experts.balance import balanced_ranks, largest_load
from hyparflow.experts.problem import PlacementProblem, make_problem, nearness_of, slots_of
from hyparflow.experts.search import FoundPlacement, search_placement
from hyparflow.experts.state import PlacementState
from hyparflow.experts.swaps import LayerTask, improved, repaired

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "experts"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets a test import what the benchmark compares with."""
    monkeypatch.syspath_prepend(str(BENCHMARK))
    yield
    sys.modules.pop("exact", None)


def problem_of(
    trace: hf.RoutingTrace, num_ranks: int, max_load: float = np.inf, **more: Any
) -> PlacementProblem:
    nearness = nearness_of(num_ranks, more.get("nodes", 1), more.get("node_cost", 4.0))
    return make_problem(trace, num_ranks, nearness, more.get("replicate", 0), max_load)


def searched(problem: PlacementProblem, rounds: int = 60, seed: int = 0) -> FoundPlacement:
    balanced = [
        balanced_ranks(visits, np.bincount(slots), problem.limit, 5.0)
        for visits, slots in zip(problem.visits, problem.slots, strict=True)
    ]
    return search_placement(problem, np.stack(balanced), 60.0, seed, most_rounds=rounds)


def best_of_all(problem: PlacementProblem, num_experts: int) -> float:
    """The worth of the best of all placements within the limit."""
    best = -np.inf
    layers = [
        [
            np.array(ranks)
            for ranks in all_layers(num_experts, problem.num_ranks)
            if largest_load(visits, np.array(ranks), problem.num_ranks) <= problem.limit
        ]
        for visits in problem.visits
    ]
    for ranks in itertools.product(*layers):
        best = max(best, worth_of(problem, np.stack(ranks)))
    return best


def worth_of(problem: PlacementProblem, ranks: np.ndarray) -> float:
    """Each way, as near as its ranks are; one between two experts is in two matrices."""
    at = np.concatenate([np.arange(problem.num_ranks), ranks.ravel()])
    total = 0.0
    for layer, pairs in enumerate(problem.pairs):
        for expert, row in enumerate(pairs.toarray()):
            worth = row * problem.nearness[ranks[layer, expert], at]
            total += worth[: problem.num_ranks].sum() + worth[problem.num_ranks :].sum() / 2
    return float(total)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [{}, {"max_load": 1.15}, {"top_k": 2}, {"nodes": 2, "num_ranks": 4}],
    ids=str,
)
def test_the_best_of_all_placements_is_found(seed: int, options: dict[str, Any]) -> None:
    """Four experts, three layers: all placements are tried, those above the limit left out."""
    trace = likely_trace(4, 3, 200, seed, liked=0.4, top_k=options.get("top_k", 1))
    problem = problem_of(
        trace, options.get("num_ranks", 2), options.get("max_load", np.inf),
        nodes=options.get("nodes", 1),
    )  # fmt: skip
    best = best_of_all(problem, 4)
    assert np.isfinite(best)
    found = searched(problem, seed=seed)
    assert found.excess == 0
    assert found.worth == pytest.approx(best)
    assert worth_of(problem, found.ranks) == pytest.approx(found.worth)


@pytest.mark.parametrize(("num_experts", "num_ranks"), [(6, 2), (6, 3)])
def test_highs_proves_that_there_is_no_better(
    num_experts: int, num_ranks: int, benchmark: None
) -> None:
    from exact import exact_placement, most_that_may_stay

    trace = likely_trace(num_experts, 3, 300, seed=7, liked=0.7)
    problem = problem_of(trace, num_ranks, max_load=1.2)
    exact = exact_placement(trace.affinity(), trace.visits(), num_ranks, problem.limit, 60.0)
    assert exact.is_best and exact.ranks is not None
    assert searched(problem).worth == pytest.approx(exact.stays)
    assert worth_of(problem, exact.ranks) == pytest.approx(exact.stays)
    assert exact.stays <= most_that_may_stay(trace.affinity(), num_ranks) + 1e-6


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_trace_is_placed(data: st.DataObject) -> None:
    """Each rank holds equally many experts, and the scores are what the search has counted."""
    trace = data.draw(traces())
    num_ranks = data.draw(st.sampled_from(divisors(trace.num_experts)))
    nodes = data.draw(st.sampled_from(divisors(num_ranks)))
    if trace.num_tokens < 2:
        return
    placement = hf.place_experts(trace, num_ranks, nodes=nodes, max_load=None, seconds=0.02)
    for experts in placement.ranks:
        held = np.bincount([rank for (rank,) in experts], minlength=num_ranks)
        assert set(held) == {trace.num_experts // num_ranks}
    report = placement.report
    assert report is not None
    training, judged = trace.split(0.25, 0)
    assert report.training == placement.score(training)
    assert report.held_out == placement.score(judged)
    problem = problem_of(training, num_ranks, nodes=nodes)
    ranks = np.array([[rank for (rank,) in experts] for experts in placement.ranks])
    ways = (trace.num_layers - 1) * trace.top_k * training.num_tokens
    cost = report.training.rank_changes
    if nodes > 1:  # a change of rank within a node costs a quarter of one of node
        cost = 0.25 * cost + 0.75 * report.training.node_changes
    assert worth_of(problem, ranks) == pytest.approx(ways * (1 - cost), abs=1e-6)


def test_the_gain_is_that_of_held_out_tokens() -> None:
    trace = likely_trace(16, 6, 4000)
    report = hf.place_experts(trace, 4, seconds=0.5).report
    assert report is not None
    assert 0.7 < report.contiguous.rank_changes < 0.8
    assert 0.7 < report.random.rank_changes < 0.8
    assert report.held_out.rank_changes < 0.35
    assert (report.tokens, report.held_out_tokens) == (3000, 1000)


def test_a_shuffled_trace_has_no_gain() -> None:
    """What was learnt from still claims one; tokens that were held out do not."""
    trace = likely_trace(32, 6, 3000).shuffled()
    report = hf.place_experts(trace, 4, seconds=0.5).report
    assert report is not None
    assert report.training.rank_changes < 0.71
    assert abs(report.held_out.rank_changes - 0.75) < 0.02
    assert abs(report.contiguous.rank_changes - 0.75) < 0.02


def uneven_trace(tokens: int = 2000, seed: int = 0) -> hf.RoutingTrace:
    """Experts of which some are chosen several times as often as others."""
    random = np.random.default_rng(seed)
    weights = random.dirichlet(np.full(16, 3.0), 5)
    columns = [random.choice(16, tokens, p=row) for row in weights]
    return hf.RoutingTrace(np.stack(columns, axis=1), 16)


@pytest.mark.parametrize("max_load", [1.05, 1.1, 1.3])
@pytest.mark.parametrize("replicate", [0, 3, 4])
def test_no_rank_gets_more_than_the_limit(max_load: float, replicate: int) -> None:
    trace = uneven_trace()
    placement = hf.place_experts(trace, 4, max_load=max_load, replicate=replicate, seconds=0.3)
    report = placement.report
    assert report is not None
    assert report.training.largest_load <= max_load
    free = hf.place_experts(trace, 4, max_load=None, seconds=0.3).report
    assert free is not None and free.training.largest_load > 1.3


def test_experts_on_all_ranks_are_those_that_most_tokens_choose() -> None:
    trace = uneven_trace()
    placement = hf.place_experts(trace, 4, max_load=1.3, replicate=3, seconds=0.2)
    training, _ = trace.split()
    for layer, experts in enumerate(placement.ranks):
        everywhere = [n for n, holders in enumerate(experts) if holders == (0, 1, 2, 3)]
        assert everywhere == sorted(np.argsort(-training.visits()[layer], kind="stable")[:3])
        held = np.bincount([h[0] for h in experts if len(h) == 1], minlength=4)
        assert sorted(held) == [3, 3, 3, 4]
    fewer = hf.place_experts(trace, 4, max_load=1.3, seconds=0.2)
    assert placement.report is not None and fewer.report is not None
    assert placement.report.held_out.rank_changes < fewer.report.held_out.rank_changes


def test_a_limit_that_nothing_keeps_to_is_refused() -> None:
    """Half of all tokens choose one expert: its rank gets at least twice the mean."""
    random = np.random.default_rng(0)
    chosen = random.integers(0, 8, (800, 2))
    chosen[random.random(800) < 0.5, 1] = 0
    trace = hf.RoutingTrace(chosen, 8)
    with pytest.raises(
        ValueError, match="`max_load` must leave room.* in layer '1'. Use max_load="
    ) as e:
        hf.place_experts(trace, 4, seconds=0.1)
    enough = float(str(e.value).split("Use max_load=")[1].split(",")[0])
    assert 2 < enough < 3
    hf.place_experts(trace, 4, max_load=enough, seconds=0.1)
    assert hf.place_experts(trace, 4, max_load=1.3, replicate=1, seconds=0.1).report
    with pytest.raises(
        ValueError, match="`max_load` must leave room.* times the mean. Use max_load"
    ):
        hf.place_experts(trace, 4, max_load=1.0, replicate=1, seconds=0.1)


def test_nodes_come_first() -> None:
    """Tokens keep to one half of the experts, any of them: that is a node's, if nodes cost."""
    random = np.random.default_rng(0)
    community = (random.integers(0, 2, 3000)[:, np.newaxis] + (random.random((3000, 5)) < 0.1)) % 2
    trace = hf.RoutingTrace(community + 2 * random.integers(0, 8, (3000, 5)), 16)
    near = hf.place_experts(trace, 8, nodes=2, node_cost=50.0, seconds=0.5, seed=1).report
    flat = hf.place_experts(trace, 8, nodes=2, node_cost=1.0, seconds=0.5, seed=1).report
    assert near is not None and flat is not None
    assert near.held_out.node_changes < 0.25 < 0.35 < flat.held_out.node_changes
    assert near.held_out.rank_changes > 0.7


def test_one_layer_and_one_rank() -> None:
    for trace, num_ranks in ((likely_trace(4, 1, 100), 2), (likely_trace(4, 3, 100), 1)):
        placement = hf.place_experts(trace, num_ranks, max_load=None)
        assert placement.report is not None
        assert placement.report.held_out.rank_changes == 0
        assert placement.report.rounds == 1
        assert "stay on their rank" in str(placement)


def test_a_seed_gives_the_same_placement_again() -> None:
    problem = problem_of(likely_trace(16, 5, 1000, liked=0.3), 4, max_load=1.1)
    first, again, other = (searched(problem, rounds=20, seed=seed) for seed in (1, 1, 2))
    assert (first.ranks == again.ranks).all()
    assert (first.ranks != other.ranks).any()


def test_more_rounds_are_no_worse() -> None:
    mixed = np.concatenate([likely_trace(24, 6, 900, seed).experts for seed in range(3)])
    problem = problem_of(hf.RoutingTrace(mixed, 24), 4, max_load=1.1)
    found = [searched(problem, rounds=rounds).worth for rounds in (1, 8, 60)]
    assert found == sorted(found) and found[0] < found[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ranks": 3}, "divisible by the ranks. Received: .* on num_ranks=3. Use num_ranks=2."),
        ({"num_ranks": 16}, "Received: num_experts=8 on num_ranks=16. Use num_ranks=8."),
        ({"num_ranks": 0}, "`num_ranks` must be a positive integer"),
        ({"nodes": 3}, "the same on every node. Received: 4 ranks on 3 nodes"),
        ({"nodes": 1.5}, "`nodes` must be a positive integer"),
        ({"max_load": 0.9}, "`max_load` must be a number of 1 or more"),
        ({"max_load": "1"}, "`max_load` must be a number of 1 or more"),
        ({"replicate": -1}, "`replicate` must be an integer of 0 or more"),
        ({"replicate": 8}, "`replicate` must be less than the number of experts"),
        ({"node_cost": 0.5}, "`node_cost` must be a number of 1 or more"),
        ({"held_out": 1.0}, "`held_out` must be a number above 0 and below 1"),
        ({"seconds": 0}, "`seconds` must be a number above 0"),
        ({"seconds": float("nan")}, "`seconds` must be a number above 0"),
        ({"seed": -1}, "`seed` must be an integer of 0 or more"),
        ({"trace": [[0, 1]]}, "by a hyparflow.RoutingTrace, the path of a file of one, or a model"),
        ({"trace": "missing.npz"}, "A routing trace must be a file"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments(options: dict[str, Any], message: str) -> None:
    arguments = {"trace": likely_trace(8, 2, 20), "num_ranks": 4} | options
    with pytest.raises(ValueError, match=message):
        hf.place_experts(**arguments)


def test_a_path_is_a_trace(tmp_path: Path) -> None:
    trace = likely_trace(8, 2, 400)
    trace.save(tmp_path / "trace.npz")
    found = hf.place_experts(tmp_path / "trace.npz", 2, seconds=0.05, max_load=None)
    assert found.model == "made-up" and found.layers == trace.layers


def test_what_fits_unevenly_is_dealt_in_turns() -> None:
    slots = slots_of(4, 6, 4)
    held = [np.bincount(row, minlength=4).tolist() for row in slots]
    assert held == [[2, 2, 1, 1], [1, 1, 2, 2], [2, 2, 1, 1], [1, 1, 2, 2]]
    assert (slots_of(2, 8, 4) == [0, 0, 1, 1, 2, 2, 3, 3]).all()


def a_task(seed: int, limit: float) -> tuple[LayerTask, np.ndarray]:
    random = np.random.default_rng(seed)
    task = LayerTask(random.random((8, 2)), random.integers(0, 30, (2, 8)), np.zeros((2, 2)), limit)
    return task, random.permutation(np.repeat([0, 1], 4))


@given(st.integers(0, 1000), st.floats(0.4, 1.0))
def test_exchanges_are_what_they_say(seed: int, share: float) -> None:
    task, ranks = a_task(seed, 0.0)
    task = LayerTask(
        task.gain, task.visits, np.array([[3.0, 9], [5, 0]]), share * task.visits[0].sum()
    )
    worth, excess = task.exchanges(ranks)
    for one, other in itertools.combinations(range(8), 2):
        changed = ranks.copy()
        changed[one], changed[other] = ranks[other], ranks[one]
        assert worth[one, other] == pytest.approx(task.worth(changed) - task.worth(ranks))
        assert excess[one, other] == pytest.approx(task.excess(changed) - task.excess(ranks))


@given(st.integers(0, 1000))
def test_exchanges_better_and_mend(seed: int) -> None:
    task, ranks = a_task(seed, 1e9)
    better = improved(task, ranks)
    assert task.worth(better) >= task.worth(ranks)
    assert sorted(better) == sorted(ranks)
    task = LayerTask(task.gain, task.visits, task.base, 0.55 * task.visits[0].sum())
    mended = repaired(task, better)
    assert task.excess(mended) <= task.excess(better)
    assert task.excess(improved(task, mended)) <= task.excess(mended) + 1e-9


@given(st.lists(st.integers(0, 50), min_size=6, max_size=6), st.sampled_from([2, 3]))
def test_loads_are_as_even_as_can_be(visits: list[int], num_ranks: int) -> None:
    """No limit can be kept to, so the most even of all is asked for."""
    counts = np.array(visits)
    found = balanced_ranks(counts, np.full(num_ranks, 6 // num_ranks), -1.0, 10.0)
    best = min(largest_load(counts, np.array(r), num_ranks) for r in all_layers(6, num_ranks))
    assert largest_load(counts, found, num_ranks) == best
    assert (np.bincount(found, minlength=num_ranks) == 6 // num_ranks).all()


def test_where_exchanges_fail_the_integer_program_helps() -> None:
    """Eight experts on two ranks, of which exchanges of two make 64 and 62 tokens at best."""
    visits = np.array([1, 16, 32, 22, 22, 7, 16, 9])
    room = np.array([4, 4])
    assert largest_load(visits, balanced_ranks(visits, room, 64.0, 10.0), 2) == 64
    assert largest_load(visits, balanced_ranks(visits, room, 63.0, 10.0), 2) == 63


@pytest.mark.parametrize("replicate", [0, 3])
def test_no_exchange_betters_what_was_found(replicate: int) -> None:
    """Nor takes any rank above the limit that was kept to."""
    problem = problem_of(uneven_trace(), 4, max_load=1.05, replicate=replicate)
    found, state = searched(problem, rounds=4), PlacementState(problem)
    assert found.excess == 0
    state.restore(found.ranks, found.worth)
    without_limit = 0.0
    for layer, ranks in enumerate(found.ranks):
        worth, excess = state.task(layer).exchanges(ranks)
        assert worth[excess <= 0].max() < 1e-6
        without_limit = max(without_limit, worth.max())
    assert without_limit > 1


def test_the_state_counts_what_it_is_worth() -> None:
    problem = problem_of(likely_trace(6, 4, 300, liked=0.5, top_k=2), 3, 1.0, replicate=3)
    state, random = PlacementState(problem), np.random.default_rng(0)
    for layer in [0, 1, 2, 3, 1, 3, 0]:
        state.put(state.task(layer), layer, random.permutation(problem.slots[layer]))
    assert state.worth == pytest.approx(worth_of(problem, state.ranks))
    loads = problem.loads @ np.concatenate([np.eye(3), np.eye(3)[state.ranks.ravel()]])
    assert (loads.sum(axis=1) == 600).all()
    assert state.excess() == pytest.approx(np.maximum(loads - problem.limit, 0).sum())
    for layer in range(4):
        task, ranks = state.task(layer), state.ranks[layer]
        assert any((row == loads[layer]).all() for row in task.loads(ranks))
        assert task.excess(ranks) <= state.excess()
