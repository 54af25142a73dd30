"""A plan as a picture: one step, partition by partition, and what each takes of time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyparflow.actions import Kind

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan, Work

__all__ = ["draw"]

# Colours that stay apart in grey and for the colour-blind (after Okabe and Ito).
_COLOURS = {
    "forward": "#56b4e9",
    "backward": "#0072b2",
    "backward of inputs": "#0072b2",
    "backward of weights": "#4b4fa6",
    "forward + backward": "#3a86c8",
    "message": "#e69f00",
    "allreduce": "#cc79a7",
    "optimizer": "#009e73",
}
_NAMES = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.INPUT_BACKWARD: "backward of inputs",
    Kind.WEIGHT_BACKWARD: "backward of weights",
    Kind.FUSED: "forward + backward",
    Kind.SEND_ACTIVATION: "message",
    Kind.RECEIVE_ACTIVATION: "message",
    Kind.SEND_GRADIENT: "message",
    Kind.RECEIVE_GRADIENT: "message",
    Kind.START_REDUCE: "allreduce",
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
_HEIGHT = 0.8  # of a bar; the rows are 1 apart
_EDGED = 600  # more computations than this are too narrow for edges


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
    computations = sum(work.kind in Kind.COMPUTATIONS for rank in plan.work for work in rank)
    edge = 0.4 if computations < _EDGED else 0.0
    seen: dict[str, Any] = {}
    for rank, works in enumerate(plan.work):
        seen["idle"] = axes.barh(rank, end, height=_HEIGHT, color=_IDLE)
        for work in works:
            name = _NAMES[work.kind]
            turn = work.stage // plan.num_partitions if work.kind in Kind.COMPUTATIONS else 0
            bar = _draw_work(axes, rank, work, edge, max(0.4, 1.0 - 0.2 * turn))
            seen[name] = bar if turn == 0 else seen.get(name, bar)
            if work.kind in Kind.COMPUTATIONS and (work.end - work.start) * 1e3 > 0.018 * end:
                _number(axes, rank, work, "black" if name == "forward" else "white")
    shown = [name for name in (*_COLOURS, "idle") if name in seen]
    axes.legend(
        [seen[name] for name in shown],
        shown,
        ncols=len(shown),
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    axes.figure.suptitle(_title(plan), fontsize=11)
    axes.set(
        xlabel="time (ms)", ylabel="partition", xlim=(0, end), ylim=(len(plan.work) - 0.5, -0.5)
    )
    _whole_numbers(axes.yaxis, len(plan.work))


def _draw_work(axes: Any, rank: int, work: Work, edge: float, alpha: float) -> Any:
    """One bar, with an edge of this width; later stages of a partition are paler."""
    return axes.barh(
        rank,
        (work.end - work.start) * 1e3,
        left=work.start * 1e3,
        height=_HEIGHT,
        color=_COLOURS[_NAMES[work.kind]],
        edgecolor="white",
        linewidth=edge if work.kind in Kind.COMPUTATIONS else 0.0,
        alpha=alpha,
    )


def _number(axes: Any, rank: int, work: Work, colour: str) -> None:
    """Write the micro-batch into its bar."""
    middle = (work.start + work.end) / 2 * 1e3
    text = str(work.microbatch)
    axes.text(middle, rank, text, ha="center", va="center", fontsize=8, color=colour)


def _title(plan: Plan) -> str:
    replicas = f", each on {plan.num_replicas} replicas" if plan.num_replicas > 1 else ""
    each = plan.stages_per_partition
    stages = f"{each} stages per partition (the later the paler), " if each > 1 else ""
    return (
        f"{plan.model}: one step of {plan.batch_size} rows in {plan.step_seconds * 1e3:.0f} ms, "
        f"{plan.schedule}, {stages}{plan.num_microbatches} micro-batches{replicas}"
    )


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
