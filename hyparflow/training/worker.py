"""One rank's share of the leader's commands, and the leader's steps, which give them.

The leader announces a command to all ranks and then carries out its own share; followers wait for
commands in `follow`. The code of a command is the same on all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.world import World
from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.engine.rank_engine import RankEngine
from hyparflow.training import notices
from hyparflow.training.call import Call
from hyparflow.training.checkpoint_side import CheckpointSide
from hyparflow.training.commands import (
    Command,
    DrawBatch,
    Evaluate,
    Fail,
    Fetch,
    Finalize,
    Finish,
    Gather,
    MeasureThroughput,
    Predict,
    Save,
    StepCommand,
    Stop,
    TakeBack,
    TellEpoch,
    TellThroughput,
    Train,
)
from hyparflow.training.feed import Data, Feed
from hyparflow.training.leader_data import step_command
from hyparflow.training.optimizer_settings import Tuning, take_over
from hyparflow.training.progress_of_ranks import progress_of_ranks
from hyparflow.training.shared_python_values import PythonFollower
from hyparflow.training.shared_weights import SharedWeights
from hyparflow.training.steps import (
    EvaluationSteps,
    OwnTrainingSteps,
    PredictionSteps,
    StepContext,
    TrainingSteps,
)
from hyparflow.training.throughput import Throughput

__all__ = ["LeaderSteps", "Worker"]

_TAKE_ONE = (Evaluate, Finalize, Finish, Gather)


class Worker:
    """Carries out commands on one rank.

    Attributes:
        weights: keeps the weights of all ranks equal.
        python: keeps Python values of all ranks equal.
        in_command: whether a command is being carried out.
        checkpoints: this rank's side of them.

    Args:
        model: the user's model.
        part: this rank's engine, from `build_rank_engine`.
        call: the user's call.
        world: all ranks.
        to_all: whether all ranks get all weights at the end.
    """

    def __init__(
        self, model: Any, part: RankEngine, call: Call, world: World, to_all: bool
    ) -> None:
        self._model, self._part, self._world = model, part, world
        self.weights = SharedWeights(model, part.sync, world, to_all)
        self.python = PythonFollower(model, part.traced)
        self.in_command = False
        self.checkpoints = CheckpointSide(model, part, call, world)
        self._throughput: Throughput | None = None
        self._progress: AbstractContextManager[Any] | None = progress_of_ranks(
            "first step", call, world
        )
        feed = Feed(call, world, part.losses, part.stand_ins)
        self._context = StepContext(
            model=model,
            part=part,
            schedule=call.options.schedule,
            grid=call.options.grid,
            world=world,
            feed=feed,
            weights=self.weights,
            begin=self._note_rows,
            num_chunks=part.num_chunks,
        )
        self._evaluation: EvaluationSteps | None = None  # None if only predictions are wanted
        self._training: TrainingSteps | None = None  # None without an optimizer, or with own steps
        self._actions: dict[type[Command], Callable[[Any], Any]] = {
            **self.weights.actions,
            Predict: PredictionSteps(self._context),
            TellEpoch: feed.epoch,
            DrawBatch: feed.draw,
            MeasureThroughput: self._measure_throughput,
            TellThroughput: self._tell_throughput,
            Save: self.checkpoints.save,
        }
        self._add_steps()

    def _add_steps(self) -> None:
        """Make the steps that the model is compiled for."""
        losses, learner = self._part.losses, self._part.learner
        if losses is None:
            return
        self._evaluation = self._actions[Evaluate] = EvaluationSteps(self._context, losses)
        if "train_step" in self._part.own:
            self._actions[Train] = OwnTrainingSteps(self._context, self._evaluation)
        elif learner is not None:
            training = TrainingSteps(self._context, self._evaluation, losses, learner)
            self._actions |= {Train: training, TakeBack: training.take_back}
            self._training = training

    def start(self) -> None:
        """Give all ranks the leader's weights; metrics start anew. Collective."""
        self._world.board.write("taking the leader's weights")
        notices.announce_read(self._model, self._part.sync.bytes_in_vain, self._world.rank)
        self._part.sync.scatter(self._part.own.shared())
        self.checkpoints.start()
        if self._part.losses is not None:
            self._part.losses.metrics.start()

    # --- sending and following commands ---

    def order(self, command: Command, data: Data | None = None) -> Any:
        """Leader: announce `command` and carry out its own share; `data` goes with it."""
        self.send_writes()
        self._context.stream = data
        self.python.send(command)
        result = self._order(command)
        self.python.sent()
        if isinstance(command, Train) and self._training is not None:
            self._training.require_gradients(lambda: self._order(TakeBack()))
        return result

    def step(self, command: StepCommand, data: Data | None) -> dict[str, Any]:
        """Leader: run a step on all ranks; returns the metrics so far."""
        logs = self.order(command, data)
        return {} if self._evaluation is None else self._evaluation.results(logs)

    @contextlib.contextmanager
    def fetching(self) -> Iterator[None]:
        """Leader: while open, a read of a weight that other ranks hold asks them for it."""
        holdings = self._part.sync.holdings
        holdings.fetch, holdings.busy = self._fetch, False
        try:
            yield
        finally:
            holdings.fetch = None

    def _fetch(self, variable: Any) -> Any:
        number = self._part.sync.number(variable)
        self.order(Fetch(number, is_lent=self.weights.streams))
        return variable.value

    def send_writes(self) -> None:
        """Leader: send all ranks the variables that callbacks wrote since the last command."""
        if (command := self.weights.written()) is not None:
            self._order(command)
            self.weights.watch_anew()

    def _order(self, command: Command) -> Any:
        self.in_command = self._part.sync.holdings.busy = True
        with self.weights.log.paused():
            self._world.broadcast_object(command, LEADER, "the leader's command")
            with self._first_step_shown(command):
                result = self._carry_out(command)
        self.in_command = self._part.sync.holdings.busy = False
        self._world.board.write("callbacks, or the user's data")
        return result

    def _first_step_shown(self, command: Command) -> AbstractContextManager[Any]:
        """Shows what is compiled, before Keras's progress bar is there."""
        if self._progress is None or not isinstance(command, StepCommand):
            return contextlib.nullcontext()
        first, self._progress = self._progress, None
        return first

    def _carry_out(self, command: Command) -> Any:
        if command.changes.compile_anew and isinstance(command, StepCommand):
            self._compile_anew(command)
        self._look(command)
        if isinstance(command, Train):
            self.checkpoints.before_step()
        return self._actions[type(command)](command)

    def _look(self, command: Command) -> None:
        """Before one replica's weights are taken for those of all, look whether they are."""
        failed = isinstance(command, Finish) and command.failed
        if isinstance(command, _TAKE_ONE) and self._evaluation is not None and not failed:
            self._evaluation.look_between_steps(isinstance(command, Finish))

    def _compile_anew(self, step: StepCommand) -> None:
        """Let functions for such a step be traced again, with the present Python values."""
        self._part.own.compile_anew(f"{step.name}_step")
        if self._part.losses is not None:
            self._part.losses.penalty.compile_anew(step.name)
        if self._part.learner is not None and isinstance(step, Train):
            self._part.learner.update.compile_anew()

    def release(self, command: Stop | Fail) -> None:
        """Leader: end `follow` on the other ranks."""
        self._world.broadcast_object(command, LEADER, "the leader's last command")

    def follow(self) -> Any:
        """Follower: carry out commands until the leader ends the call."""
        while True:
            self._world.board.write("waits for the leader")
            command = self._world.broadcast_object(None, LEADER, "the leader's command")
            if isinstance(command, Stop):
                return command.result
            if isinstance(command, Fail):
                make, arguments = command.error
                raise abort.mark_collective(make(*arguments))
            self.in_command = True
            self.python.take(command)
            take_over(self._model, command.changes)
            self._carry_out(command)
            self.in_command = False

    # --- throughput ---

    def _note_rows(self, rows: int) -> None:
        if self._throughput is not None:
            self._throughput.add(rows)

    def _measure_throughput(self, command: MeasureThroughput) -> None:
        self._throughput = Throughput(self._world)

    def _tell_throughput(self, command: TellThroughput) -> dict[str, float]:
        """The figures of the throughput since the last such command, on the leader."""
        return {} if self._throughput is None else self._throughput.take()


class LeaderSteps:
    """The three steps that Keras's loop calls on the leader, as commands to all ranks.

    Args:
        model: the user's model.
        worker: the leader's.
    """

    def __init__(self, model: Any, worker: Worker) -> None:
        self._worker = worker
        self._tuning = Tuning(model)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One training step on all ranks; the metrics so far."""
        saves = self._worker.checkpoints.saves
        if saves is not None:
            saves.before_step()
        command, rows = step_command(Train, data, self._worker.order)
        self._tuning.add_to(command.changes)
        logs = self._worker.step(command, rows)
        if saves is not None:
            saves.after_step()
        return logs

    def test_step(self, data: Any) -> dict[str, Any]:
        """One evaluation step on all ranks; the metrics so far."""
        return self._worker.step(*step_command(Evaluate, data, self._worker.order))

    def predict_step(self, data: Any) -> Any:
        """One prediction step on all ranks; the outputs of the whole batch."""
        command, rows = step_command(Predict, data, self._worker.order)
        return as_tensors(self._worker.order(command, rows))
