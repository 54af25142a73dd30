"""One rank's share of a step: training, evaluation, prediction."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hyparflow.comm.leader import LEADER
from hyparflow.comm.recorder import EventKind
from hyparflow.comm.world import World
from hyparflow.engine.batch import Batch
from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.engine.rank_engine import Learner, Losses, RankEngine
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.program import Program
from hyparflow.training import notices
from hyparflow.training.commands import Evaluate, Predict, StepCommand, TakeBack, Train
from hyparflow.training.feed import Data, Feed
from hyparflow.training.missing_gradients import compare_gradients, require_gradients
from hyparflow.training.predictions import Predictor
from hyparflow.training.shared_weights import SharedWeights

__all__ = [
    "EvaluationSteps",
    "OwnTrainingSteps",
    "PredictionSteps",
    "StepContext",
    "TrainingSteps",
]


@dataclass
class StepContext:
    """The objects that all steps of one call use, on one rank.

    Attributes:
        model: the user's model.
        part: this rank's engine.
        schedule: the schedule of training steps.
        grid: partitions and replicas.
        world: all ranks.
        feed: deals out the rows of a batch.
        weights: keeps the weights of all ranks equal.
        begin: called when a training step begins, with the rows of its batch.
        num_chunks: of sequences, if they are divided.
        stream: the leader's rows of the present step, if the data are no arrays.
        programs: the engine's programs, by kind and number of micro-batches.
    """

    model: Any
    part: RankEngine
    schedule: str
    grid: Grid
    world: World
    feed: Feed
    weights: SharedWeights
    begin: Callable[[int], None]
    num_chunks: int = 1
    stream: Data | None = None
    programs: dict[tuple[str, int], Program] = field(default_factory=dict)

    def program(self, kind: str, batch: Batch) -> Program:
        """The engine's program for a batch; `kind` is "train" or "forward"."""
        key = (kind, len(batch.microbatches))
        if key not in self.programs:
            partition = self.grid.partition(self.world.rank)
            self.programs[key] = self.part.program(
                kind, self.schedule, self.grid, partition, key[1]
            )
        return self.programs[key]

    @contextlib.contextmanager
    def training_step(self, command: Train) -> Iterator[Batch]:
        """While open, a training step runs and is recorded; yields its batch."""
        recorder = self.world.recorder
        recorder.begin_step()
        self.begin(command.rows)
        self.weights.note_step()
        start = time.monotonic()
        batch = self.feed.batch(command, self.stream)
        recorder.note(EventKind.DATA, start)
        yield batch
        recorder.note(EventKind.TRAINING_STEP, start)


class PredictionSteps:
    """Steps of `predict`."""

    def __init__(self, context: StepContext) -> None:
        self._context = context
        self._predictor = Predictor(context.part, context.grid, context.world, context.num_chunks)

    def __call__(self, command: Predict) -> Any:
        """One prediction step; on the leader, the outputs of the global batch."""
        context = self._context
        context.weights.agree()
        batch = context.feed.batch(command, context.stream, labels=False)
        return self._predictor.run(command, batch, lambda: context.program("forward", batch))


class EvaluationSteps:
    """Steps of `evaluate`, and of validation.

    Args:
        context: what the steps have in common.
        losses: the model's losses and metrics.
    """

    def __init__(self, context: StepContext, losses: Losses) -> None:
        self._context, self._losses = context, losses

    def __call__(self, command: Evaluate) -> dict[str, Any] | None:
        """One evaluation step; metrics end on the leader. Returns as `OwnTrainingSteps`."""
        context, losses = self._context, self._losses
        context.weights.agree()
        batch = context.feed.batch(command, context.stream)
        if "test_step" in context.part.own:
            return self.own("test_step", batch)
        penalty = self.penalty(command)
        program = context.program("forward", batch)
        with losses.metrics.paused(batch.is_stand_in):
            context.part.engine.test(program, batch, context.feed.labels(batch))
        losses.metrics.collect(penalty + context.part.engine.added)
        return None

    def results(self, logs: dict[str, Any] | None) -> dict[str, Any]:
        """The present value of every metric, on the leader; see `MetricState.results`."""
        return self._losses.metrics.results(logs)

    def penalty(self, command: StepCommand) -> float:
        """This rank's weight regularization times the batch's rows; 0 on all peers but one."""
        if self._context.grid.peer(self._context.world.rank):
            return 0.0
        return self._losses.penalty(command.name) * command.rows

    def own(self, name: str, batch: Batch) -> dict[str, Any]:
        """Run the model's own step on this replica's rows; its values, joined over replicas."""
        context, metrics = self._context, self._losses.metrics
        own, labels = context.part.own, context.feed.labels(batch)(0)
        is_leader = context.world.rank == LEADER
        x = as_tensors(batch.inputs(0))
        found = own.try_out(name, x, labels)
        if found is not None and is_leader:
            notices.announce_step(context.model, found)
        with metrics.paused(batch.is_stand_in):
            context.part.statistics.begin()
            logs = own.run(name, x, labels, batch.span(0))
            context.part.statistics.finish()
        metrics.collect(0.0)
        if name == "train_step" and (changed := own.compare()) and is_leader:
            notices.announce_changed(changed)
        return logs

    def look_between_steps(self, is_end: bool) -> None:
        """Compare the replicas of a model's own training step after the last one. Collective.

        Args:
            is_end: whether training ends; then the step is tried once more.
        """
        own, is_leader = self._context.part.own, self._context.world.rank == LEADER
        if (changed := own.compare(between_steps=True)) and is_leader:
            notices.announce_changed(changed)
        if is_end and (found := own.try_at_end()) is not None and is_leader:
            notices.announce_step(self._context.model, found)


class OwnTrainingSteps:
    """Steps of `fit` that the model's own `train_step` makes.

    Args:
        context: what the steps have in common.
        evaluation: steps of validation.
    """

    def __init__(self, context: StepContext, evaluation: EvaluationSteps) -> None:
        self._context, self._evaluation = context, evaluation

    def __call__(self, command: Train) -> dict[str, Any]:
        """One training step; the values of the model's own step, joined over replicas."""
        with self._context.training_step(command) as batch:
            return self._evaluation.own("train_step", batch)


class TrainingSteps:
    """Steps of `fit`.

    Args:
        context: what the steps have in common.
        evaluation: steps of validation.
        losses: the model's losses and metrics.
        learner: updates the weights.
    """

    def __init__(
        self, context: StepContext, evaluation: EvaluationSteps, losses: Losses, learner: Learner
    ) -> None:
        self._context, self._evaluation = context, evaluation
        self._losses, self._learner = losses, learner
        self._gradients = 0  # gradients of all ranks in the last step, on the leader

    def __call__(self, command: Train) -> None:
        """One training step."""
        context, part = self._context, self._context.part
        update, metrics = self._learner.update, self._losses.metrics
        with context.training_step(command) as batch:
            penalty = self._evaluation.penalty(command)
            program = context.program("train", batch)
            scale = update.loss_scale()
            labels = context.feed.labels(batch, scale)
            parts = context.grid.num_peers * program.num_microbatches
            with metrics.paused(batch.is_stand_in):
                part.statistics.begin()
                apply = functools.partial(update, parts=parts)
                part.engine.train(program, batch, labels, scale, self._learner.reducer, apply)
                part.statistics.finish()
            self._gradients = metrics.collect(penalty + part.engine.added, len(update.given))
            compare_gradients(context.model, context.world, self._learner)

    def take_back(self, command: TakeBack) -> None:
        """Do not count the last step."""
        self._learner.update.take_back()

    def require_gradients(self, take_back: Callable[[], object]) -> None:
        """On the leader after a step, raise as Keras does if no weight has a gradient.

        Args:
            take_back: makes all ranks not count the step.
        """
        require_gradients(self._context.model, self._gradients, take_back)
