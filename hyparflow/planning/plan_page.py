"""The text of a plan: a head, a table of its partitions, and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from hyparflow.formats.sizes import size_text
from hyparflow.formats.text import Page, aligned, brief, counted

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan

__all__ = ["page_of"]

_CLEARLY = 0.95  # of the time of ranks; what is nearer may be noise
_TITLES = (
    *("partition", "layers", "parameters", "a forward", "a backward", "memory", "weights"),
    *("gradients", "slots", "activations", "updates", "buffers", "program", "whole model"),
    "sends in a step",
)


def page_of(plan: Plan) -> Page:
    """The page of a plan."""
    return Page(_head(plan), _table(plan), _summary(plan))


def _head(plan: Plan) -> list[str]:
    rows = plan.batch_size / plan.num_replicas / plan.num_microbatches
    schedule = f", {plan.pipeline}" if plan.pipeline else ""
    ranks = counted(plan.num_ranks, "rank", "ranks")
    return [
        f"{plan.model} on {ranks}: {plan.grid.in_words}{schedule}",
        f"global batch {plan.batch_size} = {plan.num_replicas} x {plan.num_microbatches} x "
        f"{round(rows, 1):g} (replicas x micro-batches x rows); costs {plan.costs}",
    ]


def _table(plan: Plan) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [_TITLES]
    for number, part in enumerate(plan.partitions):
        memory = part.memory
        sent = ", ".join(f"{size_text(size)} to {peer}" for peer, size in part.sent.items())
        if plan.grid.num_peers > 1:
            others = counted(plan.grid.num_peers - 1, "other", "others")
            summed = part.parameters if part.summed is None else part.summed
            sums = f"sums {size_text(summed)} with {others}"
            sent = f"{sent}, {sums}" if sent else sums
        rows.append(
            (
                f"{number}: {_stages(plan, number)}",
                str(len(part.layers)),
                size_text(part.parameters),
                f"{part.forward * 1e3:.1f} ms",
                f"{part.backward * 1e3:.1f} ms",
                *map(size_text, (memory.total, *astuple(memory))),
                sent or "-",
            )
        )
    return rows


def _without_ranks(plan: Plan) -> str:
    """A line about one process, and whether it would be the better choice."""
    if plan.memory_limit is not None and plan.single_memory > plan.memory_limit:
        return f"One process does not fit: it needs {size_text(plan.single_memory)}."
    least, known = plan.single_seconds, f"One process takes {plan.single_seconds * 1e3:.1f} ms"
    if plan.all_cores_seconds is not None:
        least = min(least, plan.all_cores_seconds)
        known += f", and {plan.all_cores_seconds * 1e3:.1f} ms with the cores of all ranks"
    if least < _CLEARLY * plan.step_seconds:
        return f"{known}, less than ranks do: start one, without mpirun, for this batch."
    return f"{known}."


def _stages(plan: Plan, partition: int) -> str:
    """The layers of the first stage of a partition, and how many more stages there are."""
    layers, first = plan.partitions[partition].layers, plan.lpp[partition]
    each = plan.stages_per_partition
    more = f" and {counted(each - 1, 'more stage', 'more stages')}" if each > 1 else ""
    return f"{brief(layers[0])} to {brief(layers[first - 1])}{more}"


def _summary(plan: Plan) -> list[str]:
    sums, between = plan.sums_share, plan.between_seconds / plan.step_seconds
    waiting = max(0.0, plan.idle_share - sums - between)
    lines = [
        f"step {plan.step_seconds * 1e3:.1f} ms, {plan.samples_per_second:.1f} samples/s, "
        f"{plan.speedup:.2f} times one process",
        f"idle {plan.idle_share:.1%}: messages and waiting {waiting:.1%}, sums over replicas "
        f"{sums:.1%}, between steps {between:.1%}",
    ]
    if plan.divides_sequences:
        where = "in memory" if plan.sequence_store == "memory" else f"in {plan.sequence_store!r}"
        chunks = counted(plan.num_sequence_chunks, "chunk", "chunks")
        lines.append(
            f"Sequences of {plan.sequence_length} positions are computed in {chunks}, which wait "
            f"{where} for their backward."
        )
    if plan.recompute is not None:
        what = "each block" if plan.recompute == "block" else "segments of several blocks"
        lines.append(
            f"Backwards compute the forward of {what} again (recompute={plan.recompute!r})."
        )
    if plan.shard_optimizer:
        lines.append("Replicas share out the optimizer's state (shard_optimizer=True).")
    if plan.expert_parallel:
        lines.append("Replicas share out experts, and tokens travel (expert_parallel=True).")
    if not plan.gather:
        lines.append(
            "No rank can hold the whole model: build it with hyparflow.deferred(); weights "
            "stay at their owners (gather=False)."
        )
    if plan.num_ranks > 1:
        lines.append(_without_ranks(plan))
    if plan.cores is not None:
        cores = counted(plan.cores, "core", "cores")
        lines.append(
            f"This machine has {cores} for {plan.num_ranks} ranks: ranks that share a core are "
            "slower than this says."
        )
    if plan.alternatives:
        names = [
            (a.name, f"{a.step_seconds * 1e3:.1f} ms", size_text(a.memory), a.reason)
            for a in plan.alternatives
        ]
        lines += ["", "Next best:", *(f"  {line}" for line in aligned(names))]
    return lines
