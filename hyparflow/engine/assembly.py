"""Builds the engine by which one rank trains its part of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from hyparflow.comm import abort
from hyparflow.comm.world import World
from hyparflow.engine.build_stages import build_stages, is_eager
from hyparflow.engine.compiled import choice
from hyparflow.engine.custom_steps.steps import CustomSteps
from hyparflow.engine.engine import Engine
from hyparflow.engine.experts.expert_calls import ExpertCalls, exchanges_tokens
from hyparflow.engine.experts.expert_shards import ExpertShards
from hyparflow.engine.experts.placed_experts import placed_experts
from hyparflow.engine.learner import build_learner
from hyparflow.engine.loss.head import LossHead
from hyparflow.engine.loss.metric_state import MetricState
from hyparflow.engine.loss.penalty import Penalty
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.loss.weigher import Weigher
from hyparflow.engine.rank_engine import Learner, Losses, Pack, RankEngine
from hyparflow.engine.recomputation import (
    announce_nothing_saved,
    require_dividing,
    require_recomputing,
)
from hyparflow.engine.stages.batchnorm import BatchStatistics
from hyparflow.engine.stages.local_stage import LocalStage
from hyparflow.engine.stages.stage_call import StageCall, graph_body, model_body
from hyparflow.engine.transport import Transport
from hyparflow.engine.weights.constants_read import holders_and_readers
from hyparflow.engine.weights.groups import groups_of
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.engine.weights.shards import Shards
from hyparflow.engine.weights.sync import WeightSync
from hyparflow.engine.weights.weight_groups import WeightGroup, weight_groups
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.compiled import build_compiled, symbolic_batch
from hyparflow.model.keras_internals.layers import (
    activity_is_summed,
    all_layers,
    output_structure,
)
from hyparflow.model.layout import ModelCut
from hyparflow.model.unit_layout import units_of, with_graph
from hyparflow.options import Options
from hyparflow.pipeline.units import Units

__all__ = ["build_rank_engine"]


def build_rank_engine(
    model: Any,
    layout: ModelCut,
    options: Options,
    world: World,
    specs: Any,
    with_loss: bool,
    rows: Sequence[int] = (),
) -> RankEngine:
    """Build this rank's part. Collective: every rank calls it with the same layout.

    Args:
        model: the user's model, built and, for training, compiled.
        layout: from `cut_model`.
        options: the checked parallel arguments.
        world: all ranks.
        specs: types of (x, y, sample weights).
        with_loss: whether to compute loss and metrics; False for predictions.
        rows: the numbers of rows of micro-batches, as far as they are known.
    """
    require_recomputing(choice.agree(world), options.recompute)
    require_dividing(choice.compiler(), options.divides_sequences)
    activity_is_summed()  # what is traced may not be the place to find out
    peers = groups_of(options.grid, world).peers
    statistics = BatchStatistics(model, options.batchnorm, peers)
    own = CustomSteps(model, peers, statistics)
    units = None
    if not options.divides_sequences:
        may_share = options.grid.num_peers == 1 or not exchanges_tokens(model, options)
        layout, units = _units(model, layout, statistics, own, rows, options.recompute, may_share)
        if with_loss:
            announce_nothing_saved(world.rank, options.recompute, layout.partitioning, units)
    place = Ownership(model, layout, options.grid, world)
    expert_shards = _expert_shards(model, place, options)
    sparse = options.kernels == "auto" and not (model.compiled and model.jit_compile)
    experts = ExpertCalls(model, place, statistics.order, expert_shards, sparse)
    bodies, pack = _bodies(model, layout, place.stages)
    groups = weight_groups(place.trained, place.stages, units)
    losses = _losses(model, layout, place, specs, pack, own, groups) if with_loss else None
    learner = shards = None
    if losses is not None and model.optimizer is not None and "train_step" not in own:
        shards = _shards(model, place, options, groups)
        learner = build_learner(model, layout, place, options, groups, shards, expert_shards)
    stages, sequences = build_stages(
        *(model, layout, place, options, statistics, experts, bodies, units),
        losses.head if losses is not None and place.is_last else None,
    )
    return RankEngine(
        engine=_engine(layout, place, stages, is_eager(model) or options.divides_sequences),
        stages=stages,
        sync=_sync(model, layout, place, losses, learner, own, shards, expert_shards, specs),
        pack=pack,
        statistics=statistics,
        experts=experts,
        own=own,
        partitioning=layout.partitioning,
        losses=losses,
        learner=learner,
        tag_limit=place.replica.tag_limit,
        sequences=sequences,
        num_chunks=options.known_chunks,
    )


def _shards(
    model: Any, place: Ownership, options: Options, groups: Sequence[WeightGroup]
) -> Shards | None:
    """Which replica updates which weights, if the optimizer's state is sharded."""
    sharded = options.shard_optimizer and options.grid.num_peers > 1
    return Shards(model, place, groups) if sharded else None


def _expert_shards(model: Any, place: Ownership, options: Options) -> ExpertShards | None:
    """Which experts this rank has, if replicas share them out."""
    count, placement = options.grid.num_peers, options.placement
    if placement is None and (count == 1 or not options.expert_parallel):
        return None
    try:
        placed = placed_experts(model, count, placement, options.expert_parallel)
    except ValueError as error:
        raise abort.mark_collective(error) from None
    return None if placed is None else ExpertShards(model, place, placed)


def _units(
    model: Any,
    layout: ModelCut,
    statistics: BatchStatistics,
    own: CustomSteps,
    rows: Sequence[int],
    recompute: str | None,
    may_share: bool,
) -> tuple[ModelCut, tuple[FlatGraph, Units] | None]:
    """The layout, and the graph and units if blocks that repeat are compiled once.

    Not if `may_share` is False.
    """
    has_own_steps = any(f"{name}_step" in own for name in ("train", "test", "predict"))
    if not choice.compiler().shares or is_eager(model) or has_own_steps:
        return layout, None
    fine = recompute is not None
    opened = with_graph(model, layout, fine)
    alike = opened.graph is not None and statistics.allows_sharing(opened.graph) and may_share
    units = units_of(opened, max(rows, default=1), fine, alike) if alike or fine else None
    return (layout if units is None else opened), units


def _sync(
    model: Any,
    layout: ModelCut,
    place: Ownership,
    losses: Losses | None,
    learner: Learner | None,
    own: CustomSteps,
    shards: Shards | None,
    experts: ExpertShards | None,
    specs: Any,
) -> WeightSync:
    weigh = None if losses is None else losses.weigh
    masking = []
    if weigh is not None and place.grid.num_partitions > 1:
        masking = weigh.reads(specs, model.variables)
    return WeightSync(
        model,
        place.grid,
        place.world,
        place.replica,
        place.peers,
        holders_and_readers(model, layout, place, masking),
        (lambda: []) if learner is None else (lambda: learner.update.touched),
        "train_step" in own,
        {} if shards is None else shards.replicas,
        [*(shards.slots if shards else ()), *(experts.slots if experts else ())],
    )


def _engine(
    layout: ModelCut, place: Ownership, stages: Sequence[LocalStage], eager: bool
) -> Engine:
    return Engine(
        stages,
        layout.partitioning.edges,
        _transport(layout, place, eager),
        len(place.trained),
        place.grid.describe(place.rank),
        place.world.board.write,
        place.world.recorder,
    )


def _losses(
    model: Any,
    layout: ModelCut,
    place: Ownership,
    specs: Any,
    pack: Pack,
    own: CustomSteps,
    groups: Sequence[WeightGroup],
) -> Losses:
    symbolic = symbolic_batch(model, specs)
    build_compiled(model, symbolic)
    terms = LossTerms(model, layout.masks_may_leave(model), symbolic)
    own.prepare(specs, terms)
    updates = place.is_last or _has_layer_metrics(model)
    metrics = MetricState(model, place.world, updates, own.metrics)
    own.attach(metrics)
    counted = [(group.kind, _regularized(group, place)) for group in groups]
    return Losses(
        terms=terms,
        metrics=metrics,
        head=LossHead(model, terms, pack),
        weigh=Weigher(model, terms) if terms.need_weights else None,
        symbolic=symbolic,
        penalty=Penalty([found for found in counted if found[1]]),
    )


def _regularized(group: WeightGroup, place: Ownership) -> list[tuple[int, Any]]:
    """The weights of a group whose penalty this rank counts, with their positions."""
    members = [(position, place.trained[position]) for position in group.positions]
    return [(p, v) for p, v in members if v.regularizer is not None and place.owns(v)]


def _has_layer_metrics(model: Any) -> bool:
    return any(layer.metrics for layer in all_layers(model, include_self=False))


def _bodies(model: Any, layout: ModelCut, stages: Sequence[int]) -> tuple[list[StageCall], Pack]:
    """What this rank's stages compute, and how the model's flat outputs are packed."""
    if layout.graph is None:
        body = model_body(model, layout.sums)
        return [body], lambda flat: keras.tree.pack_sequence_as(body.structure, flat)  # type: ignore[attr-defined]
    functional, table = layout.graph.functional, layout.partitioning
    count = len(table.stage_outputs[-1])
    bodies = [
        graph_body(layout.graph, table, number, layout.masked, layout.sums) for number in stages
    ]
    return bodies, lambda flat: output_structure(functional, flat[:count])


def _transport(layout: ModelCut, place: Ownership, eager: bool) -> Transport:
    edges, ends = layout.partitioning.edges, (place.replica, place.grid.placement)
    if layout.graph is None:
        return Transport(*ends, edges, [], fixed_shapes=True)
    tensors = layout.graph.tensors
    crossing = {e.tensor for e in edges} | set(layout.graph.inputs)
    fixed = (
        not eager
        and layout.graph.shapes_follow_rows()
        and all(None not in tensors[n].shape[1:] for n in crossing)
    )
    return Transport(*ends, edges, [(e.tensor, e.consumer) in layout.masked for e in edges], fixed)
