"""`hyparflow.plan`: from a model and a machine to a plan. Needs no MPI."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hyparflow.comm import abort, launcher
from hyparflow.comm.log import configure
from hyparflow.comm.progress import progress
from hyparflow.formats.argument_checks import count_of
from hyparflow.formats.sizes import parse_bytes
from hyparflow.formats.text import shortened
from hyparflow.model.arguments import named
from hyparflow.model.experts.balanced_layers import BalancedLayers
from hyparflow.model.fingerprint import model_fingerprint
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers, opened_graph
from hyparflow.model.unit_layout import Blocks
from hyparflow.options import planned_names, resolve, taking_options
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.partition import Partitioning, make_partitioning
from hyparflow.planning.check_mixtures import check_mixtures
from hyparflow.planning.costs.cluster import Cluster, cluster_of
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs_of_model import check_planned, costs_of_graph
from hyparflow.planning.make_plan import make_plan
from hyparflow.planning.plan import Plan
from hyparflow.planning.search.layouts import best_of
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import (
    Candidate,
    Constraints,
    Problem,
    Saving,
    constrained,
    limited,
)
from hyparflow.planning.search.saving import search

__all__ = ["plan"]


@named
@taking_options(planned_names(), alone=True)
@abort.alike()
def plan(
    model: Any,
    *,
    batch_size: int,
    num_ranks: int | None = None,
    memory_limit: str | int | None = None,
    sequence_length: int | None = None,
    cluster: Cluster | str | Path | None = None,
    costs: str | Path | Costs = "measure",
    kernels: str = "auto",
    say: Callable[[str], None] | None = None,
    **decided: Any,
) -> Plan:
    """Find the fastest layout of a model that fits in memory.

    A layout is a number of partitions, replicas and micro-batches, a schedule, and the places
    where the model is cut. One process finds it, without MPI, for a machine that may be another.

    Args:
        model: A Functional or Sequential Keras model. If it is compiled, the state of its
            optimizer is counted.
        batch_size: Integer. The number of rows of the global batch.
        num_ranks: Integer or `None`. The number of ranks, all on one node. Give this or `cluster`.
        memory_limit: Integer, string or `None`. The memory that training may add to a rank, in
            bytes, or as text such as `"8GiB"`. `None` sets no limit.
        sequence_length: Integer or `None`. The number of positions of a sequence, where the model
            leaves it open (`keras.Input((None,))`). With it, layouts that divide sequences are
            considered where these are longer than 1024, or asked for. `None` counts 32 positions.
        cluster: A `hyparflow.Cluster`, the path of a file that holds one, or `None`. The machine
            to plan for; all of its ranks are used.
        costs: String, path or `hyparflow.Costs`. `"measure"` measures the layers on this machine
            with the threads that TensorFlow has in this process, `"estimate"` counts operations.
            Anything else is the path of a file that `Costs.save` wrote, or the costs themselves.
        kernels: String. `"auto"` or `"keras"`, as for `hyparflow.fit`: what is measured.
        say: Callable or `None`. Called with a line of text for each step of planning. `None` shows
            these steps as they go on, if planning takes more than two seconds.
        decided: The parallel arguments that are already decided. `None` leaves one to the plan.
        {options}

    Returns:
        A `hyparflow.Plan`. It can be printed, drawn with `plot`, saved with `save`, and passed to
        `hyparflow.fit` as `plan`.

    Raises:
        ValueError: If an argument is not valid, the model cannot be cut, or no layout fits in
            `memory_limit`.

    Example::

        plan = hf.plan(model, batch_size=256, num_ranks=8, memory_limit="8GiB")
        print(plan)
        plan.save("plan.json")
    """
    batch_size = check_planned(model, batch_size, costs)
    here = cluster is None
    cluster = _cluster(cluster, num_ranks)
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    constraints = constrained(cluster.num_ranks, limit, **decided)
    if sequence_length is not None:
        sequence_length = limited("sequence_length", sequence_length, 2**31 - 1)
    check_mixtures(model, constraints)
    graph = FlatGraph(model, opened_graph(model))
    _check_lpp(constraints.options.lpp, len(graph.calls))
    with _shown(say) as tell:
        known = costs_of_graph(
            *(graph, costs, batch_size, cluster, tell),
            faster_kernels=resolve(1, kernels=kernels).kernels == "auto",
            length=sequence_length,
            divides=constraints.options.divides_sequences,
        )
        made = _best_plan(graph, known, cluster, batch_size, constraints, tell)
    if not math.isfinite(made.step_seconds):
        raise ValueError(
            "A plan needs costs and links by which a step takes a finite time. "
            f"Received: {cluster} and costs by which it takes {made.step_seconds} s"
        )
    cores = len(launcher.usable_cores())
    if here and cores < made.num_ranks:
        made = dataclasses.replace(made, cores=cores)
    if model.compiled:
        return made
    return dataclasses.replace(made, costs=f"{made.costs}, of a model without an optimizer")


def _best_plan(
    graph: FlatGraph,
    known: Costs,
    cluster: Cluster,
    batch_size: int,
    constraints: Constraints,
    say: Callable[[str], None],
) -> Plan:
    """The plan of the fastest layout that fits.

    Args:
        graph: the model's.
        known: its costs.
        cluster, batch_size, say: as for `plan`.
        constraints: what the user fixed.
    """
    model, limit = graph.model, constraints.memory_limit
    operations = graph.operation_graph(model.trainable_variables)
    whole = make_partitioning(operations, (0, len(operations.operations)))
    balanced = tuple(BalancedLayers(all_layers(model)).names)
    problem = Problem(operations, known, cluster, batch_size, balanced=balanced)
    count = constraints.options.num_microbatches
    rows = batch_size / cluster.num_ranks / (count if isinstance(count, int) else 1)
    found = search(_with_savings(problem, Blocks(graph), whole, rows), constraints, say)
    alone = Candidate(Grid(num_partitions=1, num_replicas=1), 1, "1f1b", whole)
    best, single = best_of(found, limit), Prediction(problem, alone)
    return make_plan(model.name, model_fingerprint(model), problem, best, single, found, limit)


def _with_savings(
    problem: Problem, blocks: Blocks, whole: Partitioning, rows: float
) -> Callable[[Saving], Problem]:
    """A function that gives the problem with a saving, and with the units that then are compiled.

    Args:
        problem: without one.
        blocks: of the model.
        whole: the model as one stage.
        rows: of a typical micro-batch.
    """

    def with_saving(saving: Saving) -> Problem:
        if saving.sequences is not None:  # sections between attention are compiled
            return dataclasses.replace(problem, saving=saving)
        units = blocks.units(problem.graph, whole, rows, fine=saving.recompute is not None)
        return dataclasses.replace(problem, saving=saving, units=units)

    return with_saving


def _check_lpp(lpp: Sequence[int] | None, count: int) -> None:
    if lpp is not None and sum(lpp) != count:
        raise ValueError(
            f"`lpp` of a plan must add up to the {count} operations of the model. "
            f"Received: lpp={shortened(list(lpp))}, which adds up to {sum(lpp)}"
        )


def _cluster(cluster: Cluster | str | Path | None, num_ranks: int | None) -> Cluster:
    if num_ranks is not None:
        num_ranks = count_of("num_ranks", num_ranks)
    if cluster is None:
        if num_ranks is None:
            raise ValueError("A plan needs `num_ranks` or a `cluster`. Received: neither")
        return Cluster(nodes=1, ranks_per_node=num_ranks)
    cluster = cluster_of(cluster)
    if num_ranks not in (None, cluster.num_ranks):
        raise ValueError(
            "`num_ranks` must be the ranks of the cluster, nodes x ranks_per_node, or be left "
            f"out. Received: num_ranks={num_ranks} for a cluster of {cluster.num_ranks} ranks"
        )
    return cluster


@contextlib.contextmanager
def _shown(say: Callable[[str], None] | None) -> Iterator[Callable[[str], None]]:
    """While open, what it yields takes lines of progress: `say`, or it shows them by itself."""
    if say is not None:
        yield say
        return
    configure()
    with progress("planning", is_shown=launcher.told_rank() == 0) as shown:
        yield shown.say
