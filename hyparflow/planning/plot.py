"""A plan as a picture: one step, partition by partition, and what each takes of time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyparflow.actions import Kind

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan

__all__ = ["draw"]

# Colours that stay apart in grey and for the colour-blind (after Okabe and Ito).
_COLOURS = {
    "forward": "#56b4e9",
    "backward": "#0072b2",
    "forward + backward": "#3a86c8",
    "message": "#e69f00",
    "allreduce": "#cc79a7",
    "optimizer": "#009e73",
}
_NAMES = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.FUSED: "forward + backward",
    Kind.SEND_ACTIVATION: "message",
    Kind.RECEIVE_ACTIVATION: "message",
    Kind.SEND_GRADIENT: "message",
    Kind.RECEIVE_GRADIENT: "message",
    Kind.REDUCE: "allreduce",
    Kind.APPLY: "optimizer",
}
_MEMORY = {
    "weights": "#0072b2",
    "gradients": "#56b4e9",
    "slots": "#009e73",
    "activations": "#e69f00",
    "buffers": "#cc79a7",
    "program": "#999999",
}
_IDLE = "#eeeeee"
_LABELLED = 400  # more pieces than this are too small to write numbers into


def draw(plan: Plan, path: str | Path) -> None:
    """Draw `plan` into the file `path`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A picture of a plan needs matplotlib. Received: an environment without it. Install "
            'it by: pip install "hyparflow[plot]"'
        ) from error
    count = plan.num_partitions
    height = min(12.0, 1.2 + 0.45 * count)
    figure = Figure(figsize=(11, height + 3.2), layout="constrained")
    rows = figure.subplots(2, 1, height_ratios=[height, 2.6])
    step, below = rows
    grid = below.get_subplotspec().subgridspec(1, 2)
    below.remove()
    _draw_step(plan, step)
    _draw_time(plan, figure.add_subplot(grid[0]))
    _draw_memory(plan, figure.add_subplot(grid[1]))
    figure.savefig(path, dpi=150)


def _draw_step(plan: Plan, axes: Any) -> None:
    end = max(work.end for rank in plan.work for work in rank) * 1e3
    pieces = sum(len(rank) for rank in plan.work)
    seen: dict[str, Any] = {}
    for rank, works in enumerate(plan.work):
        seen["idle"] = axes.barh(rank, end, height=0.8, color=_IDLE)
        for work in works:
            name = _NAMES[work.kind]
            start, width = work.start * 1e3, (work.end - work.start) * 1e3
            bar = axes.barh(
                rank,
                width,
                left=start,
                height=0.8,
                color=_COLOURS[name],
                edgecolor="white",
                linewidth=0.4 if pieces < _LABELLED else 0.0,
            )
            seen[name] = bar
            computes = work.kind in (Kind.FORWARD, Kind.BACKWARD, Kind.FUSED)
            if computes and width > 0.018 * end:
                axes.text(
                    start + width / 2,
                    rank,
                    str(work.microbatch),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if name == "forward" else "white",
                )
    order = [
        "forward",
        "backward",
        "forward + backward",
        "message",
        "allreduce",
        "optimizer",
        "idle",
    ]
    shown = [name for name in order if name in seen]
    axes.legend(
        [seen[name] for name in shown],
        shown,
        ncols=len(shown),
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    replicas = f", each on {plan.num_replicas} replicas" if plan.num_replicas > 1 else ""
    figure_title = (
        f"{plan.model}: one step of {plan.batch_size} rows in {plan.step_seconds * 1e3:.0f} ms, "
        f"{plan.schedule}, {plan.num_microbatches} micro-batches{replicas}"
    )
    axes.figure.suptitle(figure_title, fontsize=11)
    axes.set(
        xlabel="time (ms)", ylabel="partition", xlim=(0, end), ylim=(len(plan.work) - 0.5, -0.5)
    )
    _whole_numbers(axes.yaxis, len(plan.work))


def _draw_time(plan: Plan, axes: Any) -> None:
    numbers = range(plan.num_partitions)
    forward = [part.forward * 1e3 for part in plan.partitions]
    backward = [part.backward * 1e3 for part in plan.partitions]
    axes.bar(numbers, forward, color=_COLOURS["forward"], label="forward")
    axes.bar(numbers, backward, bottom=forward, color=_COLOURS["backward"], label="backward")
    axes.set(xlabel="partition", ylabel="ms per micro-batch", title="Time")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _whole_numbers(axes.xaxis, plan.num_partitions)


def _draw_memory(plan: Plan, axes: Any) -> None:
    numbers = range(plan.num_partitions)
    bottom = [0.0 for _ in numbers]
    for name, colour in _MEMORY.items():
        sizes = [getattr(part.memory, name) / 2**20 for part in plan.partitions]
        axes.bar(numbers, sizes, bottom=bottom, color=colour, label=name)
        bottom = [low + size for low, size in zip(bottom, sizes, strict=True)]
    if plan.memory_limit is not None and plan.memory_limit / 2**20 < 3 * max(bottom):
        axes.axhline(plan.memory_limit / 2**20, color="black", linestyle="--", label="limit")
    axes.set(xlabel="partition", ylabel="MiB at the peak", title="Memory")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _whole_numbers(axes.xaxis, plan.num_partitions)


def _whole_numbers(axis: Any, count: int) -> None:
    every = max(1, count // 16)
    axis.set_ticks(range(0, count, every))
