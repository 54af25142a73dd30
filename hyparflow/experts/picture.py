"""Pictures: affinity layer by layer, and what goes from rank to rank.

They are drawn on a figure of matplotlib that the caller made and writes to a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hyparflow.experts.affinity import ways_of
from hyparflow.formats.text import brief, counted

if TYPE_CHECKING:
    from hyparflow.experts.placement import ExpertPlacement
    from hyparflow.experts.score import PlacementScore
    from hyparflow.experts.trace import RoutingTrace

__all__ = ["affinity_size", "draw_affinity", "draw_traffic", "traffic_size"]

_MOST_PANELS = 12  # of affinity: two layers each
_COLUMNS = 4
_PANEL = (3.0, 3.1)  # inches
_TRAFFIC = (13.0, 4.4)
_MOST_WRITTEN = 8  # ranks up to which the numbers are written into the squares
_MOST_TICKS = 8
_LONGEST = 14  # letters of the name of a layer
_DARK = 0.55  # of the scale, from which on numbers are written in white
_COLOURS = "Blues"
_GREY = "#d9d9d9"
_BEFORE, _AFTER = "#e69f00", "#0072b2"  # apart in grey and for the colour-blind


def affinity_size(trace: RoutingTrace) -> tuple[float, float]:
    """The width and height that `draw_affinity` needs, in inches."""
    panels = min(_MOST_PANELS, trace.num_layers - 1)
    rows, columns = -(-panels // _COLUMNS), min(panels, _COLUMNS)
    return max(6.0, _PANEL[0] * columns + 1.2), max(1.0, _PANEL[1] * rows + 0.9)


def traffic_size() -> tuple[float, float]:
    """The width and height that `draw_traffic` needs, in inches."""
    return _TRAFFIC


def draw_affinity(
    figure: Any, trace: RoutingTrace, placement: ExpertPlacement | None = None
) -> None:
    """Draw for pairs of layers which expert follows which; of many pairs, some.

    Args:
        figure: of matplotlib, or a part of one.
        trace: the tokens.
        placement: experts are ordered by the rank that it puts them on, with lines between ranks.
    """
    count = trace.num_layers - 1
    title = f"Where tokens go next{f' in {brief(trace.model)}' if trace.model else ''}"
    if count < 1:
        figure.suptitle(f"{title}: there is one layer", fontsize=11)
        return
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST_PANELS)).round().astype(int))
    some = f", {len(chosen)} of {count} pairs of layers" if len(chosen) < count else ""
    figure.suptitle(f"{title}{some}", fontsize=11)
    # Below the picture of a placement there is room for as many as ever.
    columns = min(len(chosen), _COLUMNS) if placement is None else _COLUMNS
    grid = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False)
    ways = 100 * ways_of(trace)[chosen]
    # A few pairs that are far above the others would leave all else white.
    top = max(float(np.quantile(ways, 0.998)), 200 / trace.num_experts)
    for axes, layer, shares in zip(grid.flat, chosen, ways, strict=False):
        image = _draw_pair(axes, shares, trace, int(layer), placement, top)
    for axes in grid.flat[len(chosen) :]:
        axes.remove()
    figure.colorbar(
        image, ax=list(grid.flat[: len(chosen)]), extend="max", shrink=0.8, aspect=30,
        label="share of an expert's tokens (%)",
    )  # fmt: skip


def _draw_pair(
    axes: Any,
    shares: np.ndarray,
    trace: RoutingTrace,
    layer: int,
    placement: ExpertPlacement | None,
    top: float,
) -> Any:
    names = [_short_name(trace.layers, number) for number in (layer, layer + 1)]
    if placement is None:
        image = axes.imshow(shares, cmap=_COLOURS, vmin=0, vmax=top, interpolation="nearest")
        _few_ticks(axes, trace.num_experts)
        kind = "expert"
    else:
        ranks = [_first_ranks(placement, layer), _first_ranks(placement, layer + 1)]
        orders = [np.argsort(row, kind="stable") for row in ranks]
        image = axes.imshow(
            shares[np.ix_(*orders)], cmap=_COLOURS, vmin=0, vmax=top, interpolation="nearest"
        )
        _rank_ticks(
            axes,
            [row[order] for row, order in zip(ranks, orders, strict=True)],
            placement.num_ranks,
        )
        kind = "rank of expert"
    axes.set_ylabel(f"{kind}, layer {names[0]}", fontsize=8)
    axes.set_xlabel(f"{kind}, layer {names[1]}", fontsize=8)
    axes.tick_params(labelsize=7)
    return image


def _first_ranks(placement: ExpertPlacement, layer: int) -> np.ndarray:
    """The rank of each expert; those on several come after all others."""
    holders = placement.ranks[layer]
    return np.array([each[0] if len(each) == 1 else placement.num_ranks for each in holders])


def _rank_ticks(axes: Any, rows: Sequence[np.ndarray], num_ranks: int) -> None:
    """Ticks in the middle of each rank's experts, and lines between ranks."""
    for row, line, axis in (
        (rows[0], axes.axhline, axes.yaxis),
        (rows[1], axes.axvline, axes.xaxis),
    ):
        ranks, starts, counts = np.unique(row, return_index=True, return_counts=True)
        names = ["all" if rank == num_ranks else str(rank) for rank in ranks]
        every = -(-len(ranks) // _MOST_TICKS)
        axis.set_ticks((starts + (counts - 1) / 2)[::every], names[::every])
        for start in starts[1:]:
            line(start - 0.5, color="black", linewidth=0.4)


def draw_traffic(
    figure: Any,
    placement: ExpertPlacement,
    contiguous: PlacementScore,
    score: PlacementScore,
) -> None:
    """Draw what goes from rank to rank, and by layer what changes rank, beside contiguous experts.

    Args:
        figure: of matplotlib, or a part of one.
        placement: the placement.
        contiguous: the score of a contiguous placement on the same tokens.
        score: that of the placement.
    """
    of = f" of {brief(placement.model)}" if placement.model else ""
    ranks = counted(placement.num_ranks, "rank", "ranks")
    figure.suptitle(f"Tokens{of} from rank to rank, {ranks}", fontsize=11)
    first, second, third = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    tables = [100 * np.array(found.traffic) for found in (contiguous, score)]
    away = [table[~np.eye(len(table), dtype=bool)] for table in tables]
    top = max((float(values.max()) for values in away if values.size), default=0.0) or 1.0
    for axes, table, found, name in (
        (first, tables[0], contiguous, "contiguous"),
        (second, tables[1], score, "this placement"),
    ):
        image = _draw_table(axes, table, top)
        axes.set_title(f"{name}: {found.rank_changes:.1%} change rank", fontsize=10)
    figure.colorbar(image, ax=[first, second], shrink=0.8, label="share of all tokens (%)")
    _draw_layers(third, placement, contiguous, score)


def _draw_table(axes: Any, table: np.ndarray, top: float) -> Any:
    """Ranks x ranks; what stays on a rank is grey."""
    size = len(table)
    stays = np.eye(size, dtype=bool)
    shown = np.ma.masked_array(table, stays)
    axes.set_facecolor(_GREY)
    image = axes.imshow(shown, cmap=_COLOURS, vmin=0, vmax=top, interpolation="nearest")
    if size <= _MOST_WRITTEN:
        for (row, column), value in np.ndenumerate(table):
            is_dark = not stays[row, column] and value > _DARK * top
            axes.text(
                column, row, f"{value:.1f}", ha="center", va="center", fontsize=7,
                color="white" if is_dark else "black",
            )  # fmt: skip
    _few_ticks(axes, size)
    axes.set(xlabel="to rank (grey: stays)", ylabel="from rank")
    return image


def _draw_layers(
    axes: Any, placement: ExpertPlacement, contiguous: PlacementScore, score: PlacementScore
) -> None:
    layers = np.arange(1, placement.num_layers)
    for found, name, colour in (
        (contiguous, "contiguous", _BEFORE),
        (score, "this placement", _AFTER),
    ):
        axes.plot(layers, 100 * np.array(found.by_layer), "o-", ms=3, color=colour, label=name)
    axes.set(xlabel="to reach layer", ylim=(0, 100))
    axes.set_ylabel("tokens that change rank (%)", labelpad=8)
    every = max(1, len(layers) // _MOST_TICKS)
    axes.set_xticks(layers[::every])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")


def _short_name(layers: Sequence[str], number: int) -> str:
    """The name of a layer, or where it is too long for a label its number."""
    return layers[number] if len(layers[number]) <= _LONGEST else str(number)


def _few_ticks(axes: Any, size: int) -> None:
    ticks = range(0, size, max(1, -(-size // _MOST_TICKS)))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
