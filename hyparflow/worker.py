"""One rank's share of the leader's commands.

The leader announces a command to all ranks and then carries out its own share; followers wait for
commands in `follow`. What a command does is the same code on all ranks.
"""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from hyparflow import guard, keras_internals
from hyparflow.build import Learner, Losses, Part
from hyparflow.comm import World
from hyparflow.commands import Call, Command
from hyparflow.data import Batch
from hyparflow.feed import Data, Feed
from hyparflow.grid import LEADER
from hyparflow.program import Program
from hyparflow.recorder import Happening
from hyparflow.stage import as_tensors
from hyparflow.tuning import take_over
from hyparflow.writes import WriteLog

__all__ = ["Worker"]

_RESULT_TAG = 2  # of predictions on their way to the leader


class Worker:
    """Carries out commands on one rank.

    Args:
        model: the user's model.
        part: what `build_part` made.
        call: what the user called.
        world: all ranks.
    """

    def __init__(self, model: Any, part: Part, call: Call, world: World) -> None:
        self.model = model
        self._part = part
        self._losses: Losses = part.losses  # type: ignore[assignment]  # predictions use none
        self._learner: Learner = part.learner  # type: ignore[assignment]  # only `fit` uses it
        self._schedule = call.options.schedule
        self._grid = call.options.grid
        self._world = world
        self._feed = Feed(call, world, part.losses, _stand_ins(part))
        self._partition = self._grid.partition(world.rank)
        self._replica = self._grid.replica(world.rank)
        self._programs: dict[tuple[str, int], Program] = {}
        self._stream: Data | None = None
        self.log = WriteLog(self._told_otherwise, self._is_behind)
        self._watched: list[int] | None = None
        self._fresh = True  # the leader holds the present weights of all partitions
        self._stale = False  # statistics changed since the replicas agreed on them
        self.in_command = False
        self._result: Any = None
        self._packed_as: Any = None  # structure of what the model's own predict_step returns

    def start(self) -> None:
        """Give all ranks the leader's weights; metrics start anew. Collective."""
        self._part.sync.scatter()
        if self._part.losses is not None:
            self._part.losses.metrics.reset()

    # --- telling and following ---

    def order(self, command: Command, data: Data | None = None) -> Any:
        """Leader: announce `command` and carry out its own share; `data` goes with it."""
        self.send_writes()
        self._stream = data
        return self._order(command)

    def send_writes(self) -> None:
        """Leader: give all ranks what callbacks wrote to variables since the last command."""
        written = self.log.take()
        if self._watched is not None:
            written += self._part.sync.changed(self._watched)
        if written:
            distinct = list({id(v): v for v in written}.values())
            values = {"values": self._part.sync.describe(distinct)}
            self._order(Command("write", values=values))
            self.watch(self._watched is not None)

    def watch(self, watched: bool) -> None:
        """Leader: from now on, look for writes that did not go through Keras, or no longer."""
        self._watched = self._part.sync.checksums() if watched else None

    def _order(self, command: Command) -> Any:
        self.in_command = True
        with self.log.paused():
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

    def draw(self, command: Command) -> list[int]:
        """Let each replica take the next batch of its stream; the rows of each."""
        return self._feed.draw(command)

    def train(self, command: Command) -> dict[str, Any] | None:
        """One training step; what the model's own step returned, where it has one."""
        recorder = self._world.recorder
        recorder.begin_step()
        start = time.monotonic()
        logs = self._train(command)
        recorder.note(Happening.TRAINING_STEP, start)
        return logs

    def _train(self, command: Command) -> dict[str, Any] | None:
        if self._world.rank != LEADER:
            take_over(self.model, command.values)
        self._stale = True
        self._fresh = False
        start = time.monotonic()
        batch = self._feed.batch(command, self._stream)
        self._world.recorder.note(Happening.DATA, start)
        if "train_step" in self._part.own:
            return self._own("train_step", batch)
        penalty = self._penalty(batch.rows)
        program = self._program("train", batch)
        scale = self._learner.update.loss_scale()
        labels = self._feed.labels(batch, scale)
        with self._losses.metrics.paused(batch.is_stand_in):
            self._part.statistics.begin()
            learner = self._learner
            self._part.engine.train(program, batch, labels, scale, learner.reducer, learner.update)
            self._part.statistics.finish()
        self._losses.metrics.collect(penalty + self._part.engine.added)
        return None

    def test(self, command: Command) -> dict[str, Any] | None:
        """One evaluation step; metrics end on the leader. Returns as `train` does."""
        self._agree()
        batch = self._feed.batch(command, self._stream)
        if "test_step" in self._part.own:
            return self._own("test_step", batch)
        penalty = self._penalty(batch.rows)
        program = self._program("forward", batch)
        self._part.engine.test(program, batch, self._feed.labels(batch))
        self._losses.metrics.collect(penalty + self._part.engine.added)
        return None

    def predict(self, command: Command) -> Any:
        """One prediction step; on the leader, the outputs of the global batch."""
        self._agree()
        batch = self._feed.batch(command, self._stream, labels=False)
        outputs = self._predict(batch)
        if self._grid.is_last(self._world.rank) and outputs:
            columns = [
                np.concatenate([np.asarray(t) for t in c]) for c in zip(*outputs, strict=True)
            ]
            packed = keras.tree.map_structure(lambda x: x, self._pack(columns))
            if self._world.rank == LEADER:
                self._result = packed
            else:
                requests = self._world.send_object(packed, LEADER, _RESULT_TAG)
                self._world.wait_all(requests, "the leader to take predictions")
        return self._collect_predictions(command) if self._world.rank == LEADER else None

    def _collect_predictions(self, command: Command) -> Any:
        parts = []
        for replica in range(self._grid.num_replicas):
            start, stop = command.replica_rows(self._grid, replica)
            last = self._grid.rank(replica, self._grid.num_partitions - 1)
            if start == stop:
                continue
            if last == LEADER:
                parts.append(self._result)
            else:
                what = f"predictions from rank {last}"
                parts.append(self._world.receive_object(last, _RESULT_TAG, what))
        return keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)

    def results(self, logs: dict[str, Any] | None = None) -> dict[str, Any]:
        """The present value of every metric, on the leader; see `MetricState.results`."""
        return self._losses.metrics.results(logs)

    # --- what callbacks write ---

    def write(self, command: Command) -> None:
        """Take the values of variables that a callback wrote on the leader."""
        if self._world.rank != LEADER:
            self._part.sync.write(command.values["values"])

    def _told_otherwise(self) -> list[Any]:
        """Variables that change on the leader between commands and are no news to the others."""
        metrics = keras_internals.tracked_metrics(self.model) if self.model.compiled else []
        rates = keras_internals.settable_learning_rates(self.model)
        return [v for metric in metrics for v in metric.variables] + rates

    def _is_behind(self, variable: Any) -> bool:
        return not self._fresh and self._part.sync.is_elsewhere(variable)

    # --- weights ---

    def gather(self, command: Command) -> None:
        """Give all ranks the present weights and optimizer state."""
        self._world.board.write("gathers weights")
        self._part.sync.gather()
        self._stale = False
        self._fresh = True

    def scatter(self, command: Command) -> None:
        """Give all ranks the leader's weights and optimizer state."""
        self._world.board.write("takes the leader's weights")
        self._part.sync.scatter()
        self._fresh = True

    def finish(self, command: Command) -> None:
        """Gather, and let all ranks' random generators continue alike."""
        self.gather(command)
        self._part.sync.finish()

    def finalize(self, command: Command) -> None:
        """What Keras does to the weights at the end of `fit` (averages of weights)."""
        if self._world.rank != LEADER:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    # --- parts of a step ---

    def _penalty(self, rows: int) -> float:
        """This rank's weight regularization times the batch's rows; counted by replica 0."""
        if self._part.learner is None or self._replica or self._losses.head.own_loss:
            return 0.0
        return self._part.learner.update.penalty() * rows

    def _own(self, name: str, batch: Batch) -> dict[str, Any]:
        """The model's own step on this replica's rows."""
        labels = self._feed.labels(batch)(0)
        with self._losses.metrics.paused(batch.is_stand_in):
            self._part.statistics.begin()
            logs = self._part.own.run(name, as_tensors(batch.inputs(0)), labels)
            self._part.statistics.finish()
        self._losses.metrics.collect(0.0)
        return logs

    def _agree(self) -> None:
        """Before the model is used without training: replicas agree on statistics."""
        if self._stale:
            self._part.sync.agree()
            self._stale = False

    def _pack(self, columns: list[Any]) -> Any:
        if "predict_step" in self._part.own:
            return keras.tree.pack_sequence_as(self._packed_as, columns)
        return self._part.pack(columns)

    def _predict(self, batch: Batch) -> list[list[Any]]:
        """The flat outputs of each of this replica's micro-batches."""
        if "predict_step" not in self._part.own:
            return self._part.engine.predict(self._program("forward", batch), batch)
        parts = range(len(batch.microbatches))
        structures = [self._part.own.predict(as_tensors(batch.inputs(m))) for m in parts]
        self._packed_as = structures[0] if structures else None
        return [keras.tree.flatten(outputs) for outputs in structures]

    def _program(self, kind: str, batch: Batch) -> Program:
        key = (kind, len(batch.microbatches))
        if key not in self._programs:
            self._programs[key] = self._part.program(
                kind, self._schedule, self._grid, self._partition, key[1]
            )
        return self._programs[key]


def _stand_ins(part: Part) -> frozenset[str]:
    """The commands in which all replicas must take part, whether or not they have rows."""
    if "train_step" in part.own or "test_step" in part.own:
        return frozenset(("train", "test"))
    return frozenset(("train",) if part.statistics.active else ())
