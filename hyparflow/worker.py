"""One rank's share of the leader's commands.

The leader announces a command to all ranks and then carries out its own share; followers wait for
commands in `follow`. What a command does is the same code on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow import guard
from hyparflow.build import Part
from hyparflow.comm import World
from hyparflow.data import ArraySource, Batch, microbatch_rows, replica_rows, slice_rows
from hyparflow.engine import Program, no_labels
from hyparflow.grid import LEADER
from hyparflow.head import Labels
from hyparflow.options import Options
from hyparflow.stage import as_share, as_tensors

__all__ = ["Command", "Worker"]

_DATA_TAG, _RESULT_TAG = 1, 2


@dataclass
class Command:
    """What the leader tells all ranks to do.

    Attributes:
        name: the method of `Worker` to call.
        source: which arrays the row numbers mean, or None for rows sent by the leader.
        indices: row numbers of the global batch.
        rows: rows of the global batch.
        values: anything else.
    """

    name: str
    source: str | None = None
    indices: Any = None
    rows: int = 0
    values: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Carries out commands on one rank.

    Args:
        model: the user's model.
        part: what `build_part` made.
        options: the checked parallel arguments.
        world: all ranks.
        num_microbatches: M for a full batch.
    """

    def __init__(
        self, model: Any, part: Part, options: Options, world: World, num_microbatches: int
    ) -> None:
        self.model = model
        self._part = part
        self._options = options
        self._grid = options.grid
        self._world = world
        self._num_microbatches = num_microbatches
        self._partition = self._grid.partition(world.rank)
        self._replica = self._grid.replica(world.rank)
        self._programs: dict[tuple[str, int], Program] = {}
        self.sources: dict[str, ArraySource] = {}
        self._stream: tuple[Any, Any, Any] | None = None
        self._stale = False  # statistics changed since the replicas agreed on them
        self.in_command = False
        self._result: Any = None

    def start(self) -> None:
        """Give all ranks the leader's weights; metrics start anew. Collective."""
        self._part.sync.scatter()  # type: ignore[union-attr]
        if self._part.metrics is not None:
            self._part.metrics.reset()

    # --- telling and following ---

    def order(self, command: Command, data: tuple[Any, Any, Any] | None = None) -> Any:
        """Leader: announce `command` and carry out its own share; `data` goes with it."""
        self._stream = data
        self.in_command = True
        self._world.broadcast_object(command, LEADER, "the leader's command")
        result = getattr(self, command.name)(command)
        self.in_command = False
        return result

    def release(self, name: str, **values: Any) -> None:
        """Leader: let the followers go: "stop" with a result, or "fail" with an error."""
        command = Command(name, values=values)
        self._world.broadcast_object(command, LEADER, "the leader's last command")

    def follow(self) -> Any:
        """Follower: carry out commands until the leader says that it is over."""
        while True:
            self._world.board.write("waits for the leader")
            command = self._world.broadcast_object(None, LEADER, "the leader's command")
            if command.name == "stop":
                return command.values["result"]
            if command.name == "fail":
                make, arguments = command.values["error"]
                raise guard.everywhere(make(*arguments))
            self.in_command = True
            getattr(self, command.name)(command)
            self.in_command = False

    # --- steps ---

    def train(self, command: Command) -> None:
        """One training step."""
        if "learning_rate" in command.values and self._world.rank != LEADER:
            self.model.optimizer.learning_rate = command.values["learning_rate"]
        part, batch = self._part, self._batch(command)
        penalty = self._penalty(batch.rows)
        part.engine.train(
            self._program("train", batch), batch, self._labels(batch), self._reduce, self._apply
        )
        part.metrics.collect(penalty + part.engine.added)  # type: ignore[union-attr]
        self._stale = True

    def test(self, command: Command) -> None:
        """One evaluation step; metrics end on the leader."""
        part = self._part
        if self._stale:
            part.sync.agree()  # type: ignore[union-attr]
            self._stale = False
        batch = self._batch(command)
        penalty = self._penalty(batch.rows)
        part.engine.test(self._program("forward", batch), batch, self._labels(batch))
        part.metrics.collect(penalty + part.engine.added)  # type: ignore[union-attr]

    def predict(self, command: Command) -> Any:
        """One prediction step; on the leader, the outputs of the global batch."""
        if self._stale:
            self._part.sync.agree()  # type: ignore[union-attr]
            self._stale = False
        batch = self._batch(command, labels=False)
        outputs = self._part.engine.predict(self._program("forward", batch), batch)
        if self._grid.is_last(self._world.rank) and outputs:
            columns = [
                np.concatenate([np.asarray(t) for t in c]) for c in zip(*outputs, strict=True)
            ]
            packed = keras.tree.map_structure(lambda x: x, self._part.pack(columns))
            if self._world.rank == LEADER:
                self._result = packed
            else:
                requests = self._world.send_object(packed, LEADER, _RESULT_TAG)
                self._world.wait_all(requests, "the leader to take predictions")
        return self._collect_predictions(command.rows) if self._world.rank == LEADER else None

    def _collect_predictions(self, rows: int) -> Any:
        parts = []
        for replica in range(self._grid.num_replicas):
            start, stop = replica_rows(rows, self._grid, replica)
            last = self._grid.rank(replica, self._grid.num_partitions - 1)
            if start == stop:
                continue
            if last == LEADER:
                parts.append(self._result)
            else:
                what = f"predictions from rank {last}"
                parts.append(self._world.receive_object(last, _RESULT_TAG, what))
        return keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)

    def results(self) -> dict[str, Any]:
        """The present value of every metric, on the leader."""
        return self._part.metrics.results()  # type: ignore[union-attr]

    # --- weights ---

    def gather(self, command: Command) -> None:
        """Give all ranks the present weights and optimizer state."""
        self._world.board.write("gathers weights")
        self._part.sync.gather()  # type: ignore[union-attr]
        self._stale = False

    def checksum(self) -> int:
        """A number that changes when this rank's weights or optimizer state do."""
        return self._part.sync.checksum()  # type: ignore[union-attr]

    def scatter(self, command: Command) -> None:
        """Give all ranks the leader's weights and optimizer state."""
        self._world.board.write("takes the leader's weights")
        self._part.sync.scatter()  # type: ignore[union-attr]

    def finish(self, command: Command) -> None:
        """Gather, and let all ranks' random generators continue alike."""
        self.gather(command)
        self._part.sync.finish()  # type: ignore[union-attr]

    def finalize(self, command: Command) -> None:
        """What Keras does to the weights at the end of `fit` (averages of weights)."""
        if self._world.rank != LEADER:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    # --- parts of a step ---

    def _penalty(self, rows: int) -> float:
        """This rank's weight regularization times the batch's rows; counted by replica 0."""
        update = self._part.update
        if update is None or self._replica or self._part.own_loss:
            return 0.0
        return update.penalty() * rows

    def _reduce(self, gradients: Any) -> None:
        self._reduced = self._part.reducer.reduce(gradients)  # type: ignore[union-attr]

    def _apply(self) -> None:
        self._part.update(self._reduced)  # type: ignore[misc]
        self._reduced = []

    def _program(self, kind: str, batch: Batch) -> Program:
        key = (kind, len(batch.microbatches))
        if key not in self._programs:
            self._programs[key] = self._part.program(
                kind, self._options.schedule, self._grid, self._partition, key[1]
            )
        return self._programs[key]

    def _batch(self, command: Command, labels: bool = True) -> Batch:
        """What this rank needs of the global batch."""
        rows = command.rows
        start, stop = replica_rows(rows, self._grid, self._replica)
        batch = Batch(rows, microbatch_rows(start, stop, self._num_microbatches))
        is_last = self._grid.is_last(self._world.rank)
        weigh = self._part.weigh is not None and labels
        batch.x_is_global = weigh and is_last
        if command.source is None:
            self._take_stream(command, batch, weigh)
        else:
            name, indices = command.source, command.indices
            unweighted = f"{name} without class weights"
            test = command.name == "test" and unweighted in self.sources
            source = self.sources[unweighted if test else name]
            if self._partition == 0 or batch.x_is_global:
                batch.x = source.x(indices if batch.x_is_global else indices[start:stop])
            if is_last and labels:
                batch.y, batch.sample_weight = source.y(indices), source.sample_weight(indices)
        return batch

    def _take_stream(self, command: Command, batch: Batch, weigh: bool) -> None:
        """Send out, or receive, the rows of a batch that only the leader has."""
        if self._world.rank == LEADER:
            requests = []
            for rank in range(1, self._grid.size):
                if self._grid.is_reader(rank) or self._grid.is_last(rank):
                    data = self._stream_for(rank, command, weigh)
                    requests += self._world.send_object(data, rank, _DATA_TAG)
            mine = self._stream_for(LEADER, command, weigh)
            self._world.wait_all(requests, "readers to take their rows")
        elif self._partition == 0 or self._grid.is_last(self._world.rank):
            mine = self._world.receive_object(LEADER, _DATA_TAG, "rows from the leader")
        else:
            return
        batch.x, batch.y, batch.sample_weight = mine

    def _stream_for(self, rank: int, command: Command, weigh: bool) -> tuple[Any, Any, Any]:
        """What `rank` needs of the leader's batch: its rows of x, or all where losses are to be
        weighed, and on a last partition all of y and the sample weights.
        """
        x, y, sample_weight = self._stream or (None, None, None)
        is_last = self._grid.is_last(rank)
        if not (weigh and is_last):
            start, stop = replica_rows(command.rows, self._grid, self._grid.replica(rank))
            x = slice_rows(x, start, stop) if self._grid.is_reader(rank) else None
        return (x, y, sample_weight) if is_last else (x, None, None)

    def _labels(self, batch: Batch) -> Callable[[int], Labels]:
        """A function from a micro-batch's number to its labels and loss factors."""
        terms, weigh = self._part.terms, self._part.weigh
        if not self._grid.is_last(self._world.rank) or terms is None:
            return no_labels
        whole: Any = None
        if weigh is not None and batch.microbatches:
            whole = np.asarray(weigh(*as_tensors((batch.x, batch.y, batch.sample_weight))))

        def labels(m: int) -> Labels:
            y, sample_weight = as_tensors(batch.labels(m))
            part = None
            if weigh is not None:
                start, stop = batch.microbatches[m]
                x = as_tensors(slice_rows(batch.x, start, stop))
                part = np.asarray(weigh(x, y, sample_weight))
            factors = terms.factors(batch.size(m), batch.rows, part, whole)
            return Labels(
                y,
                sample_weight,
                as_share(batch.size(m), batch.rows),
                tf.constant(factors, tf.float64),
                tf.constant(float(batch.size(m)), tf.float64),
            )

        return labels
