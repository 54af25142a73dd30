"""``hyparflow plan``: how to spread a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from hyparflow.cli.decided_options import decided_options
from hyparflow.cli.model_file import load_model
from hyparflow.cli.output_files import require_outputs
from hyparflow.cli.refused import Refused
from hyparflow.comm import launcher, log
from hyparflow.comm.progress import progress
from hyparflow.launching.memory_pool import choose_memory_pool
from hyparflow.options import planned_names

if TYPE_CHECKING:
    from hyparflow.planning.costs.cluster import Cluster
    from hyparflow.planning.plan import Plan

__all__ = ["plan"]


@click.command(short_help="Show the fastest layout of a model.")
@click.argument("model")
@click.option(
    "--ranks", type=click.IntRange(1), help="How many ranks to use.  [default: those of --cluster]"
)
@click.option(
    "--batch-size", type=click.IntRange(1), required=True, help="Rows of the global batch."
)
@click.option(
    "--memory-limit", help="What training may add to the memory of a rank, for example 8GiB."
)
@click.option(
    "--sequence-length",
    type=click.IntRange(1),
    help="Positions of a sequence, where the model leaves them open.",
)
@click.option(
    "--cluster", type=click.Path(exists=True), help="The machine, as 'doctor --network' wrote it."
)
@click.option(
    "--nodes", type=click.IntRange(1), help="How many nodes to spread the ranks over.  [default: 1]"
)
@click.option(
    "--costs",
    default="measure",
    show_default=True,
    help='Where costs come from: "measure", "estimate", or a file that --save-costs wrote.',
)
@click.option(
    "--kernels",
    type=click.Choice(["auto", "keras"]),
    default="auto",
    show_default=True,
    help="Whether layers compute by faster kernels, as in training.",
)
@click.option("--save-costs", type=click.Path(), help="Write the costs to this file.")
@click.option(
    "--threads",
    type=click.IntRange(1, 4096),
    help="Threads of each rank.  [default: cores / ranks]",
)
@click.option(
    "--optimizer", help="The optimizer of a model that is not compiled, for example adam."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    help="NAME=VALUE: an argument of FUNCTION; may be given several times.",
)
@decided_options(planned_names())
@click.option(
    "--plot", type=click.Path(), help="Draw the plan into this file, for example plan.png."
)
@click.option("--save", type=click.Path(), help="Write the plan to this file, as JSON.")
def plan(model: str, **options: Any) -> None:
    """Show the fastest layout of MODEL that fits in memory.

    MODEL is a file that Keras saved, or FILE.py:FUNCTION, a function that returns a Keras model.
    The layers are measured on this machine; no MPI is needed, and no other machine.
    """
    try:
        _plan(model, **options)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise Refused(str(error)) from error


def _plan(
    model: str,
    ranks: int | None,
    batch_size: int,
    memory_limit: str | None,
    sequence_length: int | None,
    cluster: str | None,
    nodes: int | None,
    costs: str,
    kernels: str,
    save_costs: str | None,
    threads: int | None,
    optimizer: str | None,
    settings: tuple[str, ...],
    plot: str | None,
    save: str | None,
    **decided: Any,
) -> None:
    from hyparflow.planning.costs.costs import Costs
    from hyparflow.planning.search.problem import constrained

    # Refused before minutes of measuring.
    require_outputs(plot, save, save_costs)
    _check_limit(memory_limit)
    machine = _machine(cluster, ranks, nodes)
    constraints = constrained(machine.num_ranks, **decided)
    # A file that is wrong is refused before the model is built.
    wanted = costs if costs in ("measure", "estimate") else Costs.load(costs)
    _be_like_a_rank(threads, machine.ranks_per_node)
    log.configure()
    # The plan goes to standard output, perhaps into a file.
    with progress("planning", stream="stderr", log=_say) as shown:
        shown.say("building the model")
        built = _compiled(load_model(model, settings), optimizer)

        from hyparflow.planning import check_mixtures, costs_of_model, plan_model

        check_mixtures.check_mixtures(built, constraints)
        known = costs_of_model.costs_of_model(
            *(built, wanted, batch_size, machine, shown.say),
            faster_kernels=kernels == "auto",
            length=sequence_length,
            divides=constraints.options.divides_sequences,
        )
        if save_costs:
            known.save(save_costs)
        made = plan_model.plan(
            built,
            batch_size=batch_size,
            memory_limit=memory_limit,
            sequence_length=sequence_length,
            cluster=None if cluster is None and nodes is None else machine,
            num_ranks=machine.num_ranks,
            costs=known,
            say=shown.say,
            **decided,
        )
    _hand_out(made, save, plot)


def _hand_out(made: Plan, save: str | None, plot: str | None) -> None:
    """Show a plan, and write it to the files that were asked for."""
    made.page().show()
    if save:
        made.save(save)
    if plot:
        made.plot(plot)


def _be_like_a_rank(threads: int | None, ranks_per_node: int) -> None:
    """Measure with the threads that a rank will have, and with memory pooled as a rank's is."""
    cores = len(launcher.usable_cores())
    launcher.set_threads(os.environ, threads or max(1, cores // ranks_per_node))
    choose_memory_pool(is_rank=True)


def _compiled(model: Any, optimizer: str | None) -> Any:
    """The model, with this optimizer if it has none of its own."""
    if optimizer is not None and not model.compiled:
        model.compile(optimizer)
    return model


def _check_limit(memory_limit: str | None) -> None:
    """Refuse text that is no number of bytes, before minutes of measuring."""
    from hyparflow.formats.sizes import parse_bytes

    if memory_limit is not None:
        parse_bytes(memory_limit)


def _machine(cluster: str | None, ranks: int | None, nodes: int | None) -> Cluster:
    from hyparflow.planning.costs.cluster import Cluster

    if cluster is not None:
        return Cluster.load(cluster, **_shape(ranks, nodes))
    if ranks is None:
        raise ValueError("A plan needs --ranks or --cluster. Received: neither")
    return Cluster(**_shape(ranks, nodes))


def _shape(ranks: int | None, nodes: int | None) -> dict[str, Any]:
    if ranks is None:
        return {} if nodes is None else {"nodes": nodes}
    nodes = nodes or 1
    if ranks % nodes:
        raise ValueError(
            f"The ranks must be the same on every node. Received: {ranks} ranks on {nodes} nodes"
        )
    return {"nodes": nodes, "ranks_per_node": ranks // nodes}


def _say(line: str) -> None:
    click.echo(line, err=True)
