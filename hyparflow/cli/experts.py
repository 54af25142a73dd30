"""``hyparflow experts``: which rank is to hold which expert, and what a router chose."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import click

from hyparflow.cli.expert_traces import draw_trace, trace
from hyparflow.cli.output_files import require_outputs
from hyparflow.cli.refused import Refused
from hyparflow.formats.plain_files import require_plain

if TYPE_CHECKING:
    from hyparflow.experts.placement import ExpertPlacement
    from hyparflow.experts.trace import RoutingTrace

__all__ = ["experts"]

_FAULTS = (ValueError, ImportError, OSError, MemoryError)


@click.group(short_help="Place the experts of a model on ranks.", subcommand_metavar="COMMAND")
def experts() -> None:
    """Place the experts of a model on ranks by a routing trace, and look at both.

    A routing trace is a file .npz or .csv with the experts that each token was sent to. No MPI is
    needed, and TensorFlow for "trace" only.
    """


experts.add_command(trace)


@experts.command(short_help="Place experts so that few tokens change rank.")
@click.argument("trace", type=click.Path())
@click.option("--ranks", type=click.IntRange(1), required=True, help="How many ranks there are.")
@click.option(
    "--nodes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many nodes they are on.",
)
@click.option(
    "--max-load",
    type=click.FloatRange(1),
    default=1.1,
    show_default=True,
    help="The most tokens of a rank in a layer, by the mean.",
)
@click.option(
    "--replicate",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="How many experts of each layer all ranks hold.",
)
@click.option(
    "--node-cost",
    type=click.FloatRange(1),
    default=4.0,
    show_default=True,
    help="What a change of node costs, by a change of rank.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="The share of tokens to judge by.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="How long to search.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is random."
)
@click.option("--save", type=click.Path(), help="Write the placement to this file: .json or .csv.")
@click.option(
    "--plot", type=click.Path(), help="Draw it into this file, for example placement.png."
)
def place(trace: str, ranks: int, save: str | None, plot: str | None, **options: Any) -> None:
    """Place the experts of TRACE on ranks so that few tokens change rank between layers.

    It shows the share that does, of tokens that the search has not seen, beside those of experts in
    their order and at random.
    """
    try:
        require_outputs(plot, save)
        from hyparflow.experts.place import place_experts

        found = place_experts(trace, ranks, **options)
        found.page().show()
        if save:
            found.save(save)
        if plot:
            _plot_placement(plot, found, None)
    except _FAULTS as error:
        raise Refused(str(error)) from error


@experts.command(short_help="Show a placement or a routing trace.")
@click.argument("file", type=click.Path())
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(),
    help="Score the placement on this routing trace, too.",
)
@click.option("--plot", type=click.Path(), help="Draw it into this file, for example affinity.png.")
def show(file: str, trace_file: str | None, plot: str | None) -> None:
    """Show FILE, which is a placement of experts or a routing trace.

    Of a placement: the share of tokens that change rank, layer by layer. Of a trace: how even its
    experts are, and how far an expert tells the next one.
    """
    try:
        require_outputs(plot)
        if _is_trace(file):
            _show_trace(file, trace_file, plot)
        else:
            _show_placement(file, trace_file, plot)
    except _FAULTS as error:
        raise Refused(str(error)) from error


def _is_trace(file: str) -> bool:
    """Whether a file is a routing trace; else it is to be a placement."""
    from hyparflow.experts.csv_head import kind_of_csv
    from hyparflow.experts.trace_files import TRACE_KIND

    require_plain(file, "FILE must be a placement of experts or a routing trace.")
    return zipfile.is_zipfile(file) or kind_of_csv(file) == TRACE_KIND


def _show_trace(file: str, trace_file: str | None, plot: str | None) -> None:
    from hyparflow.experts.page import trace_page
    from hyparflow.experts.trace import RoutingTrace

    if trace_file is not None:
        raise ValueError(
            f"--trace is for placements. Received: {file}, which is a trace itself. "
            "Leave --trace out."
        )
    trace = RoutingTrace.load(file)
    trace_page(trace).show()
    if plot:
        draw_trace(plot, trace)


def _show_placement(file: str, trace_file: str | None, plot: str | None) -> None:
    from hyparflow.experts.page import placement_page
    from hyparflow.experts.placement import ExpertPlacement
    from hyparflow.experts.trace import RoutingTrace

    placement = ExpertPlacement.load(file)
    trace = None if trace_file is None else RoutingTrace.load(trace_file)
    scores = None
    if trace is not None:
        scores = placement.as_contiguous().score(trace), placement.score(trace)
    placement_page(placement, scores, by_layer=True).show()
    if plot:
        _plot_placement(plot, placement, trace)


def _plot_placement(plot: str, placement: ExpertPlacement, trace: RoutingTrace | None) -> None:
    """Draw what goes from rank to rank: of a trace, if there is one, else of the report."""
    from hyparflow.experts.picture import affinity_size, draw_affinity, draw_traffic, traffic_size
    from hyparflow.planning.gantt import new_figure, save_picture

    width, height = traffic_size()
    if trace is None:
        if placement.report is None:
            raise ValueError(
                "A picture of a placement needs tokens. Received: a placement without scores, and "
                "no --trace. Add --trace FILE."
            )
        figure = new_figure(width, height)
        draw_traffic(figure, placement, placement.report.contiguous, placement.report.held_out)
    else:
        wide, high = affinity_size(trace)
        figure = new_figure(max(width, wide), height + high)
        above, below = figure.subfigures(2, 1, height_ratios=[height, high])
        before = placement.as_contiguous().score(trace)
        draw_traffic(above, placement, before, placement.score(trace))
        draw_affinity(below, trace, placement)
    save_picture(figure, plot)
