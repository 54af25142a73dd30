"""Gives one rank its part of each global batch: rows of inputs, labels, and loss factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.leader import LEADER
from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.engine.batch import Batch, microbatch_rows, shard_rows, slice_rows
from hyparflow.engine.compiled.tensors import as_share, as_tensors
from hyparflow.engine.loss.head import Labels, no_labels
from hyparflow.engine.rank_engine import Losses
from hyparflow.training.call import Call
from hyparflow.training.commands import DrawBatch, StepCommand, TellEpoch
from hyparflow.training.data.streams import Shard

__all__ = ["Feed"]


Data = tuple[Any, Any, Any]  # x, y, sample weights


class Feed:
    """Deals out global batches to one rank: only readers get inputs, only last stages labels.

    Args:
        call: what the user called.
        world: all ranks.
        losses: the model's losses, if labels are needed.
        stand_ins: the commands in which replicas without rows take part, too.
    """

    def __init__(
        self, call: Call, world: World, losses: Losses | None, stand_ins: frozenset[str]
    ) -> None:
        grid = call.options.grid
        self._grid = grid
        self._world = world
        self._num_microbatches = call.num_microbatches
        self._terms = None if losses is None else losses.terms
        self._weigh = None if losses is None else losses.weigh
        self._sources = call.sources
        self._drawn: Data = (None, None, None)
        self._whole: Any = None  # weights of the losses for the global batch, if data are sharded
        self._stand_ins = stand_ins
        self._is_reader = grid.is_reader(world.rank)
        self._is_last = grid.is_last(world.rank)
        shards = call.shards.items() if self._is_reader else ()
        self._shards = {name: Shard(*given) for name, given in shards}
        self._replica = grid.replica(world.rank)
        self._divides = call.options.divides_sequences

    def batch(self, command: StepCommand, stream: Data | None, labels: bool = True) -> Batch:
        """The part of the global batch that this rank needs.

        Args:
            command: names the rows, or says how many the leader sends.
            stream: the leader's rows, if the data are no arrays.
            labels: whether labels are needed.
        """
        batch = self._dealt(command, self._replica)
        # If losses need weights, the last stage needs the whole batch for W.
        weighed = self._weigh is not None and labels
        if command.counts is not None:
            return self._sharded(batch, command, labels, weighed)
        batch.x_is_global = weighed and self._is_last
        if command.source is None:
            batch.x, batch.y, batch.sample_weight = self._streamed(command, stream, weighed)
            return batch
        source, indices = self._sources[command.source], command.indices
        if self._is_reader or batch.x_is_global:
            batch.x = source.x(indices if batch.x_is_global else indices[batch.start : batch.stop])
        if self._is_last and labels:
            batch.y = source.y(indices)
            batch.sample_weight = source.sample_weight(indices, training=command.name == "train")
        return batch

    def _dealt(self, command: StepCommand, replica: int) -> Batch:
        """The rows of one replica, without data."""
        count = self._num_microbatches
        if command.counts is None:
            parts = microbatch_rows(command.rows, self._grid, replica, count)
        else:
            parts = shard_rows(command.counts, replica, count)
        batch = Batch(command.rows, parts)
        if not batch.microbatches and command.name in self._stand_ins:
            batch.microbatches, batch.is_stand_in = [(0, 1)], True
        return batch

    def epoch(self, command: TellEpoch) -> None:
        """Tell this replica's stream that an epoch begins or ends."""
        if self._is_reader:
            self._shards[command.source].epoch(command.event)

    def draw(self, command: DrawBatch) -> tuple[list[int], bool]:
        """Take this replica's next batch of its stream. Collective.

        Returns:
            The rows of each replica, and whether the length of all streams is known.
        """
        drawn, tells = None, True
        if self._is_reader:
            shard = self._shards[command.source]
            drawn, tells = shard.draw(command.is_first), shard.tells_length
        self._drawn = drawn or (None, None, None)
        leaves = [leaf for leaf in keras.tree.flatten(self._drawn[0]) if leaf is not None]
        mine = len(leaves[0]) if leaves else 0
        everyone = self._world.all_gather_objects(
            (mine, tells), "the rows of each replica's stream"
        )
        counts = [everyone[self._grid.rank(r, 0)][0] for r in range(self._grid.num_replicas)]
        return counts, all(tells for _, tells in everyone)

    def _sharded(self, batch: Batch, command: StepCommand, labels: bool, weighed: bool) -> Batch:
        """This replica's own rows; its first rank sends the last partition its part."""
        batch.is_shard = True
        x, y, sample_weight = self._lent(command) if self._is_reader else (None, None, None)
        last = self._grid.last_rank(self._replica)
        reader = self._grid.rank(self._replica, 0)
        if labels and batch.microbatches and reader != last:
            if self._is_reader:
                part = (x if weighed else None, y, sample_weight)
                requests = self._world.send_object(part, last, Tag.ROWS)
                self._world.wait_all(requests, "the last partition to take its labels")
            elif self._is_last:
                x, y, sample_weight = self._world.receive_object(reader, Tag.ROWS, "labels")
        if self._is_last and labels:
            batch.y, batch.sample_weight = y, sample_weight
        if self._is_reader or (self._is_last and weighed):
            batch.x = x
        if weighed and self._weigh is not None:
            self._weigh_all(batch, self._weigh)
        return batch

    def _lent(self, command: StepCommand) -> Data:
        """The drawn rows; a replica without rows gets the first row of another as placeholder, if
        it must take part.
        """
        counts: list[int] = command.counts or []
        empty = [r for r, count in enumerate(counts) if not count]
        if command.name not in self._stand_ins or not empty:
            return self._drawn
        lender = next(r for r, count in enumerate(counts) if count)
        if self._replica == lender:
            row = tuple(slice_rows(part, 0, 1) for part in self._drawn)
            for replica in empty:
                requests = self._world.send_object(row, self._grid.rank(replica, 0), Tag.ROWS)
                self._world.wait_all(requests, "another replica to take a row")
        elif self._replica in empty:
            lender_rank = self._grid.rank(lender, 0)
            lent: Data = self._world.receive_object(lender_rank, Tag.ROWS, "another replica's row")
            return lent
        return self._drawn

    def _weigh_all(self, batch: Batch, weigh: Callable[[Any, Any, Any], Any]) -> None:
        """The weights of the losses over the rows of all replicas. Collective."""
        mine = None
        if self._is_last and batch.microbatches and not batch.is_stand_in:
            arrays = as_tensors((batch.x, batch.y, batch.sample_weight))
            mine = np.asarray(weigh(*arrays))
        everyone = self._world.all_gather_objects(mine, "the weights of all replicas' rows")
        self._whole = sum(part for part in everyone if part is not None)

    def _streamed(self, command: StepCommand, stream: Data | None, weighed: bool) -> Data:
        """Send out, or receive, the rows of a batch that only the leader has."""
        if self._world.rank != LEADER:
            if self._is_reader or self._is_last:
                return self._world.receive_object(LEADER, Tag.ROWS, "rows from the leader")
            return None, None, None
        requests = []
        for rank in range(1, self._grid.size):
            if self._grid.is_reader(rank) or self._grid.is_last(rank):
                part = self._part_for(rank, command, stream, weighed)
                requests += self._world.send_object(part, rank, Tag.ROWS)
        mine = self._part_for(LEADER, command, stream, weighed)
        self._world.wait_all(requests, "readers to take their rows")
        return mine

    def _part_for(
        self, rank: int, command: StepCommand, stream: Data | None, weighed: bool
    ) -> Data:
        """The part of the leader's batch that `rank` needs: its rows of x, or all if losses need
        weights; and on a last partition all of y and the sample weights.
        """
        x, y, sample_weight = stream or (None, None, None)
        is_last = self._grid.is_last(rank)
        if not (weighed and is_last):
            rows = self._dealt(command, self._grid.replica(rank))
            x = slice_rows(x, rows.start, rows.stop) if self._grid.is_reader(rank) else None
        return (x, y, sample_weight) if is_last else (x, None, None)

    def labels(self, batch: Batch, loss_scale: float = 1.0) -> Callable[[int], Labels]:
        """A function from a micro-batch's number to its labels and loss factors."""
        terms, weigh = self._terms, self._weigh
        if not self._is_last or terms is None:
            return no_labels
        whole: Any = None
        if weigh is not None and batch.microbatches:
            if batch.is_shard:
                whole = self._whole
            else:
                whole = np.asarray(weigh(*as_tensors((batch.x, batch.y, batch.sample_weight))))

        def labels(m: int) -> Labels:
            y, sample_weight = as_tensors(batch.labels(m))
            if self._divides:  # factors are those of tiles, which need W of the batch
                factors = [1.0] * max(1, terms.count) if whole is None else list(whole)
            else:
                part = None
                if weigh is not None:
                    part = np.asarray(weigh(as_tensors(batch.inputs(m)), y, sample_weight))
                factors = terms.factors(batch.size(m), batch.rows, part, whole)
            return Labels(
                y=y,
                sample_weight=sample_weight,
                share=as_share(batch.share(m)),
                seed=as_share(batch.share(m) * loss_scale),
                factors=tf.constant(factors, tf.float64),
                rows=tf.constant(float(batch.weight(m)), tf.float64),
            )

        return labels
