"""One rank's side of the checkpoints of a call: it saves them, and knows where the call began."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyparflow.checkpoint.keeper import Keeper
from hyparflow.checkpoint.replica_states import take_replica
from hyparflow.checkpoint.save_point import SavePoint
from hyparflow.checkpoint.tensor_names import named_variables
from hyparflow.comm.log import STATUS
from hyparflow.comm.world import World
from hyparflow.engine.rank_engine import RankEngine
from hyparflow.training.call import Call
from hyparflow.training.checkpoints.resumption import Resumption
from hyparflow.training.checkpoints.saves import Saves
from hyparflow.training.commands import Command, Save

__all__ = ["METRICS", "CheckpointSide"]

METRICS = "metrics"  # the tensor with the states of all metrics


class CheckpointSide:
    """Saves checkpoints with the other ranks.

    Attributes:
        resumption: what the call goes on from, or None.
        saves: on the leader, the callback that decides when; None without checkpoints.

    Args:
        model: the user's model.
        part: this rank's engine.
        call: the user's call.
        world: all ranks.
    """

    def __init__(self, model: Any, part: RankEngine, call: Call, world: World) -> None:
        self.resumption: Resumption | None = None
        self.saves: Saves | None = None
        self._model, self._part = model, part
        self._further: dict[str, np.ndarray] = {}
        self._own: dict[str, np.ndarray] = {}  # until it is taken
        self._keeper: Keeper | None = None
        if call.checkpoint is not None:
            grid = call.options.grid
            self._keeper = Keeper(model, call.checkpoint, part.sync, grid, world, _announce)

    def prepare(self, point: SavePoint, further: dict[str, np.ndarray]) -> Command | None:
        """Leader: the command that saves a checkpoint; None if there cannot be one now.

        Args:
            point: where training stands.
            further: tensors that are no variables.
        """
        try:
            if self._keeper is not None:
                self._keeper.begin(point.step)
        except (OSError, ValueError) as error:  # a full disk, a folder that is there already
            _announce(error)
            return None
        self._further = further | {METRICS: self._metrics_state()}
        return Save(point)

    def save(self, command: Save) -> None:
        """Save this rank's share. Collective."""
        if self._keeper is not None:
            self._keeper.save(command.point, self._further)

    def newest(self) -> int | None:
        """Leader: the step of the newest checkpoint, when the last save has ended."""
        return None if self._keeper is None else self._keeper.newest()

    def start(self) -> None:
        """Have all that this rank needs of the checkpoint that the call goes on from."""
        if self.resumption is not None:
            self._part.sync.bring_in()
            self._own = self.resumption.own
            if not self.resumption.step_in_epoch:
                self.before_step()

    def before_step(self) -> None:
        """Let this replica have what it had of its own before the step that goes on.

        Callbacks that begin an epoch may have had replicas agree on statistics, which was before
        the save if that was in the middle of the epoch.
        """
        own, self._own = self._own, {}
        if own:
            take_replica(own, named_variables(self._model), self._part.sync)

    def end(self) -> None:
        """Wait until this rank has written what it has to write."""
        if self._keeper is not None:
            self._keeper.wait()

    def restore_metrics(self, state: np.ndarray) -> None:
        """Leader: let metrics go on from what a checkpoint has of them."""
        if self._part.losses is not None:
            self._part.losses.metrics.set_state(state)

    def _metrics_state(self) -> np.ndarray:
        losses = self._part.losses
        return np.zeros(0) if losses is None else losses.metrics.state()


def _announce(error: Exception) -> None:
    STATUS.warning(
        "hyparflow: a checkpoint could not be written, and training goes on; the ones before stay: "
        "%s",
        error,
    )
