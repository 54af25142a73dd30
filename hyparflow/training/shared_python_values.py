"""Sends changes of Python values by the leader's callbacks to all ranks."""

from __future__ import annotations

from typing import Any

from hyparflow.model.python_values import PythonValues
from hyparflow.training.commands import Command, Finish, StepCommand, Train

__all__ = ["PythonFollower"]


class PythonFollower:
    """Sends changes of Python values with the commands during which calls read them.

    Calls read them if a step runs eagerly, or is traced because its kind and rows are new.

    Args:
        model: the user's model.
        traced: the kinds and rows of steps that have run; new ones are added.
    """

    def __init__(self, model: Any, traced: set[tuple[str, int]]) -> None:
        self._model = model
        self._traced = traced
        self._is_eager = model.compiled and model.run_eagerly
        self._values: PythonValues | None = None
        self._trainable: list[bool] = []
        self._is_read = False

    def begin(self) -> None:
        """Leader: note the present values, before callbacks run."""
        self._values = PythonValues(self._model)
        self._values.note()
        self._trainable = self._flags()

    def _flags(self) -> list[bool]:
        return [variable.trainable for variable in self._model.variables]

    def send(self, command: Command) -> None:
        """Leader: add changed values to `command`, if it reads them.

        Raises:
            ValueError: if a change cannot be followed.
        """
        self._is_read = False
        if self._values is None:
            return
        if isinstance(command, Finish):  # after which all ranks have the same values
            command.changes.python = self._values.changes(required=False)
        if isinstance(command, StepCommand):
            self._send_with(command, self._values)

    def _send_with(self, step: StepCommand, values: PythonValues) -> None:
        kind = step.name, step.rows
        self._is_read = self._is_eager or kind not in self._traced
        if not self._is_read:
            return
        is_first = not any(name == step.name for name, _ in self._traced)
        self._traced.add(kind)
        if isinstance(step, Train) and (self._is_eager or is_first):
            self._check_trainable()
        step.changes.python = values.changes()
        # Functions that were compiled before the first step, or stay compiled in an eager one.
        changed = step.changes.python or step.changes.settings
        step.changes.compile_anew = bool(changed) and (is_first or self._is_eager)

    def _check_trainable(self) -> None:
        flags = self._flags()
        if flags == self._trainable:
            return
        pairs = zip(self._model.variables, flags, strict=True)
        odd = [v.path for (v, new), old in zip(pairs, self._trainable, strict=False) if new != old]
        raise ValueError(
            "Over several ranks, what is trainable is decided when `fit` begins. Received: a "
            f"callback that changed `trainable` of {odd[:3]}. Set it before `fit`, compile the "
            "model again, and call `fit` once for each phase."
        )

    def sent(self) -> None:
        """Leader: after the command, note the values again: all ranks make a step's own changes."""
        if self._values is not None and self._is_read:
            self._values.note()

    def take(self, command: Command) -> None:
        """Follower: make the changes in `command`."""
        if changes := command.changes.python:
            self._values = self._values or PythonValues(self._model)
            self._values.apply(changes)
