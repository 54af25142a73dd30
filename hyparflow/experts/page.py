"""Routing traces and placements as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hyparflow.experts.affinity import foreseen
from hyparflow.formats.text import Page, aligned, brief, counted

if TYPE_CHECKING:
    from hyparflow.experts.placement import ExpertPlacement
    from hyparflow.experts.score import PlacementScore
    from hyparflow.experts.trace import RoutingTrace

__all__ = ["placement_page", "trace_page"]


def placement_page(
    placement: ExpertPlacement,
    on_trace: tuple[PlacementScore, PlacementScore] | None = None,
    by_layer: bool = False,
) -> Page:
    """The page of a placement: its scores, beside those of other placements.

    Args:
        placement: the placement.
        on_trace: the scores of contiguous experts and of the placement on tokens other than those
            of its report.
        by_layer: whether to add the share of tokens that change rank layer by layer.
    """
    rows, foot = [_score_titles(placement)], []
    layers = on_trace
    if (report := placement.report) is not None:
        rows += [
            _score_row("contiguous", report.contiguous, placement),
            _score_row("random", report.random, placement),
            _score_row("this placement", report.held_out, placement),
            _score_row("this placement, on what it was learnt from", report.training, placement),
        ]
        foot = [_gain(report.contiguous, report.held_out, "")]
        layers = on_trace or (report.contiguous, report.held_out)
    if on_trace is not None:
        rows.append(_score_row("contiguous, on the trace", on_trace[0], placement))
        rows.append(_score_row("this placement, on the trace", on_trace[1], placement))
        foot.append(_gain(*on_trace, "On the trace "))
    if layers is None:
        foot = ["It has no scores: hyparflow.place_experts adds some, and so does --trace."]
    elif by_layer and placement.num_layers > 1:
        foot += ["", *_by_layer(placement, *layers)]
    return Page(_head(placement), rows, foot)


def trace_page(trace: RoutingTrace) -> Page:
    """The page of a trace: how even experts are, and how far they are foreseen."""
    shares = trace.visits() / (trace.num_tokens * trace.top_k)
    rows: list[Sequence[str]] = [
        (
            "layer",
            "busiest expert",
            "its tokens, by the mean",
            "never chosen",
            "foreseen",
            "without",
        )
    ]
    learnt, judged = trace.split() if trace.num_tokens > 1 else (trace, trace)
    known, blind = foreseen(learnt, judged)
    for layer, (name, share) in enumerate(zip(trace.layers, shares, strict=True)):
        hits = ("", "") if not layer else (f"{known[layer - 1]:.1%}", f"{blind[layer - 1]:.1%}")
        busiest = f"{share.max() * trace.num_experts:.2f}"
        never = str(np.count_nonzero(share == 0))
        rows.append((brief(name), str(share.argmax()), busiest, never, *hits))
    of = f" of {brief(trace.model)}" if trace.model else ""
    head = f"Routing trace{of}: {counted(trace.num_tokens, 'token', 'tokens')}, {_shape(trace)}"
    foot = [
        "foreseen: the share of tokens that go to the likeliest expert after the one before;",
        "without: the share that go to the layer's likeliest expert. Both of tokens held out.",
    ]
    return Page([f"{head}, top {trace.top_k}"], rows, foot)


def _shape(found: RoutingTrace | ExpertPlacement) -> str:
    layers = counted(found.num_layers, "layer", "layers")
    return f"{layers} of {counted(found.num_experts, 'expert', 'experts')}"


def _head(placement: ExpertPlacement) -> list[str]:
    of = f" of {brief(placement.model)}" if placement.model else ""
    ranks = counted(placement.num_ranks, "rank", "ranks")
    nodes = f" of {placement.nodes} nodes" if placement.nodes > 1 else ""
    copies = sum(len(holders) > 1 for experts in placement.ranks for holders in experts)
    head = [f"Placement{of}: {_shape(placement)} on {ranks}{nodes}"]
    if copies:
        head.append(f"{counted(copies, 'expert is', 'experts are')} on several ranks")
    if (report := placement.report) is not None:
        head.append(
            f"learnt from {counted(report.tokens, 'token', 'tokens')}, judged by "
            f"{report.held_out_tokens} others (top {report.top_k})"
        )
    return head


def _score_titles(placement: ExpertPlacement) -> tuple[str, ...]:
    node = ("tokens change node",) if placement.nodes > 1 else ()
    return ("placement", "tokens change rank", *node, "fullest rank, by the mean")


def _score_row(name: str, score: PlacementScore, placement: ExpertPlacement) -> tuple[str, ...]:
    node = (f"{score.node_changes:.1%}",) if placement.nodes > 1 else ()
    return (name, f"{score.rank_changes:.1%}", *node, f"{score.largest_load:.2f}")


def _gain(contiguous: PlacementScore, score: PlacementScore, where: str) -> str:
    before, after = contiguous.rank_changes, score.rank_changes
    if not before:
        return f"{where}tokens stay on their rank, wherever experts are.".capitalize()
    line = (
        f"{where}tokens change rank {after / before:.2f} times as often as with contiguous experts."
    )
    return line[:1].upper() + line[1:]


def _by_layer(
    placement: ExpertPlacement, contiguous: PlacementScore, score: PlacementScore
) -> list[str]:
    """Lines of a small table."""
    rows = [("to layer", "contiguous", "this placement")]
    shares = zip(placement.layers[1:], contiguous.by_layer, score.by_layer, strict=True)
    rows += [(brief(name), f"{before:.1%}", f"{after:.1%}") for name, before, after in shares]
    return ["Tokens that change rank:", *(f"  {line}" for line in aligned(rows))]
