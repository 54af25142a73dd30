"""What a plan counts with: the costs of a model, measured, estimated or known before."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyparflow.comm import launcher
from hyparflow.comm.log import users_stack_level
from hyparflow.engine.compiled.section_sizes import SectionSizes
from hyparflow.engine.sequence.position_trial import find_cores
from hyparflow.formats.text import shortened
from hyparflow.launching.cores import intra_op_threads
from hyparflow.model.checks import check_can_cut, check_model
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.cluster import Cluster
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs.estimate import estimate
from hyparflow.planning.costs.lengths import LONG, costs_at_length
from hyparflow.planning.costs.measure import measure
from hyparflow.planning.costs.measure_attention import attention_of
from hyparflow.planning.costs.measure_sections import sections_of
from hyparflow.planning.costs.model_weights import mixtures_of, weights_of
from hyparflow.planning.costs.tensor_sizes import used_weights
from hyparflow.planning.search.problem import limited

__all__ = ["check_planned", "costs_of_graph", "costs_of_model"]

_MOST_ROWS = 2**31 - 1  # of a batch: what MPI counts to


def check_planned(model: Any, batch_size: int, costs: Any) -> int:
    """Check the arguments of `plan`; returns the number of rows as an integer."""
    check_model(model)
    check_can_cut(model)
    if not model.built:
        raise ValueError(
            "A plan needs a model that is built, so that its shapes are known. Received: "
            f"'{model.name}', which is not. Begin it with keras.Input, or call its `build`."
        )
    if not isinstance(costs, str | os.PathLike | Costs):
        raise ValueError(
            '`costs` must be "measure", "estimate", or a file that Costs.save wrote. '
            f"Received: costs={shortened(costs)}"
        )
    return limited("batch_size", batch_size, _MOST_ROWS)


def costs_of_model(
    model: Any,
    costs: str | Path | Costs,
    batch_size: int,
    cluster: Cluster,
    say: Callable[[str], None] = lambda text: None,
    faster_kernels: bool = True,
    length: int | None = None,
    divides: bool = False,
) -> Costs:
    """The costs of a model; arguments as for `costs_of_graph`."""
    batch_size = check_planned(model, batch_size, costs)
    graph = FlatGraph(model, opened_graph(model))
    return costs_of_graph(graph, costs, batch_size, cluster, say, faster_kernels, length, divides)


def costs_of_graph(
    graph: FlatGraph,
    costs: str | Path | Costs,
    batch_size: int,
    cluster: Cluster,
    say: Callable[[str], None],
    faster_kernels: bool = True,
    length: int | None = None,
    divides: bool = False,
) -> Costs:
    """The costs that `plan` was told to use.

    Args:
        graph: the model's graph.
        costs: "measure", "estimate", a file that `Costs.save` wrote, or costs.
        batch_size: rows of the global batch.
        cluster: the machine.
        say: called with a line of progress.
        faster_kernels: as for `measure`.
        length: of sequences, where the model leaves it open; None if no data tell.
        divides: whether sequences must be divided; if not, the plan may choose.

    Raises:
        ValueError: if the costs are those of another model, or its sequences cannot be divided.
    """
    model = graph.model
    optimizer = model.optimizer if model.compiled else None
    if isinstance(costs, str) and costs in ("measure", "estimate"):
        attention, sections = _division(graph, length, costs == "measure", divides, faster_kernels)
        if costs == "estimate":
            sized = graph if length is None else graph.at_length(length)
            found = estimate(sized, optimizer, length=length, attention=attention)
            return dataclasses.replace(found, sections=sections)
        _warn_of_threads(cluster.ranks_per_node)
        find = functools.partial(
            measure,
            rows=_sizes_to_measure(batch_size, cluster.num_ranks),
            optimizer=optimizer,
            ranks_per_node=cluster.ranks_per_node,
            say=say,
            faster_kernels=faster_kernels,
        )
        if length is None:
            return find(graph)
        found = costs_at_length(graph, length, find)
        return dataclasses.replace(found, attention=attention, sections=sections)
    known = costs if isinstance(costs, Costs) else Costs.load(costs)
    same = len(known.operations) == len(graph.calls) and known.used == used_weights(graph)
    if not same or len(known.tensors) != len(graph.tensors):
        raise ValueError(
            "Costs must be of the model that is planned. Received: costs of "
            f"{len(known.operations)} operations with {len(known.weights)} weights for a model of "
            f"{len(graph.calls)} with {len(model.variables)}"
        )
    if length not in (None, known.length) or (divides and not known.attention):
        raise ValueError(
            "Costs must be of sequences as long as those that are planned, and tell what attention "
            f"costs where these are divided. Received: sequence_length={length}, and costs of "
            f"sequences of {known.length} positions and of {len(known.attention)} attention "
            "layers. Measure again with this length."
        )
    return _with_experts(known, graph)


def _with_experts(known: Costs, graph: FlatGraph) -> Costs:
    """Costs that also know the experts of their model: files of earlier versions do not."""
    pairs = zip(known.weights, weights_of(graph.model), strict=True)
    weights = tuple(dataclasses.replace(old, num_experts=new.num_experts) for old, new in pairs)
    return dataclasses.replace(known, weights=weights, mixtures=mixtures_of(graph))


def _division(
    graph: FlatGraph, length: int | None, measured: bool, divides: bool, faster_kernels: bool
) -> tuple[tuple[Attention, ...], tuple[SectionSizes, ...]]:
    """What attention and what lies between costs where sequences are divided, if they may be."""
    if length is None:
        if divides:
            raise ValueError(
                "A plan that divides sequences must know how long they are. Received: no "
                "`sequence_length`. Pass the number of positions of a sequence."
            )
        return (), ()
    if not divides and length <= LONG:
        return (), ()
    try:
        found = find_cores(graph, length)
    except ValueError:
        if divides:
            raise
        return (), ()
    sections = sections_of(graph, found.cores, faster_kernels)
    return attention_of(graph, found, measured), sections


def _warn_of_threads(ranks_per_node: int) -> None:
    threads, cores = intra_op_threads(), len(launcher.usable_cores())
    if not launcher.is_launched() and threads > max(1, cores // ranks_per_node):
        warnings.warn(
            f"Costs are measured with {threads} threads, but {ranks_per_node} ranks on {cores} "
            "cores would have fewer each. Set TF_NUM_INTRAOP_THREADS, TF_NUM_INTEROP_THREADS and "
            "OMP_NUM_THREADS before TensorFlow starts, or use the command `hyparflow plan`, which "
            "does it.",
            stacklevel=users_stack_level(),
        )


def _sizes_to_measure(batch_size: int, num_ranks: int) -> list[int]:
    """Sizes of micro-batches that bracket those in question, at most a factor of 8 apart.

    A single row is one of them: a line through two larger sizes is inexact there, as errors of
    their times add up.
    """
    sizes = [batch_size]
    while sizes[-1] > max(1, min(8, batch_size // num_ranks)):
        sizes.append(max(1, sizes[-1] // 4))
    return sorted({1, *sizes})
