"""Makes a plan from predictions: the best in full, the next best with the reason why not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hyparflow.formats.text import counted
from hyparflow.pipeline.actions import COMPUTATIONS, RECEIVES, SENDS
from hyparflow.planning.plan import Alternative, Bar, PartitionPlan, Plan
from hyparflow.planning.search.order import best_first, fastest
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Problem, Saving
from hyparflow.planning.search.sequence_layout import SequenceLayout

__all__ = ["make_plan"]

_ALTERNATIVES = 3


def make_plan(
    model: str,
    fingerprint: str,
    problem: Problem,
    best: Prediction,
    single: Prediction,
    found: Sequence[Prediction],
    memory_limit: int | None,
) -> Plan:
    """The plan of the prediction `best`.

    Args:
        model: its name.
        fingerprint: a hash of its structure.
        problem: the problem that was solved.
        best: the chosen prediction.
        single: the prediction for one process.
        found: all predictions; the next best are alternatives.
        memory_limit: bytes per rank, or None.
    """
    candidate, ways = best.candidate, best.saving.sequences or SequenceLayout()
    table = candidate.partitioning
    return Plan(
        model=model,
        fingerprint=fingerprint,
        batch_size=problem.batch_size,
        num_replicas=candidate.grid.num_replicas,
        num_partitions=candidate.grid.num_partitions,
        num_microbatches=candidate.num_microbatches,
        schedule=candidate.schedule,
        stages_per_partition=candidate.grid.placement.depth,
        lpp=tuple(len(table.operations(stage)) for stage in range(table.num_stages)),
        partitions=tuple(_partition(best, n) for n in range(candidate.grid.num_partitions)),
        step_seconds=best.step_seconds,
        single_seconds=single.step_seconds,
        single_memory=single.memory[0].total,
        idle_share=best.idle_share,
        memory_limit=memory_limit,
        alternatives=tuple(
            _alternative(other, best, memory_limit) for other in _others(found, best)
        ),
        work=tuple(tuple(_work(spans)) for spans in best.timeline.spans),
        costs=problem.costs.source,
        gather=not best.saving.apart,
        recompute=best.saving.recompute,
        shard_optimizer=best.saving.shard_optimizer and candidate.grid.num_peers > 1,
        expert_parallel=best.problem.sharers(candidate.grid) > 1,
        num_sequence_shards=ways.num_shards,
        num_sequence_chunks=ways.num_chunks,
        sequence_store=ways.store,
        sequence_length=problem.costs.length,
        all_cores_seconds=_with_all_cores(problem, single),
    )


def _partition(best: Prediction, number: int) -> PartitionPlan:
    operations, problem = best.candidate.operations(number), best.problem
    is_shared = problem.sharers(best.candidate.grid) > 1
    return PartitionPlan(
        layers=tuple(problem.graph.operations[n].name for n in operations),
        parameters=problem.costs.weight_bytes(operations),
        forward=best.forward[number],
        backward=best.backward[number],
        memory=best.memory[number],
        sent=best.sent[number],
        summed=problem.without_experts.weight_bytes(operations, True) if is_shared else None,
    )


def _with_all_cores(problem: Problem, single: Prediction) -> float | None:
    """The seconds of a step in one process that has the cores of all ranks, if these share a node.

    They compute the faster, but the optimizer waits for memory.
    """
    costs, cluster = problem.costs, problem.cluster
    if costs.gain_of_all_cores is None or costs.crowd != cluster.num_ranks:
        return None
    rest = single.apply[0] + costs.overheads.step
    return (single.step_seconds - rest) / costs.gain_of_all_cores + rest


def _others(found: Sequence[Prediction], best: Prediction) -> list[Prediction]:
    """The next best predictions.

    Of the same grid with other savings first, then of other grids, then of other micro-batches.
    """
    savers: dict[Saving, list[Prediction]] = {}
    others: list[Prediction] = []
    for prediction in found:
        if prediction.candidate.grid != best.candidate.grid:
            others.append(prediction)
        elif prediction.saving != best.saving:
            savers.setdefault(prediction.saving, []).append(prediction)
    chosen = [fastest(predictions) for predictions in savers.values()]
    grids = set()
    for prediction in best_first(others):
        if len(chosen) >= _ALTERNATIVES:
            break
        if prediction.candidate.grid not in grids:
            grids.add(prediction.candidate.grid)
            chosen.append(prediction)
    rest = [p for p in found if not any(p is taken for taken in (best, *chosen))]
    chosen += itertools.islice(best_first(rest), max(0, _ALTERNATIVES - len(chosen)))
    return sorted(chosen, key=lambda prediction: prediction.step_seconds)


def _work(spans: Any) -> list[Bar]:
    return [
        Bar(
            kind=span.step.kind,
            stage=span.step.stage,
            microbatch=span.step.microbatch,
            start=span.start,
            end=span.end,
        )
        for span in spans
        if span.end > span.start
    ]


def _alternative(other: Prediction, best: Prediction, memory_limit: int | None) -> Alternative:
    grid = other.candidate.grid
    parts = counted(other.candidate.num_microbatches, "micro-batch", "micro-batches")
    name = f"{grid.numbers}, {parts}"
    name += f", {words}" if (words := other.candidate.in_words) else ""
    name += f", {words}" if (words := other.saving.in_words(grid.num_peers)) else ""
    totals = [memory.total for memory in other.memory]
    most = max(totals)
    fits = memory_limit is None or most <= memory_limit
    reason = _reason(other, best) if fits else f"partition {totals.index(most)} needs too much"
    return Alternative(name, other.step_seconds, most, reason)


def _reason(other: Prediction, best: Prediction) -> str:
    """The part of the step that grows most."""
    parts, reference = _parts(other), _parts(best)
    growth = {name: parts[name] - reference[name] for name in parts}
    worst = max(growth, key=lambda name: growth[name])
    return f"{worst} +{growth[worst] * 1e3:.1f} ms" if growth[worst] > 0 else "as fast"


def _parts(prediction: Prediction) -> dict[str, float]:
    """The seconds of the rank that computes most."""
    spans = prediction.timeline.spans
    computing = [_seconds(rank, COMPUTATIONS) for rank in spans]
    busiest = computing.index(max(computing))
    rank = spans[busiest]
    messages = _seconds(rank, (*SENDS, *RECEIVES))
    known = computing[busiest] + messages
    known += prediction.reduce[busiest] + prediction.apply[busiest]
    return {
        "computing": computing[busiest],
        "messages": messages,
        "summing gradients over replicas": prediction.reduce[busiest],
        "optimizer": prediction.apply[busiest],
        "waiting": prediction.step_seconds - known,
    }


def _seconds(spans: Any, kinds: Sequence[str]) -> float:
    return float(sum(span.end - span.start for span in spans if span.step.kind in kinds))
