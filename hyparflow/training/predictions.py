"""Predicts a global batch: each replica predicts its rows, and the leader joins them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.comm.leader import LEADER
from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.engine.batch import Batch
from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.engine.rank_engine import RankEngine
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.program import Program
from hyparflow.pipeline.token_layout import TokenLayout
from hyparflow.training.commands import Predict

__all__ = ["Predictor", "in_order"]


class Predictor:
    """One rank's share of predictions.

    Args:
        part: this rank's engine.
        grid: partitions and replicas.
        world: all ranks.
        num_chunks: of sequences, if they are divided.
    """

    def __init__(self, part: RankEngine, grid: Grid, world: World, num_chunks: int = 1) -> None:
        self._part, self._grid, self._world = part, grid, world
        self._num_chunks = num_chunks
        self._mine: Any = None  # the leader's own outputs, if it has some
        self._packed_as: Any = None  # structure of the result of the model's own predict_step

    def run(self, command: Predict, batch: Batch, program: Callable[[], Program]) -> Any:
        """The outputs of the global batch, on the leader; None on other ranks.

        Args:
            command: has the rows of each replica.
            batch: this replica's rows.
            program: makes the engine's program, if the model has no step of its own.
        """
        outputs = self._compute(batch, program)
        is_leader = self._world.rank == LEADER
        if self._grid.is_last(self._world.rank) and outputs and not batch.is_stand_in:
            columns = [
                np.concatenate([np.asarray(t) for t in c]) for c in zip(*outputs, strict=True)
            ]
            packed = keras.tree.map_structure(lambda x: x, self._pack(columns))
            if is_leader:
                self._mine = packed
            else:
                requests = self._world.send_object(packed, LEADER, Tag.PREDICTIONS)
                self._world.wait_all(requests, "the leader to take predictions")
        return self._collect(command) if is_leader else None

    def _compute(self, batch: Batch, program: Callable[[], Program]) -> list[list[Any]]:
        """The flat outputs of each of this replica's micro-batches."""
        if "predict_step" not in self._part.own:
            return self._part.engine.predict(program(), batch)
        parts = range(len(batch.microbatches))
        own = self._part.own
        structures = [own.predict(as_tensors(batch.inputs(m)), batch.span(m)) for m in parts]
        self._packed_as = structures[0] if structures else None
        return [keras.tree.flatten(outputs) for outputs in structures]

    def _pack(self, columns: list[Any]) -> Any:
        if "predict_step" in self._part.own:
            return keras.tree.pack_sequence_as(self._packed_as, columns)
        return self._part.pack(columns)

    def _collect(self, command: Predict) -> Any:
        parts = []
        for replica in range(self._grid.num_replicas):
            start, stop = command.replica_rows(self._grid, replica)
            if start != stop:
                shards = range(self._grid.num_shards)
                found = [self._taken(self._grid.last_rank(replica, shard)) for shard in shards]
                parts.append(self._joined(found))
        return keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)

    def _taken(self, rank: int) -> Any:
        """What a rank predicted, on the leader."""
        if rank == LEADER:
            return self._mine
        what = f"predictions from rank {rank}"
        return self._world.receive_object(rank, Tag.PREDICTIONS, what)

    def _joined(self, shards: list[Any]) -> Any:
        """The outputs for all positions, of the shards' outputs for theirs."""
        if len(shards) == 1:
            return shards[0]
        return keras.tree.map_structure(lambda *x: in_order(x, self._num_chunks), *shards)


def in_order(shards: Sequence[np.ndarray], num_chunks: int) -> np.ndarray:
    """Arrays (rows, positions of a shard, ...) of all shards, as one with positions in order."""
    layout = TokenLayout(sum(x.shape[1] for x in shards), num_chunks, len(shards))
    whole = np.empty((len(shards[0]), layout.length, *shards[0].shape[2:]), shards[0].dtype)
    for shard, array in enumerate(shards):
        before = 0
        for start, stop in layout.pieces(shard):
            whole[:, start:stop] = array[:, before : before + stop - start]
            before += stop - start
    return whole
