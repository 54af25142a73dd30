"""Builds what turns one rank's gradients into new weights: their sums, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyparflow.comm import abort
from hyparflow.engine.experts.expert_shards import ExpertShards
from hyparflow.engine.gradients.mpi_sum import MakeSum, mpi_sums
from hyparflow.engine.gradients.overwritten import require_one_holder
from hyparflow.engine.gradients.reducer import Reducer, SharedGroup
from hyparflow.engine.optimizer_step import OptimizerStep
from hyparflow.engine.rank_engine import Learner
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.engine.weights.shards import Shards
from hyparflow.engine.weights.weight_groups import WeightGroup
from hyparflow.model.layout import ModelCut
from hyparflow.options import Options

__all__ = ["build_learner"]


def build_learner(
    model: Any,
    layout: ModelCut,
    place: Ownership,
    options: Options,
    groups: Sequence[WeightGroup],
    shards: Shards | None,
    experts: ExpertShards | None,
) -> Learner:
    """Build what turns this rank's gradients into new weights. Collective.

    Args:
        model: the compiled model.
        layout: how it is cut.
        place: what this rank holds.
        options: the parallel arguments.
        groups: the weights that it trains, in groups.
        shards: which of them it updates; None if it updates all.
        experts: which experts it updates; None if it updates all.

    Raises:
        ValueError: if the model cannot be trained when it is cut so.
    """
    try:
        require_one_holder(model.trainable_variables, place.holders)
    except ValueError as error:
        raise abort.mark_collective(error) from None
    local = place.trained if experts is None else [experts.local(v) for v in place.trained]
    mine = [p for p, v in enumerate(place.trained) if experts is not None and v in experts]
    first = experts is None or place.peers.rank == 0  # of those that count what all of them have
    counted = [place.owns(v) and (first or p in mine) for p, v in enumerate(place.trained)]
    shared = [
        SharedGroup([i for i, v in enumerate(place.trained) if place.holders[id(v)] == who], comm)
        for who, comm in place.shared.items()
    ]
    sums = _replica_sums(options, place)
    return Learner(
        Reducer(
            local,
            place.peers,
            shared,
            sums,
            place.pieces(layout),
            None if shards is None else shards.owners,
            mine,
        ),
        OptimizerStep(
            model,
            place.trained,
            counted,
            place.replica,
            groups,
            shards,
            experts,
            None if shards is experts is None else place.world,
        ),
    )


def _replica_sums(options: Options, place: Ownership) -> MakeSum:
    """The function that makes sums of dense gradients over replicas."""
    if options.allreduce == "horovod" and place.grid.num_peers > 1:
        from hyparflow.engine.gradients.horovod_sum import horovod_sums

        return horovod_sums(place.grid, place.world, place.reducing, options.compression)
    return mpi_sums(place.reducing, options.compression)
