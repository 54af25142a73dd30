"""The commands of the leader to all ranks during a call: a class for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hyparflow.checkpoint.save_point import SavePoint
from hyparflow.engine.batch import Rows, replica_rows
from hyparflow.pipeline.grid import Grid

__all__ = [
    "Changes",
    "Command",
    "DrawBatch",
    "Evaluate",
    "Fail",
    "Fetch",
    "Finalize",
    "Finish",
    "Gather",
    "MeasureThroughput",
    "Predict",
    "Save",
    "Scatter",
    "StepCommand",
    "Stop",
    "TakeBack",
    "TellEpoch",
    "TellThroughput",
    "Train",
    "Write",
]


@dataclass
class Changes:
    """Changes by callbacks on the leader since the last step, except those of variables.

    Attributes:
        python: Python values that calls of layers read (`hyparflow.model.python_values`).
        compile_anew: whether compiled functions must be traced again to read these.
        settings: of the optimizer.
        learning_rates: those of all optimizers, if any has changed.
    """

    python: Any = None
    compile_anew: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    learning_rates: list[float] | None = None


@dataclass
class Command:
    """One thing that all ranks do together."""

    changes: Changes = field(default_factory=Changes, kw_only=True)


@dataclass
class StepCommand(Command):
    """One step with a global batch.

    Attributes:
        name: the name of Keras's step.
        source: the name of the arrays whose rows are meant, or None for rows sent by the leader.
        indices: row numbers of the global batch.
        rows: rows of the global batch.
        counts: rows of each replica, if replicas read streams of their own, else None.
    """

    name: ClassVar[str]
    source: str | None = None
    indices: Any = None
    rows: int = 0
    counts: list[int] | None = None

    def replica_rows(self, grid: Grid, replica: int) -> Rows:
        """The rows of the global batch that `replica` computes."""
        if self.counts is None:
            return replica_rows(self.rows, grid, replica)
        start = sum(self.counts[:replica])
        return start, start + self.counts[replica]


@dataclass
class Train(StepCommand):
    """One training step."""

    name = "train"


@dataclass
class Evaluate(StepCommand):
    """One evaluation step."""

    name = "test"


@dataclass
class Predict(StepCommand):
    """One prediction step."""

    name = "predict"


@dataclass
class TakeBack(Command):
    """Do not count the last training step, which had no gradient."""


@dataclass
class TellEpoch(Command):
    """Tell each replica's stream of this name that an epoch begins or ends."""

    source: str
    event: str


@dataclass
class DrawBatch(Command):
    """Each replica takes the next batch of its stream of this name."""

    source: str
    is_first: bool


@dataclass
class Write(Command):
    """Take values of variables that a callback wrote on the leader, by number."""

    values: list[tuple[int, Any]]


@dataclass
class Fetch(Command):
    """Give the leader one of the present weights or slots, by its number.

    Attributes:
        is_lent: whether the leader gives it back when it asks for the next.
    """

    number: int
    is_lent: bool = False


@dataclass
class Gather(Command):
    """Give the leader the present weights and optimizer state.

    Attributes:
        everything: whether to give what it can ask for, too, when it reads it.
    """

    everything: bool = True


@dataclass
class Scatter(Command):
    """Give the leader's weights and optimizer state to the ranks that need them."""


@dataclass
class Finalize(Command):
    """Do what Keras does to the weights at the end of `fit` (averages of weights)."""


@dataclass
class Finish(Command):
    """Gather for all ranks, unless weights stay at their owners; random generators continue alike.

    Attributes:
        failed: whether the call ends with an error, which is what the user must see.
    """

    failed: bool = False


@dataclass
class Save(Command):
    """Save a checkpoint.

    Attributes:
        point: where training stands, and what the leader alone knows.
    """

    point: SavePoint


@dataclass
class MeasureThroughput(Command):
    """From now on, measure how fast the steps are."""


@dataclass
class TellThroughput(Command):
    """Tell how fast the steps were since the last such command."""


@dataclass
class Stop(Command):
    """The call is over.

    Attributes:
        result: the value that it returns on all ranks.
    """

    result: Any


@dataclass
class Fail(Command):
    """The call has failed between two steps.

    Attributes:
        error: the function that makes the exception, and its arguments.
    """

    error: tuple[Any, tuple[Any, ...]]
