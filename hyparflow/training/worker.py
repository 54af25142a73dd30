"""One rank's share of the leader's commands.

The leader announces a command to all ranks and then carries out its own share; followers wait for
commands in `follow`. What a command does is the same code on all ranks.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.recorder import EventKind
from hyparflow.comm.world import World
from hyparflow.engine.batch import Batch
from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.engine.rank_engine import Learner, Losses, RankEngine
from hyparflow.model.keras_internals.compiled import tracked_metrics
from hyparflow.model.keras_internals.optimizer import settable_learning_rates
from hyparflow.pipeline.program import Program
from hyparflow.training import notices
from hyparflow.training.commands import Call, Command
from hyparflow.training.feed import Data, Feed
from hyparflow.training.missing_gradients import compare_gradients, require_gradients
from hyparflow.training.optimizer_settings import take_over
from hyparflow.training.predictions import Predictor
from hyparflow.training.shared_python_values import PythonFollower
from hyparflow.training.throughput import Throughput
from hyparflow.training.write_log import WriteLog

__all__ = ["Worker"]


class Worker:
    """Carries out commands on one rank.

    Args:
        model: the user's model.
        part: what `build_rank_engine` made.
        call: what the user called.
        world: all ranks.
    """

    def __init__(self, model: Any, part: RankEngine, call: Call, world: World) -> None:
        self.model = model
        self._part = part
        self._losses: Losses = part.losses  # type: ignore[assignment]  # predictions use none
        self._learner: Learner = part.learner  # type: ignore[assignment]  # only `fit` uses it
        self._schedule = call.options.schedule
        self._grid = call.options.grid
        self._world = world
        self._feed = Feed(call, world, part.losses, part.stand_ins)
        self._partition = self._grid.partition(world.rank)
        self._replica = self._grid.replica(world.rank)
        self._programs: dict[tuple[str, int], Program] = {}
        self._stream: Data | None = None
        self.log = WriteLog(self._told_otherwise, self._is_behind)
        self.python = PythonFollower(model, part.traced)
        self._watched: list[int] | None = None
        self._fresh = True  # the leader holds the present weights of all partitions
        self._stale = False  # statistics changed since the replicas agreed on them
        self.in_command = False
        self._predictor = Predictor(part, self._grid, world)
        self._pace: Throughput | None = None
        self._gradients = 0  # of all ranks in the last step, on the leader

    def start(self) -> None:
        """Give all ranks the leader's weights; metrics start anew. Collective."""
        self._part.sync.scatter(self._part.own.shared())
        if self._part.losses is not None:
            self._part.losses.metrics.start()

    # --- telling and following ---

    def order(self, command: Command, data: Data | None = None) -> Any:
        """Leader: announce `command` and carry out its own share; `data` goes with it."""
        self.send_writes()
        self._stream = data
        self.python.send(command)
        result = self._order(command)
        self.python.sent()
        if command.name == "train" and "train_step" not in self._part.own:
            require_gradients(self.model, self._gradients)
        return result

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
            result = self._carry_out(command)
        self.in_command = False
        return result

    def _carry_out(self, command: Command) -> Any:
        if self.python.compiles_anew(command):
            self._part.own.compile_anew(f"{command.name}_step")
            if self._part.losses is not None:
                self._part.losses.penalty.compile_anew(command.name)
            if self._part.learner is not None and command.name == "train":
                self._part.learner.update.compile_anew()
        return getattr(self, command.name)(command)

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
                raise abort.mark_collective(make(*arguments))
            self.in_command = True
            self.python.take(command)
            take_over(self.model, command.values)
            self._carry_out(command)
            self.in_command = False

    # --- steps ---

    def epoch(self, command: Command) -> None:
        """Tell each replica's stream that an epoch begins or ends."""
        self._feed.epoch(command)

    def draw(self, command: Command) -> list[int]:
        """Let each replica take the next batch of its stream; the rows of each."""
        return self._feed.draw(command)

    def train(self, command: Command) -> dict[str, Any] | None:
        """One training step; what the model's own step returned, where it has one."""
        recorder = self._world.recorder
        recorder.begin_step()
        if self._pace is not None:
            self._pace.add(command.rows)
        start = time.monotonic()
        logs = self._train(command)
        recorder.note(EventKind.TRAINING_STEP, start)
        return logs

    def _train(self, command: Command) -> dict[str, Any] | None:
        self._stale = True
        self._fresh = False
        start = time.monotonic()
        batch = self._feed.batch(command, self._stream)
        self._world.recorder.note(EventKind.DATA, start)
        if "train_step" in self._part.own:
            return self._own("train_step", batch)
        penalty = self._penalty(command)
        program = self._program("train", batch)
        scale = self._learner.update.loss_scale()
        labels = self._feed.labels(batch, scale)
        with self._losses.metrics.paused(batch.is_stand_in):
            self._part.statistics.begin()
            reducer, update = self._learner.reducer, self._learner.update
            parts = self._grid.num_replicas * program.num_microbatches
            apply = functools.partial(update, parts=parts)
            self._part.engine.train(program, batch, labels, scale, reducer, apply)
            self._part.statistics.finish()
        given = self._learner.update.given
        total = self._losses.metrics.collect(penalty + self._part.engine.added, len(given))
        compare_gradients(self.model, self._world, self._learner)
        self._gradients = total
        return None

    def test(self, command: Command) -> dict[str, Any] | None:
        """One evaluation step; metrics end on the leader. Returns as `train` does."""
        self._agree()
        batch = self._feed.batch(command, self._stream)
        if "test_step" in self._part.own:
            return self._own("test_step", batch)
        penalty = self._penalty(command)
        program = self._program("forward", batch)
        self._part.engine.test(program, batch, self._feed.labels(batch))
        self._losses.metrics.collect(penalty + self._part.engine.added)
        return None

    def predict(self, command: Command) -> Any:
        """One prediction step; on the leader, the outputs of the global batch."""
        self._agree()
        batch = self._feed.batch(command, self._stream, labels=False)
        return self._predictor.run(command, batch, lambda: self._program("forward", batch))

    def results(self, logs: dict[str, Any] | None = None) -> dict[str, Any]:
        """The present value of every metric, on the leader; see `MetricState.results`."""
        return self._losses.metrics.results(logs)

    def time_steps(self, command: Command) -> None:
        """From now on, note how long what takes."""
        self._pace = Throughput(self._world)

    def tell_pace(self, command: Command) -> dict[str, float]:
        """On the leader, how fast the steps were since it was last asked."""
        return {} if self._pace is None else self._pace.take()

    # --- what callbacks write ---

    def write(self, command: Command) -> None:
        """Take the values of variables that a callback wrote on the leader."""
        if self._world.rank != LEADER:
            self._part.sync.write(command.values["values"])

    def _told_otherwise(self) -> list[Any]:
        """Variables that change on the leader between commands and are no news to the others."""
        metrics = tracked_metrics(self.model) if self.model.compiled else []
        rates = settable_learning_rates(self.model)
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
        self._world.recorder.on = False
        self.gather(command)
        self._part.sync.finish()

    def finalize(self, command: Command) -> None:
        """What Keras does to the weights at the end of `fit` (averages of weights)."""
        if self._world.rank != LEADER:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    # --- parts of a step ---

    def _penalty(self, command: Command) -> float:
        """This rank's weight regularization times the batch's rows; counted by replica 0."""
        if self._replica:
            return 0.0
        return self._losses.penalty(command.name) * command.rows

    def _own(self, name: str, batch: Batch) -> dict[str, Any]:
        """The model's own step on this replica's rows."""
        own, labels = self._part.own, self._feed.labels(batch)(0)
        x = as_tensors(batch.inputs(0))
        found = own.try_out(name, x, labels)
        if found is not None and self._world.rank == LEADER:
            notices.announce_step(self.model, found)
        with self._losses.metrics.paused(batch.is_stand_in):
            self._part.statistics.begin()
            logs = own.run(name, x, labels, batch.span(0))
            self._part.statistics.finish()
        self._losses.metrics.collect(0.0)
        if name == "train_step" and (changed := own.compare()) and self._world.rank == LEADER:
            notices.announce_changed(changed)
        return logs

    def _agree(self) -> None:
        """Before the model is used without training: replicas agree on statistics."""
        if self._stale:
            self._part.sync.agree()
            self._stale = False

    def _program(self, kind: str, batch: Batch) -> Program:
        key = (kind, len(batch.microbatches))
        if key not in self._programs:
            self._programs[key] = self._part.program(
                kind, self._schedule, self._grid, self._partition, key[1]
            )
        return self._programs[key]
