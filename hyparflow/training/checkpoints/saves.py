"""The callback that saves checkpoints, and lets a call of `fit` go on from one. On the leader."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.checkpoint.save_point import SavePoint
from hyparflow.checkpoint.settings import Checkpoint
from hyparflow.comm.log import STATUS
from hyparflow.launching.progress_note import note_progress, note_saved
from hyparflow.model.keras_internals.optimizer import settable_learning_rates
from hyparflow.training.checkpoints import randomness
from hyparflow.training.checkpoints.callback_states import restore_callbacks, states_of_callbacks
from hyparflow.training.checkpoints.json_values import from_json, to_json
from hyparflow.training.checkpoints.resumption import Resumption
from hyparflow.training.checkpoints.told_to_end import SAVED, was_told

__all__ = ["Saves"]


class Saves(keras.callbacks.Callback):
    """Last of the callbacks: the others have counted when it saves what they count.

    Args:
        settings: when to save.
        callbacks: the others of the call.
        within_epochs: whether data can go on in the middle of an epoch.
        save: saves a checkpoint on all ranks.
        newest: waits for the last save, and tells the step of the newest checkpoint.
        first_epoch: the epoch with which the call was asked to begin.
        resumption: what the call goes on from, or None.
        restore_metrics: takes the states of metrics back.
        reading: what an epoch that goes on must have in common with the one that was saved.
    """

    def __init__(
        self,
        settings: Checkpoint,
        callbacks: Sequence[Any],
        within_epochs: bool,
        save: Callable[[SavePoint], object],
        newest: Callable[[], int | None],
        first_epoch: int,
        resumption: Resumption | None,
        restore_metrics: Callable[[np.ndarray], object],
        reading: dict[str, Any],
    ) -> None:
        super().__init__()
        self._settings, self._others, self._save = settings, callbacks, save
        self._within_epochs, self._newest, self._reading = within_epochs, newest, reading
        self._resumption, self._restore_metrics = resumption, restore_metrics
        self._best: float | None = None
        self._best_step: int | None = None
        self._first_epoch = first_epoch
        self._begun: dict[str, Any] = {}  # random generators when the call began
        self._seed = 0
        self._rates: list[tuple[Any, float]] = []  # learning rates when the call began
        self._step, self._epoch, self._step_in_epoch = 0, 0, 0
        self._saved_at, self._saved_step = time.monotonic(), 0
        if resumption is not None:
            self._step, self._saved_step = resumption.step, resumption.step
            self._best = from_json(resumption.state["best"])
            self._best_step = resumption.state["best_step"]
            self._first_epoch = resumption.state["first_epoch"]
            note_saved(resumption.step)

    def prepare(self, model: Any) -> None:
        """Before Keras opens the data: note, or set, the random generators that order samples."""
        if self._resumption is not None:
            self._resumption.begin()
        self._rates = [(rate, float(rate.numpy())) for rate in settable_learning_rates(model)]
        self._seed = randomness.seed_of_order()
        self._begun = randomness.state_now()

    # --- Keras's hooks ---

    def on_train_begin(self, logs: Any = None) -> None:
        self._saved_at = time.monotonic()
        if self._resumption is not None:
            self._restore(self._resumption)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._step_in_epoch = epoch, 0
        resumption, self._resumption = self._resumption, None
        if resumption is not None and resumption.step_in_epoch:
            self._step_in_epoch = resumption.step_in_epoch
            # What callbacks do when an epoch begins they did before the save, too.
            self._restore_callbacks(resumption)
            for rate, value in self._rates:
                rate.assign(value)
            self._restore_metrics(resumption.metrics)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._step_in_epoch = epoch + 1, 0
        self._note_best(logs or {})
        self._save_now()

    # --- around steps ---

    def before_step(self) -> None:
        """Save if it is time; there is a batch, so an epoch that goes on has a step."""
        if self._step_in_epoch and self._within_epochs and self._is_time():
            self._save_now()
        if was_told() and self._step == self._saved_step:
            STATUS.info("hyparflow: told to end by SIGUSR1; saved up to step %s", self._newest())
            raise SystemExit(SAVED)

    def after_step(self) -> None:
        """Count a training step."""
        self._step += 1
        self._step_in_epoch += 1
        note_progress(self._epoch + 1, self._step)

    def _is_time(self) -> bool:
        if self._step_in_epoch % self.model.steps_per_execution:
            return False
        if was_told():
            return True
        steps, minutes = self._settings.every_steps, self._settings.every_minutes
        if steps is not None and self._step - self._saved_step >= steps:
            return True
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    # --- what is saved ---

    def _save_now(self) -> None:
        state = {
            "history": to_json(self.model.history.history),
            "epochs": to_json(self.model.history.epoch),
            "is_stopped": bool(self.model.stop_training),
            "callbacks": states_of_callbacks(self._others),
            "best": to_json(self._best),
            "best_step": self._best_step,
            "first_epoch": self._first_epoch,
            "reading": self._reading,
            "seed": self._seed,
            "begun": self._begun,
            "now": randomness.state_now(),
        }
        point = SavePoint(
            step=self._step,
            epoch=self._epoch,
            step_in_epoch=self._step_in_epoch,
            state=state,
            best=self._best_step,
        )
        self._save(point)
        self._saved_at, self._saved_step = time.monotonic(), self._step

    def _note_best(self, logs: dict[str, Any]) -> None:
        name = self._settings.keep_best
        if name is None:
            return
        if name not in logs:
            STATUS.warning(
                "hyparflow: keep_best=%r is none of the metrics of an epoch (%s), and decides "
                "nothing",
                name,
                ", ".join(sorted(logs)),
            )
            return
        value = float(logs[name])
        if self._best is None or self._settings.is_better(value, self._best):
            self._best, self._best_step = value, self._step

    def _restore(self, resumption: Resumption) -> None:
        """Let History and callbacks go on; after they have begun anew."""
        self.model.history.history = from_json(resumption.state["history"])
        self.model.history.epoch = from_json(resumption.state["epochs"])
        resumption.announce(self._restore_callbacks(resumption))

    def _restore_callbacks(self, resumption: Resumption) -> list[str]:
        return restore_callbacks(self._others, resumption.state["callbacks"], resumption.weights)
