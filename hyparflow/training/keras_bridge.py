"""The bridge to Keras's own fit loop, on the leader.

Who does what:

================================  ==========================================================
epochs, validation, History,      Keras's own `fit`, `evaluate`, `predict` of the user's model
callbacks, progress bar
order of samples                  Keras's own data adapter, fed with row numbers
one step                          `bridge` replaces `train_step`, `test_step`, `predict_step`
                                  of this one model object, for the time of the call
weights that callbacks ask for    `bridge` wraps `get_weights`, `save` and the like: the
                                  owners' weights are gathered first
weights that callbacks set        `bridge` wraps `set_weights` and `load_weights`: the leader's
                                  weights go to all ranks afterwards
variables that callbacks read     `with_weights`, at the ends of epochs and evaluations
variables that callbacks assign   `WriteLog` notes them, and they go to all ranks before the next
                                  command
================================  ==========================================================

The model itself is given the steps, rather than a model around it, because callbacks and the
user's own functions hold on to the model that they know.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from hyparflow.engine.compiled.tensors import as_tensors
from hyparflow.model.keras_internals.data import ToldEnd, unpack, untuned_datasets
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.patched import patched
from hyparflow.training.callbacks import ThroughputToBoards, WeightsIn, WeightsOut, find_boards
from hyparflow.training.commands import (
    DrawBatch,
    Evaluate,
    Finalize,
    Gather,
    Predict,
    Scatter,
    StepCommand,
    TellEpoch,
    Train,
)
from hyparflow.training.data.array_source import dense
from hyparflow.training.data.streams import tickets
from hyparflow.training.optimizer_settings import Tuning
from hyparflow.training.worker import Worker

__all__ = ["bridge", "row_numbers", "step_tickets", "with_weights"]

_PREFIX = "hyparflow_rows_of_"
_TICKET = "hyparflow_step_of_"
_READS = ("get_weights", "save", "save_weights", "export", "get_state_tree")
_WRITES = ("set_weights", "load_weights", "set_state_tree")


def row_numbers(source: str, count: int) -> dict[str, np.ndarray]:
    """The data for Keras's `fit` in place of the arrays of `source`: the numbers of their rows."""
    return {_PREFIX + source: np.arange(count)}


def step_tickets(source: str, worker: Worker) -> Any:
    """The data for Keras's `fit` in place of streams that each replica reads itself."""

    def tell(event: str) -> None:
        worker.order(TellEpoch(source, event))

    return tickets(_TICKET + source, tell)


def with_weights(callbacks: Any, worker: Worker) -> Any:
    """The user's callbacks between `WeightsIn` and `WeightsOut`; nothing if there are none."""
    if not callbacks:
        return callbacks
    if isinstance(callbacks, keras.callbacks.CallbackList):
        surrounded = copy.copy(callbacks)  # the user's own serves other calls, too
        surrounded.callbacks = _surrounded(callbacks.callbacks, worker)
        return surrounded
    return _surrounded(keras.tree.flatten(callbacks), worker)


def _surrounded(callbacks: list[Any], worker: Worker) -> list[Any]:
    boards = find_boards(callbacks)
    after = [ThroughputToBoards(boards, worker)] if boards else []
    return [WeightsIn(worker), *callbacks, *after, WeightsOut(worker)]


@contextlib.contextmanager
def bridge(model: Any, worker: Worker) -> Iterator[None]:
    """While open, Keras's methods of `model` train it on all ranks.

    Args:
        model: the user's model, on the leader.
        worker: the leader's worker.
    """
    steps = _Steps(model, worker)
    replaced: dict[str, Any] = {
        "train_step": steps.train_step,
        "test_step": steps.test_step,
        "predict_step": steps.predict_step,
    }
    for name in _READS:
        if hasattr(model, name):
            replaced[name] = _gathered(getattr(model, name), worker, writes=False)
    for name in _WRITES:
        replaced[name] = _gathered(getattr(model, name), worker, writes=True)
    was_eager = model.run_eagerly if model.compiled else False
    with (
        patched(model, **replaced),
        worker.weights.log.listening(),
        _layers_gathered(model, worker),
        _finalized_everywhere(model, worker),
        untuned_datasets(),
    ):
        try:
            model.run_eagerly = True
            _forget_functions(model)
            worker.python.begin()
            yield
        finally:
            model.run_eagerly = was_eager
            _forget_functions(model)


@contextlib.contextmanager
def _layers_gathered(model: Any, worker: Worker) -> Iterator[None]:
    """While open, `get_weights` and `set_weights` of each layer find the present weights."""
    with contextlib.ExitStack() as stack:
        for layer in all_layers(model, include_self=False):
            # Weights that are set on a layer reach the other ranks through `WriteLog`.
            methods = {name: getattr(layer, name) for name in ("get_weights", "set_weights")}
            given = {n: _gathered(m, worker, writes=False) for n, m in methods.items()}
            stack.enter_context(patched(layer, **given))
        yield


def _forget_functions(model: Any) -> None:
    """Let Keras build its step functions anew."""
    for name in ("train_function", "test_function", "predict_function"):
        setattr(model, name, None)


def _gathered(method: Callable[..., Any], worker: Worker, writes: bool) -> Callable[..., Any]:
    """`method` with the owners' weights gathered before and, if it writes, scattered after."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        worker.order(Gather())
        result = method(*args, **kwargs)
        if writes:
            worker.order(Scatter())
        return result

    return wrapper


@contextlib.contextmanager
def _finalized_everywhere(model: Any, worker: Worker) -> Iterator[None]:
    """Let the optimizer's end-of-fit action happen on every rank."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        yield
        return
    original = optimizer.finalize_variable_values

    def finalize(variables: Any) -> None:
        worker.order(Finalize())
        with worker.weights.log.paused():  # every rank does it
            original(variables)

    with patched(optimizer, finalize_variable_values=finalize):
        yield


class _Steps:
    """The three steps that Keras calls, as commands to all ranks."""

    def __init__(self, model: Any, worker: Worker) -> None:
        self._worker = worker
        self._tuning = Tuning(model)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One training step on all ranks; the metrics so far."""
        command, rows = self._command(Train, data)
        self._tuning.add_to(command.changes)
        return self._worker.step(command, rows)

    def test_step(self, data: Any) -> dict[str, Any]:
        """One evaluation step on all ranks; the metrics so far."""
        return self._worker.step(*self._command(Evaluate, data))

    def predict_step(self, data: Any) -> Any:
        """One prediction step on all ranks; the outputs of the whole batch."""
        return as_tensors(self._worker.order(*self._command(Predict, data)))

    def _command(self, kind: type[StepCommand], data: Any) -> tuple[StepCommand, Any]:
        if isinstance(data, tuple) and len(data) == 1:
            data = data[0]
        if isinstance(data, dict) and len(data) == 1:
            key, value = next(iter(data.items()))
            if key.startswith(_PREFIX):
                indices = np.array(value)
                return kind(key.removeprefix(_PREFIX), indices, len(indices)), None
            if key.startswith(_TICKET):
                return self._drawn(kind, key.removeprefix(_TICKET), int(value)), None
        parts = unpack(data)
        batch = keras.tree.map_structure(lambda x: None if x is None else dense(x), parts)
        first = next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None)
        return kind(rows=len(first)), tuple(batch)

    def _drawn(self, kind: type[StepCommand], source: str, step: int) -> StepCommand:
        """The command for the batches that the replicas take from their streams.

        Raises:
            StopIteration: at the end of all streams, which ends Keras's epoch.
        """
        counts, tell_length = self._worker.order(DrawBatch(source, is_first=step == 0))
        if not any(counts):
            raise ToldEnd if tell_length else StopIteration
        return kind(source, rows=sum(counts), counts=counts)
