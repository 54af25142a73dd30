"""A measured step as a picture, above the planned one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyparflow.comm.recorder import Event, EventKind
from hyparflow.pipeline.actions import NAMES, Kind
from hyparflow.planning.gantt import draw_step, new_figure, save_picture
from hyparflow.planning.plan import Bar, Plan
from hyparflow.tracing.summary import settled, whole_step
from hyparflow.tracing.trace import RankTrace, Trace

__all__ = ["draw"]

_SUMS = (Kind.START_REDUCE, Kind.REDUCE)


def draw(trace: Trace, path: str | Path, plan: Plan | None = None) -> None:
    """Draw one step of all ranks, of median length, and the same of the plan.

    Args:
        trace: what was measured.
        path: a file of a type that matplotlib writes.
        plan: the plan; that of the trace if not given.

    Raises:
        ImportError: without matplotlib.
    """
    if plan is None and trace.plan is not None:
        plan = Plan.from_values(trace.plan)
    steps = _median_step(trace.ranks)
    zero = min(event.start for step in steps for event in step)
    # The sums of a rank that alone has its weights take no time.
    summed = trace.has_sums or any(e.kind == EventKind.SUM for step in steps for e in step)
    measured = [_works(step, zero, summed) for step in steps]
    drawn: list[tuple[str, list[Any], str]] = [("measured", measured, "rank")]
    if plan is not None:
        what, rows = plan.rows()
        drawn.append(("planned", rows, what))
    end = max(work.end for _, rows, _ in drawn for works in rows for work in works)
    heights = [1.0 + 0.45 * min(len(rows), 24) for _, rows, _ in drawn]
    figure = new_figure(11, 0.8 + sum(heights))
    axes = figure.subplots(len(drawn), 1, height_ratios=heights, squeeze=False)[:, 0]
    for ax, (title, rows, what) in zip(axes, drawn, strict=True):
        draw_step(ax, rows, trace.arguments["num_partitions"], end, what)
        took = max(work.end for works in rows for work in works)
        ax.set_title(f"{title}: {took * 1e3:.0f} ms", pad=22, fontsize=11)
    save_picture(figure, path)


def _median_step(ranks: list[RankTrace]) -> list[list[Event]]:
    """The same step of each rank: the one of median length on the leader."""
    steps = ranks[0].steps
    kept = settled(steps)
    lengths = {}
    for number in range(min(len(rank.steps) for rank in ranks)):
        whole = [whole_step(rank.steps[number]) for rank in ranks]
        if whole[0] is not None and all(whole) and steps[number] in kept:
            lengths[number] = whole[0].end - whole[0].start
    if not lengths:
        raise ValueError("A trace must have a training step. Received: none that all ranks took")
    chosen = sorted(lengths, key=lengths.__getitem__)[len(lengths) // 2]
    return [_within(rank.steps[chosen]) for rank in ranks]


def _within(step: list[Event]) -> list[Event]:
    """The events within a step, without those between two steps."""
    whole = whole_step(step)
    return [event for event in step if whole is None or event.end <= whole.end]


def _works(step: list[Event], zero: float, summed: bool) -> list[Bar]:
    """Actions without the waits in them, which are idle time; and sums, if there are any."""
    works = []
    waits = [event for event in step if event.kind == EventKind.WAIT]
    for event in step:
        if event.kind not in NAMES or (not summed and event.kind in _SUMS):
            continue
        start = event.start
        for wait in waits:
            if start <= wait.start and wait.end <= event.end:
                works.append(_work(event, start - zero, wait.start - zero))
                start = wait.end
        works.append(_work(event, start - zero, event.end - zero))
    return works


def _work(event: Event, start: float, end: float) -> Bar:
    return Bar(
        kind=event.kind, stage=event.stage, microbatch=event.microbatch, start=start, end=end
    )
