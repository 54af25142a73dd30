"""Everything by which one rank trains its partition: plain data that `assembly.py` fills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyparflow.engine.custom_steps.steps import CustomSteps
from hyparflow.engine.engine import Engine
from hyparflow.engine.experts.expert_calls import ExpertCalls
from hyparflow.engine.gradients.reducer import Reducer
from hyparflow.engine.loss.head import LossHead
from hyparflow.engine.loss.metric_state import MetricState
from hyparflow.engine.loss.penalty import Penalty
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.loss.weigher import Weigher
from hyparflow.engine.optimizer_step import OptimizerStep
from hyparflow.engine.sequence.sequence_stage import SequenceStage
from hyparflow.engine.stages.batchnorm import BatchStatistics
from hyparflow.engine.stages.local_stage import LocalStage
from hyparflow.engine.weights.sync import WeightSync
from hyparflow.pipeline import lowering
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.partition import Partitioning
from hyparflow.pipeline.program import Program
from hyparflow.pipeline.schedules import forward_only, make_schedule

__all__ = ["Pack", "RankEngine", "Losses", "Learner"]


Pack = Callable[[list[Any]], Any]


@dataclass
class RankEngine:
    """Everything one rank uses to train its partition.

    Attributes:
        engine: executes the steps.
        stages: the stages that it executes.
        sync: moves weights between ranks.
        pack: flat outputs -> the structure that the model's call returns.
        statistics: what BatchNormalization layers normalize by and remember.
        experts: what layers with experts compute together with other replicas.
        own: the model's own steps, which replace Keras's.
        partitioning: the stages, and the tensors that cross from one to another.
        losses: loss and metrics; None if only predictions are wanted.
        learner: the update of weights; None without an optimizer.
        tag_limit: tags of messages must be less than this.
        sequences: the stages whose sequences are divided.
        num_chunks: of these sequences.
        traced: kinds and rows of steps that ran, on the leader.
    """

    engine: Engine
    stages: Sequence[LocalStage]
    sync: WeightSync
    pack: Pack
    statistics: BatchStatistics
    experts: ExpertCalls
    own: CustomSteps
    partitioning: Partitioning
    losses: Losses | None
    learner: Learner | None
    tag_limit: int
    sequences: Sequence[SequenceStage] = ()
    num_chunks: int = 1
    traced: set[tuple[str, int]] = field(default_factory=set)

    @property
    def rewritten(self) -> Counter[str]:
        """How often which faster kernel was put in; empty before stages are compiled."""
        found = sum((one.stage.rewritten for one in self.stages), Counter[str]())
        return found + Counter({"sparse experts": self.experts.num_sparse})

    @property
    def stand_ins(self) -> frozenset[str]:
        """The commands in which all replicas must take part, whether or not they have rows."""
        names = {"predict"} if "predict_step" in self.own else set()
        if "train_step" in self.own or "test_step" in self.own:
            names |= {"train", "test"}
        elif self.statistics.active:
            names |= {"train"}
        return frozenset(names) | self.experts.stand_ins

    @property
    def has_trained(self) -> bool:
        """Whether training steps ran, on the leader."""
        return any(name == "train" for name, _ in self.traced)

    def program(self, kind: str, schedule: str, grid: Grid, partition: int, count: int) -> Program:
        """The proved list of one step of `count` micro-batches: "train" or "forward"."""
        edges = self.partitioning.edges
        if kind == "train":
            computation = make_schedule(schedule, grid.placement, count)
        else:
            computation = forward_only(grid.placement, count)
        lowered = lowering.lower(computation, edges, training=kind == "train")
        lowering.prove(lowered, edges)
        tags = lowering.tags_of(lowered, self.tag_limit)
        return Program(lowered[partition], tags[partition], max(1, count))


@dataclass
class Losses:
    """The losses and metrics of a compiled model, on one rank.

    Attributes:
        terms: the losses, additive over micro-batches.
        metrics: the metrics' state.
        head: the end of the last stage.
        weigh: (x, y, sample weights) -> W of each loss term; None if W is not needed.
        symbolic: symbolic (y, y_pred, sample weights), or None where there are no labels.
        penalty: the weight regularization that this rank counts.
    """

    terms: LossTerms
    metrics: MetricState
    head: LossHead
    weigh: Weigher | None
    symbolic: Any
    penalty: Penalty


@dataclass
class Learner:
    """The objects that turn one rank's gradients into new weights.

    Attributes:
        reducer: sums gradients over ranks.
        update: the optimizer's step.
        compared: whether all ranks know which of the model's weights have a gradient.
        unclear: numbers of weights for which a warning was given that the lookups of their sparse
            gradients are not known.
    """

    reducer: Reducer
    update: OptimizerStep
    compared: bool = False
    unclear: set[int] = field(default_factory=set)
