"""Draws a plan: one step, rank by rank, and time and memory of the partitions."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyparflow.formats.text import counted
from hyparflow.planning.gantt import COLOURS, draw_step, new_figure, save_picture, whole_numbers

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan

__all__ = ["draw"]

_TITLE_WIDTH = 110  # letters of a line
_MEMORY = {
    "weights": "#0072b2",
    "gradients": "#56b4e9",
    "slots": "#009e73",
    "activations": "#e69f00",
    "updates": "#f0e442",
    "buffers": "#cc79a7",
    "program": "#999999",
}


def draw(plan: Plan, path: str | Path) -> None:
    """Draw `plan` into the file `path`."""
    what, works = plan.rows()
    height = min(12.0, 1.2 + 0.45 * len(works))
    figure = new_figure(11, height + 3.2)
    rows = figure.subplots(2, 1, height_ratios=[height, 2.6])
    step, below = rows
    grid = below.get_subplotspec().subgridspec(1, 2)
    below.remove()
    figure.suptitle(_title(plan), fontsize=11)
    draw_step(step, works, plan.num_partitions, what=what)
    _draw_time(plan, figure.add_subplot(grid[0]))
    _draw_memory(plan, figure.add_subplot(grid[1]))
    save_picture(figure, path)


def _title(plan: Plan) -> str:
    replicas = f", each on {plan.num_replicas} replicas" if plan.num_replicas > 1 else ""
    several = " (the later the paler)" if plan.stages_per_partition > 1 else ""
    schedule = f"{plan.pipeline}{several}, " if plan.pipeline else ""
    parts = counted(plan.num_microbatches, "micro-batch", "micro-batches")
    between = plan.between_seconds * 1e3
    step = f"{plan.step_seconds * 1e3:.{0 if plan.step_seconds > 1 else 1}f} ms"
    title = (
        f"{plan.model}: one step of {plan.batch_size} rows in {step}, {between:.1f} ms of it "
        f"between steps; {schedule}{parts}{replicas}"
    )
    return textwrap.fill(title, _TITLE_WIDTH)


def _draw_time(plan: Plan, axes: Any) -> None:
    numbers = range(plan.num_partitions)
    forward = [part.forward * 1e3 for part in plan.partitions]
    backward = [part.backward * 1e3 for part in plan.partitions]
    axes.bar(numbers, forward, color=COLOURS["forward"], label="forward")
    axes.bar(numbers, backward, bottom=forward, color=COLOURS["backward"], label="backward")
    axes.set(xlabel="partition", ylabel="ms per micro-batch", title="Time")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    whole_numbers(axes.xaxis, plan.num_partitions)


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
    whole_numbers(axes.xaxis, plan.num_partitions)
