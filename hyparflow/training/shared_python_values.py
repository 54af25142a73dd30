"""All ranks read the Python values that the leader's callbacks leave."""

from __future__ import annotations

from typing import Any

from hyparflow.model.python_values import PythonValues
from hyparflow.training.commands import Command
from hyparflow.training.optimizer_settings import SETTINGS

__all__ = ["PythonFollower"]

_KEY, _ANEW = "python", "compile_anew"  # of a command's values
_STEPS = ("train", "test", "predict")
_LAST = "finish"  # the command with which ranks end alike


class PythonFollower:
    """Sends changes of Python values with the commands during which calls read them.

    That is while a step runs eagerly or, as its kind and rows are new, is traced.

    Args:
        model: the user's model.
        traced: the kinds and rows of steps that ran before; further ones are added.
    """

    def __init__(self, model: Any, traced: set[tuple[str, int]]) -> None:
        self._model = model
        self._traced = traced
        self._is_eager = model.compiled and model.run_eagerly
        self._values: PythonValues | None = None
        self._trainable: list[bool] = []
        self._is_read = False

    def begin(self) -> None:
        """Leader: from now on, callbacks may change something."""
        self._values = PythonValues(self._model)
        self._values.note()
        self._trainable = self._flags()

    def _flags(self) -> list[bool]:
        return [variable.trainable for variable in self._model.variables]

    def send(self, command: Command) -> None:
        """Leader: add to `command` what was changed, if it is read.

        Raises:
            ValueError: if a change cannot be followed.
        """
        if command.name == _LAST and self._values is not None:
            command.values[_KEY] = self._values.changes(required=False)
        step = command.name, command.rows
        is_new = command.name in _STEPS and step not in self._traced
        self._is_read = self._values is not None and (
            is_new or (self._is_eager and command.name in _STEPS)
        )
        if self._values is None or not self._is_read:
            return
        is_first = not any(name == command.name for name, _ in self._traced)
        self._traced.add(step)
        if command.name == "train" and (self._is_eager or is_first):
            self._check_trainable()
        if changes := self._values.changes():
            command.values[_KEY] = changes
        # What was compiled before the first step, and what stays compiled in an eager one.
        changed = changes or command.values.get(SETTINGS)
        command.values[_ANEW] = bool(changed) and (is_first or self._is_eager)

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
        """Leader: the command was carried out; what a step itself changed is no news."""
        if self._values is not None and self._is_read:
            self._values.note()

    def take(self, command: Command) -> None:
        """Follower: take over what `command` brings."""
        if changes := command.values.get(_KEY):
            self._values = self._values or PythonValues(self._model)
            self._values.apply(changes)

    @staticmethod
    def compiles_anew(command: Command) -> bool:
        """Whether what `command` runs must read changed values, although it was compiled."""
        return bool(command.values.get(_ANEW))
