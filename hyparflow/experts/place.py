"""A placement of experts from a routing trace."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from typing import Any

import numpy as np

from hyparflow.experts.balance import balanced_ranks, largest_load
from hyparflow.experts.placement import ExpertPlacement, require_divisible
from hyparflow.experts.problem import PlacementProblem, make_problem, nearness_of
from hyparflow.experts.score import PlacementReport, mean_score
from hyparflow.experts.search import search_placement
from hyparflow.experts.trace import RoutingTrace
from hyparflow.formats.argument_checks import (
    count_of,
    number_above,
    number_from,
    share_of,
    whole_number,
)
from hyparflow.formats.text import path_text, shortened

__all__ = ["place_experts"]

_RANDOM = 5  # placements at random that a placement is compared with
_LEAST_SECONDS = 0.01
_NOTHING = 1e-6  # of the mean load


def place_experts(
    trace: RoutingTrace | str | os.PathLike[str],
    num_ranks: int,
    *,
    nodes: int = 1,
    max_load: float | None = 1.1,
    replicate: int = 0,
    node_cost: float = 4.0,
    held_out: float = 0.25,
    seconds: float = 2.0,
    seed: int = 0,
) -> ExpertPlacement:
    """What `hyparflow.place_experts` finds by a trace, or the path of a file of one.

    The arguments are told there. No MPI is needed, and no TensorFlow.

    Raises:
        ValueError: If an argument is not valid, or no placement keeps to `max_load`.
    """
    begun = time.monotonic()
    given = _trace_of(trace)
    num_ranks, nodes, replicate = _check_counts(given, num_ranks, nodes, replicate)
    limit = math.inf if max_load is None else number_from("max_load", max_load, 1)
    nearness = nearness_of(num_ranks, nodes, number_from("node_cost", node_cost, 1))
    seconds, seed = number_above("seconds", seconds, 0), whole_number("seed", seed)
    training, judged = given.split(share_of("held_out", held_out), seed)
    problem = make_problem(training, num_ranks, nearness, replicate, limit)
    balanced = _balanced(problem, training, seconds)
    if replicate == 0:
        _require_load(problem, training, balanced, limit)
    left = max(_LEAST_SECONDS, seconds - (time.monotonic() - begun))
    found = search_placement(problem, balanced, left, seed)
    names: dict[str, Any] = {"nodes": nodes, "model": given.model, "layers": given.layers}
    placement = _placement(problem, found.ranks, given.num_experts, names)
    return _with_report(placement, training, judged, found.rounds, limit)


def _trace_of(trace: object) -> RoutingTrace:
    if isinstance(trace, RoutingTrace):
        return trace
    if isinstance(trace, str | os.PathLike):
        return RoutingTrace.load(path_text(trace))
    raise ValueError(
        "Experts are placed by a hyparflow.RoutingTrace, the path of a file of one, or a model "
        f"and `tokens`. Received: {shortened(trace)} of type {type(trace).__name__}"
    )


def _check_counts(
    trace: RoutingTrace, num_ranks: int, nodes: int, replicate: int
) -> tuple[int, int, int]:
    num_ranks, nodes = count_of("num_ranks", num_ranks), count_of("nodes", nodes)
    require_divisible(trace.num_experts, num_ranks)
    if num_ranks % nodes:
        raise ValueError(
            "The ranks must be the same on every node. "
            f"Received: {num_ranks} ranks on {nodes} nodes"
        )
    replicate = whole_number("replicate", replicate)
    if replicate >= trace.num_experts:
        raise ValueError(
            "`replicate` must be less than the number of experts of a layer. Received: "
            f"replicate={replicate} of {trace.num_experts} experts. Use a smaller number."
        )
    return num_ranks, nodes, replicate


def _balanced(problem: PlacementProblem, training: RoutingTrace, seconds: float) -> np.ndarray:
    """For each layer ranks within the limit, or the most even ones that were found."""
    total = training.num_tokens * training.top_k
    end = time.monotonic() + seconds
    found = []
    for visits, slots in zip(problem.visits, problem.slots, strict=True):
        # What all ranks hold is taken to be even: where tokens are is not known yet.
        limit = problem.limit - (total - visits.sum()) / problem.num_ranks
        left = max(_LEAST_SECONDS, end - time.monotonic())
        found.append(balanced_ranks(visits, np.bincount(slots), limit, left))
    return np.stack(found)


def _require_load(
    problem: PlacementProblem, training: RoutingTrace, balanced: np.ndarray, limit: float
) -> None:
    """Refuse a limit that no placement keeps to."""
    mean = training.num_tokens * training.top_k / problem.num_ranks
    loads = [
        largest_load(visits, ranks, problem.num_ranks) / mean
        for visits, ranks in zip(problem.visits, balanced, strict=True)
    ]
    _require_largest(max(loads), limit, f" in layer {training.layers[int(np.argmax(loads))]!r}")


def _require_largest(load: float, limit: float, where: str) -> None:
    if load > limit + _NOTHING:
        raise ValueError(
            "`max_load` must leave room for the experts that most tokens choose. Received: "
            f"max_load={limit:g}, and the most even placement that was found gives a rank "
            f"{load:.3f} times the mean{where}. Use max_load={math.ceil(load * 100) / 100:g}, "
            "fewer ranks, or a larger `replicate`."
        )


def _placement(
    problem: PlacementProblem, ranks: np.ndarray, num_experts: int, names: dict[str, Any]
) -> ExpertPlacement:
    """The placement of all experts: those that were not placed are on all ranks."""
    everywhere = tuple(range(problem.num_ranks))
    holders = []
    for experts, row in zip(problem.experts, ranks, strict=True):
        one = {int(expert): (int(rank),) for expert, rank in zip(experts, row, strict=True)}
        holders.append(tuple(one.get(expert, everywhere) for expert in range(num_experts)))
    return ExpertPlacement(tuple(holders), problem.num_ranks, **names)


def _with_report(
    placement: ExpertPlacement,
    training: RoutingTrace,
    judged: RoutingTrace,
    rounds: int,
    limit: float,
) -> ExpertPlacement:
    """The placement with its scores, if it keeps to the limit."""
    learnt = placement.score(training)
    _require_largest(learnt.largest_load, limit, "")
    shape = placement.num_layers, placement.num_experts, placement.num_ranks
    names: dict[str, Any] = {
        "nodes": placement.nodes, "model": placement.model, "layers": placement.layers,
    }  # fmt: skip
    contiguous = ExpertPlacement.contiguous(*shape, **names)
    random = [ExpertPlacement.random(*shape, seed, **names) for seed in range(_RANDOM)]
    report = PlacementReport(
        tokens=training.num_tokens,
        held_out_tokens=judged.num_tokens,
        top_k=training.top_k,
        rounds=rounds,
        training=learnt,
        held_out=placement.score(judged),
        contiguous=contiguous.score(judged),
        random=mean_score([one.score(judged) for one in random]),
    )
    return dataclasses.replace(placement, report=report)
