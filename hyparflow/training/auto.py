"""`strategy="auto"`, `recompute="auto"`: the leader plans for the machine that the ranks are on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.free_memory import free_memory, reserved_by_threads
from hyparflow.comm.leader import LEADER, on_leader
from hyparflow.comm.log import STATUS
from hyparflow.comm.portable_errors import portable
from hyparflow.comm.progress import progress
from hyparflow.comm.world import World
from hyparflow.engine.pooled_memory import pooled_memory
from hyparflow.formats.argument_checks import is_auto
from hyparflow.formats.sizes import size_text
from hyparflow.model.checks import require_compiled
from hyparflow.model.keras_internals.data import is_array_data, open_stream
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.options import declared, is_given, planned_names, resolve
from hyparflow.planning.check_mixtures import check_mixtures
from hyparflow.planning.costs.cluster import Cluster
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs.measure import LONG_PIECE
from hyparflow.planning.costs_of_model import costs_of_model
from hyparflow.planning.plan import Plan
from hyparflow.planning.plan_model import plan
from hyparflow.planning.search.problem import constrained
from hyparflow.training.call import DEFAULT_BATCH, is_shown
from hyparflow.training.checks import check_labels
from hyparflow.training.data_arguments import array_source, batch_rows, check_data, reading
from hyparflow.training.plain_model import OF_ONE_PROCESS

__all__ = ["PlanCache", "plan_fit"]

_SHARE = 0.9  # of the memory that is free now; the rest is for the system
_TO_MEASURE = 1 << 28  # bytes that measuring takes beside weights, gradients and slots of a piece
_WHAT = "the leader's plan"
_NOTHING_TO_PLAN = (
    "hyparflow plans nothing: model '{name}' has no graph that could be cut, for it is not "
    "Functional or not built; each rank trains a replica, and computes each forward once"
)


@dataclass
class PlanCache:
    """The plans of one model's calls and, on the leader, their costs.

    Attributes:
        last: the planned arguments of the last call.
    """

    plans: dict[Any, Plan | None] = field(default_factory=dict)
    costs: dict[Any, Costs] = field(default_factory=dict)
    last: dict[str, Any] | None = None
    _optimizers: list[Any] = field(default_factory=list)

    def number(self, optimizer: Any) -> int:
        """A number that identifies an optimizer, which is kept so that no other gets its id."""
        for number, other in enumerate(self._optimizers):
            if other is optimizer:
                return number
        self._optimizers.append(optimizer)
        return len(self._optimizers) - 1


def plan_fit(
    model: Any,
    world: World,
    arguments: dict[str, Any],
    parallel: dict[str, Any],
    known: PlanCache,
) -> dict[str, Any]:
    """Plan a call of `fit` on all ranks. Collective.

    Args:
        model: the user's model.
        world: all ranks.
        arguments: the arguments of Keras's `fit`, by name. On the leader, the opened stream
            replaces a stream, so that no batch is drawn twice.
        parallel: the arguments of `hyparflow.parallelize`; values that they give stay.
        known: the plans of earlier calls; the plan of this one is added.

    Returns:
        `parallel` with the best plan; unchanged for a model that cannot be cut, which only data
        parallelism can train.

    Raises:
        ValueError: on all ranks, if there are no data, no layout agrees with `parallel`, or none
            fits in memory.
    """
    require_compiled(model, "fit")
    decided = _decided(parallel, world.size)
    rows, length = _batch(model, world, arguments)
    if parallel["sharded_data"]:  # each replica takes a batch of its own stream
        each = decided["num_partitions"] or 1
        replicas: int = decided["num_replicas"] or world.size // each
        decided["num_replicas"] = replicas
        rows *= replicas
    faster = parallel["kernels"] == "auto"
    key = (rows, length, known.number(model.optimizer), faster, repr(decided))
    if key not in known.plans:
        show = is_shown(arguments)
        planned = functools.partial(_plan, model, world, (rows, length), decided, known, faster)
        if opened_graph(model) is not None:
            known.plans[key] = _plan_for_ranks(world, planned, show)
        else:
            known.plans[key] = None
            if show and world.rank == LEADER:
                STATUS.info(_NOTHING_TO_PLAN.format(name=model.name))
    known.last = _arguments(known.plans[key], parallel, world.size)
    return parallel | known.last


def _decided(parallel: dict[str, Any], size: int) -> dict[str, Any]:
    """The arguments that are not left to the plan; None for the others."""
    given = {
        name: parallel[name] if is_given(name, parallel[name]) else None for name in planned_names()
    }
    if size == 1:  # the batch is not cut, whatever was asked of more ranks
        layout = dict.fromkeys(("num_partitions", "num_replicas", "num_microbatches"), 1)
        kept = {name: given[name] for name in _planned_for_one_process()}
        return dict.fromkeys(planned_names()) | layout | kept
    if not is_auto(parallel["strategy"]):
        options = resolve(size, **{name: parallel[name] for name in ("strategy", *planned_names())})
        given["num_partitions"] = options.num_partitions
        given["num_replicas"] = options.num_replicas
        given["num_sequence_shards"] = options.num_sequence_shards
    return given


def _arguments(plan: Plan | None, parallel: dict[str, Any], size: int) -> dict[str, Any]:
    """What a plan puts in the place of parallel arguments."""
    if size == 1:
        if plan is None:
            return {"recompute": None}
        return {name: getattr(plan, name) for name in _planned_for_one_process()}
    if plan is None:
        again = parallel["recompute"]
        return {"strategy": None, "plan": None, "recompute": None if is_auto(again) else again}
    # The plan includes the decided arguments.
    usual = {name: declared()[name].default for name in planned_names()}
    return {"strategy": None, "plan": plan, **usual}


def _planned_for_one_process() -> list[str]:
    return [name for name in planned_names() if name in OF_ONE_PROCESS]


def _batch(model: Any, world: World, arguments: dict[str, Any]) -> tuple[int, int | None]:
    """Rows of a batch of `fit`, of one replica if data are sharded, and positions of a sequence."""
    x = arguments.get("x")
    check_data("x", x)
    if is_array_data(x):
        parts = [arguments.get(name) for name in ("y", "sample_weight", "class_weight")]
        check_labels(model, parts[0], "fit")
        source = array_source(x, *parts)  # makes all checks
        rows = arguments.get("batch_size")
        count = int(rows or batch_rows(source, arguments.get("steps_per_epoch")))
        return count, _length(model, x)

    def look() -> tuple[int, int | None]:
        stream = open_stream(x, **reading("fit", arguments))
        arguments["x"] = stream
        spec = stream.spec[0] if isinstance(stream.spec, tuple) else stream.spec
        return stream.rows or DEFAULT_BATCH, _length(model, spec)

    return on_leader(world, look, "the rows of a batch")


def _length(model: Any, x: Any) -> int | None:
    """The positions of a sequence, where the model leaves it open and the data tell it."""
    functional = opened_graph(model)
    inputs = [] if functional is None else functional.inputs
    leaves = keras.tree.flatten(x)
    if len(leaves) != len(inputs):
        return None
    pairs = zip(leaves, inputs, strict=True)
    shapes = [leaf.shape for leaf, tensor in pairs if None in tensor.shape[1:2]]
    return max((shape[1] for shape in shapes if len(shape) > 1 and shape[1]), default=None)


def _plan_for_ranks(world: World, planned: Callable[[Any], Plan], show: bool) -> Plan:
    """The plan that `planned(say)` makes on the leader; `say` shows its progress."""
    world.begin_call()
    if world.rank != LEADER:
        return _follow(world)

    def say(line: str) -> None:  # keeps the wait of the other ranks from its deadline
        shown.say(line)
        world.board.write(f"plans: {line}")
        world.broadcast_object((None, None), LEADER, _WHAT)

    try:
        with progress("planning", show) as shown:
            found = planned(say)
    except Exception as error:
        world.broadcast_object((None, portable(error)), LEADER, _WHAT)
        raise abort.mark_collective(error) from None
    world.broadcast_object((found, None), LEADER, _WHAT)
    if show:
        STATUS.info(f"hyparflow plans:\n{found}\n")
    return found


def _follow(world: World) -> Plan:
    found: Plan | None = None
    while found is None:
        found, recipe = world.broadcast_object(None, LEADER, _WHAT)
        if recipe is not None:
            make, arguments = recipe
            raise abort.mark_collective(make(*arguments))
    return found


def _plan(
    model: Any,
    world: World,
    batch: tuple[int, int | None],
    decided: dict[str, Any],
    known: PlanCache,
    faster_kernels: bool,
    say: Any,
) -> Plan:
    batch_size, length = batch
    per_node = world.ranks_per_node
    cluster = Cluster(nodes=math.ceil(world.size / per_node), ranks_per_node=per_node)
    # Measuring takes long: refuse before it.
    constraints = constrained(cluster.num_ranks, **decided)
    check_mixtures(model, constraints)
    divides = constraints.options.divides_sequences
    key = (*batch, divides, known.number(model.optimizer), faster_kernels)
    if key not in known.costs:
        given = model, "measure", batch_size, cluster, say, faster_kernels, length, divides
        known.costs[key] = _measured(model, world, functools.partial(costs_of_model, *given))
    return plan(
        model,
        batch_size=batch_size,
        sequence_length=length,
        cluster=cluster,
        costs=known.costs[key],
        say=say,
        memory_limit=_memory_limit(world),
        **decided,
    )


def _memory_limit(world: World) -> int:
    """The bytes that a layout may need on each rank."""
    free = free_memory(world.memory_sharers) + pooled_memory() - reserved_by_threads()
    return max(1, int(free * _SHARE))


def _measured(model: Any, world: World, measure: Callable[[], Costs]) -> Costs:
    """The costs that are measured.

    Raises:
        ValueError: if there is too little memory to measure them.
    """
    weights = sum(map(bytes_of, model.trainable_variables))
    needed = _TO_MEASURE + 3 * min(weights, LONG_PIECE) + reserved_by_threads(measuring=True)
    free = free_memory(world.memory_sharers)
    try:
        if free < needed:  # or TensorFlow would end the process
            raise MemoryError(f"about {size_text(needed)} are needed")
        return measure()
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise ValueError(
            "What is measured before a plan must fit in memory: some layers with their weights, "
            f"gradients and activations. Received: {size_text(free)} that rank 0 may take; "
            f"{str(error).splitlines()[0]}. Raise the limit, use smaller batches, or name a "
            "layout (`num_partitions`, `num_replicas`) and recompute='block' or 'segments'."
        ) from error
