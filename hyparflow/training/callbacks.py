"""hyparflow's callbacks on the leader: they move weights, and give TensorBoard the throughput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from hyparflow.model.keras_internals.callbacks import write_scalars
from hyparflow.training.commands import Gather, MeasureThroughput, TellThroughput
from hyparflow.training.worker import Worker

__all__ = ["ThroughputToBoards", "WeightsIn", "WeightsOut", "find_boards"]

_AT_ONCE = 1 << 28  # bytes that the leader takes for other partitions' weights unasked


class WeightsIn(keras.callbacks.Callback):
    """First of the callbacks: gathers current weights, so that the other callbacks see them.

    A callback may read and write variables directly, which no wrapper of a method can notice. What
    is not gathered is asked for when it is read.

    Attributes:
        hooks: the methods in which it does so.

    Args:
        worker: the leader's worker.
        reads: whether callbacks run code of the user's own then, which may read everything.
    """

    hooks = tuple(
        f"on_{what}_{end}"
        for what in ("train", "epoch", "test", "predict")
        for end in ("begin", "end")
    )

    def __init__(self, worker: Worker, reads: bool) -> None:
        super().__init__()
        self._worker = worker
        self._everything = reads and worker.weights.bytes_elsewhere <= _AT_ONCE

    def _enter(self, *args: Any, **kwargs: Any) -> None:
        self._worker.order(Gather(self._everything))
        self._worker.weights.watch(True)

    on_train_begin = on_train_end = on_epoch_begin = on_epoch_end = _enter
    on_test_begin = on_test_end = on_predict_begin = on_predict_end = _enter


class WeightsOut(keras.callbacks.Callback):
    """Last of the callbacks: sends weights that other callbacks wrote to all ranks."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def _leave(self, *args: Any, **kwargs: Any) -> None:
        self._worker.send_writes()
        self._worker.weights.watch(False)
        self._worker.weights.drop()

    on_train_begin = on_train_end = on_epoch_begin = on_epoch_end = _leave
    on_test_begin = on_test_end = on_predict_begin = on_predict_end = _leave


def find_boards(callbacks: Sequence[Any]) -> list[Any]:
    """The TensorBoard callbacks among `callbacks`."""
    return [each for each in callbacks if isinstance(each, keras.callbacks.TensorBoard)]


class ThroughputToBoards(keras.callbacks.Callback):
    """Writes an epoch's throughput into the files of TensorBoard callbacks.

    Args:
        boards: these callbacks.
        worker: the leader's worker.
    """

    def __init__(self, boards: Sequence[Any], worker: Worker) -> None:
        super().__init__()
        self._boards, self._worker = boards, worker

    def on_train_begin(self, logs: Any = None) -> None:
        self._worker.order(MeasureThroughput())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        throughput = self._worker.order(TellThroughput())
        values = {f"epoch_{name}": value for name, value in throughput.items()}
        for board in self._boards:
            write_scalars(board, values, epoch)
