"""Draws a step as a Gantt chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyparflow.formats.text import path_text
from hyparflow.formats.writing import replacing
from hyparflow.launching.installation import install_command
from hyparflow.pipeline.actions import COMPUTATIONS, NAMES, RECEIVES, SENDS, Kind

if TYPE_CHECKING:
    from hyparflow.planning.plan import Bar

__all__ = ["COLOURS", "check_picture", "draw_step", "new_figure", "save_picture", "whole_numbers"]

# Colours that stay apart in grey and for the colour-blind (after Okabe and Ito).
COLOURS = {
    "forward": "#56b4e9",
    "backward": "#0072b2",
    "backward of inputs": "#0072b2",
    "backward of weights": "#4b4fa6",
    "forward + backward": "#3a86c8",
    "message": "#e69f00",
    "allreduce": "#cc79a7",
    "optimizer": "#009e73",
}
_NAMES = (
    NAMES | dict.fromkeys((*SENDS, *RECEIVES), "message") | {Kind.START_REDUCE: NAMES[Kind.REDUCE]}
)
_IDLE = "#eeeeee"
_HEIGHT = 0.8  # of a bar; the rows are 1 apart
_PALEST = 0.55  # how much paler the last stage of a partition is than its first
_EDGED = 600  # with more computations than this, bars are too narrow for edges


def check_picture(path: str | Path) -> None:
    """Refuse files of types that matplotlib does not write.

    Raises:
        ValueError: if `path` has such a suffix.
    """
    known = sorted(new_figure(1, 1).canvas.get_supported_filetypes())
    if Path(path_text(path)).suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"A picture's file ends with one of {', '.join(known)}. Received: {path}")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that many inches.

    Raises:
        ImportError: without matplotlib, which the extra "plot" brings.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib. Received: an environment without it. "
            f"Install it by: {install_command('plot')}"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_picture(figure: Any, path: str | Path) -> None:
    """Write a figure into a file of a type that `check_picture` knows."""
    check_picture(path)
    kind = Path(path_text(path)).suffix.removeprefix(".").lower()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=kind)


def draw_step(
    axes: Any,
    rows: Sequence[Sequence[Bar]],
    num_partitions: int,
    end: float | None = None,
    what: str = "partition",
) -> None:
    """Draw what each partition, or rank, does in a step.

    Args:
        axes: the axes of matplotlib.
        rows: the work of each partition or rank, from 0 s.
        num_partitions: later stages of a partition are paler.
        end: where the axis ends (seconds); the end of the step if not given.
        what: what a row is: "partition" or "rank".
    """
    end = (end or max(work.end for works in rows for work in works)) * 1e3
    computations = sum(work.kind in COMPUTATIONS for works in rows for work in works)
    edge = 0.4 if computations < _EDGED else 0.0
    turns = max(1, *(work.stage // num_partitions for works in rows for work in works))
    numbered = _numbered(rows, end)
    seen: dict[str, Any] = {}
    for row, works in enumerate(rows):
        seen["idle"] = axes.barh(row, end, height=_HEIGHT, color=_IDLE)
        for work in works:
            name = _NAMES[work.kind]
            turn = work.stage // num_partitions if work.kind in COMPUTATIONS else 0
            paleness = _PALEST * turn / turns
            bar = _draw_work(axes, row, work, edge, 1.0 - paleness)
            seen[name] = bar if turn == 0 else seen.get(name, bar)
            if work.kind in numbered:
                dark = name != "forward" and paleness < _PALEST / 2
                _number(axes, row, work, "white" if dark else "black")
    shown = [name for name in (*COLOURS, "idle") if name in seen]
    axes.legend(
        [seen[name] for name in shown],
        shown,
        ncols=len(shown),
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    axes.set(xlabel="time (ms)", ylabel=what, xlim=(0, end), ylim=(len(rows) - 0.5, -0.5))
    whole_numbers(axes.yaxis, len(rows))


def _numbered(rows: Sequence[Sequence[Bar]], end: float) -> set[str]:
    """Kinds of computations whose bars, except a few, are wide enough for a number."""
    widths: dict[str, list[float]] = {}
    for work in (work for works in rows for work in works if work.kind in COMPUTATIONS):
        widths.setdefault(work.kind, []).append((work.end - work.start) * 1e3)
    return {kind for kind, found in widths.items() if sorted(found)[len(found) // 10] > 0.012 * end}


def _draw_work(axes: Any, row: int, work: Bar, edge: float, alpha: float) -> Any:
    """One bar, with an edge of this width; later stages of a partition are paler."""
    return axes.barh(
        row,
        (work.end - work.start) * 1e3,
        left=work.start * 1e3,
        height=_HEIGHT,
        color=COLOURS[_NAMES[work.kind]],
        edgecolor="white",
        linewidth=edge if work.kind in COMPUTATIONS else 0.0,
        alpha=alpha,
    )


def _number(axes: Any, row: int, work: Bar, colour: str) -> None:
    """Write the micro-batch into its bar."""
    middle = (work.start + work.end) / 2 * 1e3
    text = str(work.microbatch)
    axes.text(middle, row, text, ha="center", va="center", fontsize=8, color=colour)


def whole_numbers(axis: Any, count: int) -> None:
    """Label `axis` with at most 16 of the first `count` numbers."""
    every = max(1, count // 16)
    axis.set_ticks(range(0, count, every))
