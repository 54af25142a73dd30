"""Builds what one rank needs to train its part of a model: stage, edges, update, state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow import keras_internals, lowering, masks
from hyparflow.actions import Edge
from hyparflow.comm import Communicator, World
from hyparflow.engine import Engine, Program
from hyparflow.gradients import Reducer, SharedGroup
from hyparflow.grid import Grid
from hyparflow.head import Head
from hyparflow.layout import Layout
from hyparflow.losses import LossTerms
from hyparflow.metric_state import MetricState
from hyparflow.options import Options
from hyparflow.partition import Partitioning
from hyparflow.schedule import forward_only, make_schedule
from hyparflow.stage import Body, Stage, graph_body, model_body
from hyparflow.sync import WeightSync
from hyparflow.transport import Transport
from hyparflow.update import Update

__all__ = ["Part", "build_part"]


@dataclass
class Part:
    """Everything one rank uses to train its partition."""

    engine: Engine
    update: Update | None
    reducer: Reducer | None
    metrics: MetricState | None
    sync: WeightSync | None
    terms: LossTerms | None
    weigh: Callable[[Any, Any, Any], Any] | None
    pack: Callable[[list[Any]], Any]
    own_loss: bool
    edges: tuple[Edge, ...]
    comms: list[Communicator]

    def program(self, kind: str, schedule: str, grid: Grid, stage: int, count: int) -> Program:
        """The proved list of one step of `count` micro-batches: "train" or "forward"."""
        if kind == "train":
            computation = make_schedule(schedule, grid.num_partitions, count)
        else:
            computation = forward_only(grid.num_partitions, count)
        lowered = lowering.lower(computation, self.edges, training=kind == "train")
        lowering.prove(lowered, self.edges)
        return Program(lowered[stage], max(1, count))


def build_part(
    model: Any, layout: Layout, options: Options, world: World, specs: Any, with_loss: bool
) -> Part:
    """Build this rank's part. Collective: every rank calls it with the same layout.

    Args:
        model: the user's model, built and, for training, compiled.
        layout: from `make_layout`.
        options: the checked parallel arguments.
        world: all ranks.
        specs: types of (x, y, sample weights).
        with_loss: whether loss and metrics are wanted, that is, not for predictions only.
    """
    grid = options.grid
    rank, partition = world.rank, grid.partition(world.rank)
    replica = world.group(grid.replica(rank))
    peers = world.group(partition)
    owners, holders = _holders(model, layout, grid)
    shared_comms = _shared_comms(replica, holders, partition)

    trained = [v for v in model.trainable_variables if partition in holders.get(id(v), ())]
    body, pack = _body(model, layout, partition)
    terms = head = None
    if with_loss:
        symbolic = keras_internals.symbolic_batch(model, specs)
        keras_internals.build_compiled(model, symbolic)
        terms = LossTerms(model, masks.may_make_masks([model]), symbolic)
        head = Head(model, terms, pack, layout.graph is None)
    is_last = grid.is_last(rank)
    gradient_inputs, gradient_outputs = _gradient_positions(layout.partitioning, partition)
    stage = Stage(
        body,
        trained,
        gradient_inputs,
        gradient_outputs,
        head if is_last else None,
        eager=model.compiled and bool(model.run_eagerly),
    )
    engine = Engine(
        stage,
        partition,
        layout.partitioning,
        _transport(layout, replica),
        layout.masked,
        grid.describe(rank),
        world.board.write,
    )
    part = Part(
        engine,
        None,
        None,
        None,
        None,
        terms,
        None,
        pack,
        head is not None and head.own_loss,
        layout.partitioning.edges,
        [replica, peers, *shared_comms.values()],
    )
    if terms is not None and terms.need_weights:
        part.weigh = _weigher(model, terms)
    if not with_loss:
        part.sync = WeightSync(model, grid, world, replica, peers, owners, lambda: [])
        return part
    part.metrics = MetricState(model, world, updates=is_last or _has_layer_metrics(model))
    if model.optimizer is not None:
        counted = [owners[id(v)] == partition for v in trained]
        part.update = Update(model, trained, counted, replica, regularize=not part.own_loss)
        groups = [
            SharedGroup([i for i, v in enumerate(trained) if holders[id(v)] == who], comm)
            for who, comm in shared_comms.items()
        ]
        part.reducer = Reducer(trained, peers, groups)
    update = part.update
    part.sync = WeightSync(
        model, grid, world, replica, peers, owners, lambda: update.touched if update else []
    )
    return part


def _has_layer_metrics(model: Any) -> bool:
    return any(layer.metrics for layer in keras_internals.all_layers(model, include_self=False))


def _holders(
    model: Any, layout: Layout, grid: Grid
) -> tuple[dict[int, int], dict[int, tuple[int, ...]]]:
    """For each variable (by id): its owner, the first partition that holds it; all its holders.

    A trained variable that no operation uses belongs to partition 0, where its missing gradient
    is noticed as plain Keras notices it.
    """
    holders: dict[int, list[int]] = {}
    if layout.graph is not None:
        for stage in range(grid.num_partitions):
            for variable in layout.graph.variables(layout.partitioning.operations(stage)):
                holders.setdefault(id(variable), []).append(stage)
    for variable in model.trainable_variables:
        holders.setdefault(id(variable), [0])
    return (
        {key: stages[0] for key, stages in holders.items()},
        {key: tuple(stages) for key, stages in holders.items()},
    )


def _shared_comms(
    replica: Communicator, holders: dict[int, tuple[int, ...]], partition: int
) -> dict[tuple[int, ...], Communicator]:
    """One communicator per set of partitions that hold a weight together, made in one order."""
    comms = {}
    for group in sorted({stages for stages in holders.values() if len(stages) > 1}):
        comm = replica.group(int(partition in group))
        if partition in group:
            comms[group] = comm
        else:
            comm.free()
    return comms


def _body(model: Any, layout: Layout, partition: int) -> tuple[Body, Callable[[list[Any]], Any]]:
    if layout.graph is None:
        body = model_body(model)
        return body, lambda flat: keras.tree.pack_sequence_as(body.structure, flat)  # type: ignore[attr-defined]
    functional = layout.graph.functional
    table = layout.partitioning
    body = graph_body(
        layout.graph,
        table.stage_inputs[partition],
        table.stage_outputs[partition],
        table.operations(partition),
        layout.masked,
        is_first=partition == 0,
    )
    count = len(table.stage_outputs[-1])
    return body, lambda flat: keras_internals.output_structure(functional, flat[:count])


def _gradient_positions(table: Partitioning, stage: int) -> tuple[list[int], list[int]]:
    takes = [e.tensor for e in table.edges if e.consumer == stage and e.carries_gradient]
    gives = dict.fromkeys(
        e.tensor for e in table.edges if e.producer == stage and e.carries_gradient
    )
    return (
        [table.stage_inputs[stage].index(tensor) for tensor in takes],
        [table.stage_outputs[stage].index(tensor) for tensor in gives],
    )


def _transport(layout: Layout, replica: Communicator) -> Transport:
    edges = layout.partitioning.edges
    if layout.graph is None:
        return Transport(replica, edges, [], [], fixed_shapes=True)
    tensors = layout.graph.tensors
    dtypes = [np.dtype(tf.as_dtype(tensors[e.tensor].dtype).as_numpy_dtype) for e in edges]
    crossing = {e.tensor for e in edges} | set(layout.graph.inputs)
    fixed = layout.graph.shapes_follow_rows() and all(
        None not in tensors[n].shape[1:] for n in crossing
    )
    return Transport(replica, edges, dtypes, [e.tensor in layout.masked for e in edges], fixed)


def _weigher(model: Any, terms: LossTerms) -> Callable[[Any, Any, Any], Any]:
    """A compiled function (x, y, sample weights) -> W of each loss term.

    Where masks may reach the losses it calls the whole model for them; TensorFlow prunes
    everything that the masks do not depend on, which leaves a comparison or two on the inputs.
    """
    functional = keras_internals.opened_graph(model)
    shapes = [] if functional is None else [x.shape[1:] for x in functional.outputs]
    stand_in = functional is not None and not any(None in shape for shape in shapes)
    stand_in = stand_in and not masks.may_make_masks([model])

    def weigh(x: Any, y: Any, sample_weight: Any) -> Any:
        if stand_in:
            rows = tf.shape(keras.tree.flatten(y)[0])[0]
            zeros = [tf.zeros([rows, *shape], keras.config.floatx()) for shape in shapes]
            y_pred = keras_internals.output_structure(functional, zeros)
        else:
            y_pred = keras_internals.call_model(model, x, False)
        return terms.weights(y, y_pred, sample_weight)

    return tf.function(weigh, autograph=False, reduce_retracing=True)
