"""The bridge to Keras's own fit loop, on the leader.

Who does what:

================================  ==========================================================
epochs, validation, History,      Keras's own `fit`, `evaluate`, `predict` of the user's model
callbacks, progress bar
order of samples                  Keras's own data adapter, fed with row numbers
                                  (`leader_data.py`)
one step                          `bridge` replaces `train_step`, `test_step`, `predict_step`
                                  of this one model object by those of `LeaderSteps`
                                  (`worker.py`), for the time of the call
weights that callbacks ask for    `bridge` wraps `get_weights` and the like: the owners'
                                  weights are gathered first; `save` and `save_weights` get
                                  them from their owners one after another
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

from hyparflow.model.keras_internals.callbacks import runs_own_code
from hyparflow.model.keras_internals.data import untuned_datasets
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.passed_over import PassedOver
from hyparflow.model.keras_internals.patched import patched
from hyparflow.model.keras_internals.stored_values import loading_at_once, saving_by_disk
from hyparflow.training.callbacks import ThroughputToBoards, WeightsIn, WeightsOut, find_boards
from hyparflow.training.commands import Finalize, Gather, Scatter
from hyparflow.training.worker import LeaderSteps, Worker

__all__ = ["bridge", "with_weights"]

_READS = ("get_weights", "export", "get_state_tree")
_SAVES = ("save", "save_weights")
_WRITES = ("set_weights", "load_weights", "set_state_tree")


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
    reads = any(runs_own_code(callback, WeightsIn.hooks) for callback in callbacks)
    return [WeightsIn(worker, reads), *callbacks, *after, WeightsOut(worker)]


@contextlib.contextmanager
def bridge(
    model: Any, worker: Worker, steps: LeaderSteps, passed: PassedOver | None = None
) -> Iterator[None]:
    """While open, Keras's methods of `model` train it on all ranks.

    Args:
        model: the user's model, on the leader.
        worker: the leader's worker.
        steps: replace the model's steps.
        passed: the batches that Keras's loop passes over, for they were trained before.
    """
    replaced: dict[str, Any] = {
        "train_step": steps.train_step,
        "test_step": steps.test_step,
        "predict_step": steps.predict_step,
    }
    for name in _READS:
        if hasattr(model, name):
            replaced[name] = _gathered(getattr(model, name), worker, writes=False)
    for name in _SAVES:
        if hasattr(model, name):
            replaced[name] = _streamed(getattr(model, name), worker)
    for name in _WRITES:
        replaced[name] = _gathered(getattr(model, name), worker, writes=True)
    was_eager = model.run_eagerly if model.compiled else False
    with (
        patched(model, **replaced),
        worker.weights.log.listening(),
        worker.fetching(),
        _layers_gathered(model, worker),
        _finalized_everywhere(model, worker),
        untuned_datasets(passed),
        loading_at_once(),
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
        worker.weights.drop()
        return result

    return wrapper


def _streamed(method: Callable[..., Any], worker: Worker) -> Callable[..., Any]:
    """`method`, which reads one weight after another, with the owners asked for each."""

    if not worker.weights.are_parted:
        return _gathered(method, worker, writes=False)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        worker.order(Gather(everything=False))
        with worker.weights.streaming(), saving_by_disk():
            return method(*args, **kwargs)

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
