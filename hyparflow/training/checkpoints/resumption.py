"""What a call of `fit` goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.log import STATUS
from hyparflow.engine.compiled import choice
from hyparflow.model.keras_internals.passed_over import PassedOver
from hyparflow.training.checkpoints import randomness

__all__ = ["Resumption"]


@dataclass(frozen=True)
class Resumption:
    """What a call of `fit` goes on from; on other ranks than the leader, `own` alone counts.

    Attributes:
        where: the checkpoint, for messages.
        step, epoch, step_in_epoch, state: see `SavePoint`.
        epochs: how many the call asks for.
        reads_stream: whether data are no arrays.
        metrics: the states of all metrics.
        weights: those that callbacks held.
        own: see `hyparflow.checkpoint.replica_states.read_replica`.
    """

    where: str
    step: int
    epoch: int
    step_in_epoch: int
    state: dict[str, Any]
    epochs: int
    reads_stream: bool
    metrics: np.ndarray
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    own: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def initial_epoch(self) -> int:
        """The epoch with which Keras's loop begins; the last, if nothing is left to train."""
        return self.epochs if self.state["is_stopped"] else min(self.epoch, self.epochs)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.initial_epoch >= self.epochs

    @property
    def passed(self) -> PassedOver | None:
        """What Keras's loop passes over."""
        if self.is_over:
            return None
        epochs = self.epoch - self.state["first_epoch"]
        return PassedOver(epochs, self.step_in_epoch, self._arrive)

    def require(self, reading: dict[str, Any]) -> None:
        """Check that an epoch can go on where it was.

        Args:
            reading: what the epoch must have in common with the one that was saved.

        Raises:
            ValueError: if it was saved in its middle, and goes on otherwise.
        """
        before = self.state["reading"]
        odd = [name for name, value in reading.items() if before.get(name) != value]
        if self.step_in_epoch and not self.is_over and odd:
            now, then = (", ".join(f"{n}={x.get(n)}" for n in odd) for x in (reading, before))
            raise ValueError(
                "An epoch goes on with the samples, batches and metrics that it began with. "
                f"Received: {now}, after {self.step_in_epoch} steps of the epoch with {then}, in "
                f"{self.where}. Use the same, or go on from a checkpoint of the end of an epoch."
            )

    def begin(self) -> None:
        """Let random generators be what they were when the first call began."""
        if choice.compiler().seed() != self.state["seed"]:
            tf.random.set_seed(self.state["seed"])
        randomness.set_state(self.state["begun"])

    def _arrive(self) -> None:
        """Let them be what they were when the checkpoint was saved.

        A stream that draws has drawn the same again, and was read ahead when that was noted.
        """
        if not self.reads_stream:
            randomness.set_state(self.state["now"])

    def announce(self, anew: Sequence[str]) -> None:
        """Say what happens.

        Args:
            anew: callbacks that have no state.
        """
        within = f", after {self.step_in_epoch} of its steps" if self.step_in_epoch else ""
        text = f"hyparflow: training goes on from {self.where}: epoch {self.epoch + 1}{within}"
        if self.is_over:
            text = f"hyparflow: training was over in {self.where}"
        STATUS.info(text)
        if anew:
            STATUS.warning(
                "hyparflow: these callbacks were not there when the checkpoint was saved, and "
                "begin anew: %s",
                ", ".join(anew),
            )
