"""Decides in how many chunks sequences are computed, where the user leaves that open."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from hyparflow.comm.free_memory import free_memory
from hyparflow.comm.world import World
from hyparflow.engine.loss.head import Labels
from hyparflow.engine.rank_engine import RankEngine
from hyparflow.engine.sequence.chunks import least_chunks
from hyparflow.engine.sequence.looked_up import LookedUp
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.training.call import Call

__all__ = ["decide_chunks"]

_USED = 0.8  # of the memory that is free, so that an estimate may err
_WITH_WEIGHTS = 3  # gradients, and at most two slots, for each byte of weights


def decide_chunks(model: Any, part: RankEngine, call: Call, specs: Any, world: World) -> None:
    """Set the number of chunks, the same on all ranks. Collective.

    Args:
        model: the user's model.
        part: this rank's engine.
        call: what the user called.
        specs: types of (x, y, sample weights).
        world: all ranks.
    """
    if call.options.num_sequence_chunks != "auto":
        return
    inputs = [x for x in keras.tree.flatten(specs[0]) if x is not None and len(x.shape) > 1]
    length = max((x.shape[1] or 0 for x in inputs), default=0)
    mine = _least(model, part, call, specs, world, length) if length else 1
    everyone = world.all_gather_objects(mine, "the numbers of chunks of all ranks")
    part.num_chunks = max(everyone)
    for stage in part.sequences:
        stage.num_chunks = part.num_chunks


def _least(model: Any, part: RankEngine, call: Call, specs: Any, world: World, length: int) -> int:
    rows = max(call.part_rows, default=1)
    limit = free_memory(world.memory_sharers) * _USED
    if call.method == "fit":
        limit -= _WITH_WEIGHTS * sum(map(bytes_of, model.trainable_variables))
    x, y, sample_weight = (keras.tree.map_structure(lambda s: _of_rows(s, rows), p) for p in specs)
    number, found = tf.TensorSpec([], tf.float64), 1
    for local, stage in zip(part.stages, part.sequences, strict=True):
        rest: Any = number
        if local.is_last and part.losses is not None:
            count = max(1, part.losses.terms.count)
            factors = tf.TensorSpec([count], tf.float64)
            rest = Labels(
                y=y,
                sample_weight=sample_weight,
                share=number,
                seed=number,
                factors=factors,
                rows=number,
            )
        costs = stage.costs(x, rest)
        if costs is not None:
            grid = call.options.grid
            room = limit
            if call.method == "fit":
                tokens = (call.rows or rows) * length
                room -= LookedUp.of(costs.sections, tokens, grid.num_peers).gathered
            found = max(found, least_chunks(costs, rows, length, grid.num_shards, int(room)))
    return found


def _of_rows(spec: Any, rows: int) -> Any:
    return None if spec is None else tf.TensorSpec([rows, *spec.shape[1:]], spec.dtype)
