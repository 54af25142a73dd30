"""Gives TensorBoard what it cannot know: the pace of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from hyparflow import keras_internals
from hyparflow.commands import Command
from hyparflow.worker import Worker

__all__ = ["PaceToBoards", "find_boards"]


def find_boards(callbacks: Sequence[Any]) -> list[Any]:
    """The TensorBoard callbacks among `callbacks`."""
    return [each for each in callbacks if isinstance(each, keras.callbacks.TensorBoard)]


class PaceToBoards(keras.callbacks.Callback):
    """Writes an epoch's pace beside what TensorBoard callbacks write of it.

    Args:
        boards: these callbacks.
        worker: the leader's worker.
    """

    def __init__(self, boards: Sequence[Any], worker: Worker) -> None:
        super().__init__()
        self._boards, self._worker = boards, worker

    def on_train_begin(self, logs: Any = None) -> None:
        self._worker.order(Command("time_steps"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        pace = self._worker.order(Command("tell_pace"))
        values = {f"epoch_{name}": value for name, value in pace.items()}
        for board in self._boards:
            keras_internals.write_scalars(board, values, epoch)
