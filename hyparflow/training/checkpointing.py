"""Adds to the callbacks of a call the one that saves checkpoints. On the leader."""

from __future__ import annotations

import copy
import types
from typing import Any

import keras

from hyparflow.checkpoint.save_point import SavePoint
from hyparflow.training.call import Call
from hyparflow.training.checkpoints.callback_states import best_weights
from hyparflow.training.checkpoints.saves import Saves
from hyparflow.training.worker import Worker

__all__ = ["with_checkpoints"]


def with_checkpoints(arguments: dict[str, Any], call: Call, worker: Worker) -> dict[str, Any]:
    """The arguments for Keras's `fit`, so that it saves checkpoints and goes on from one.

    Args:
        arguments: those without.
        call: what is called.
        worker: the leader's.
    """
    if call.checkpoint is None:
        return arguments
    given: Any = arguments.get("callbacks")
    others = _listed(given)
    side = worker.checkpoints

    def save(point: SavePoint) -> None:
        command = side.prepare(point, best_weights(others))
        if command is not None:
            worker.order(command)

    side.saves = saves = Saves(
        call.checkpoint,
        others,
        within_epochs=not call.shards and not isinstance(call.stream, types.GeneratorType),
        save=save,
        newest=side.newest,
        first_epoch=int(arguments.get("initial_epoch", 0)),
        resumption=side.resumption,
        restore_metrics=side.restore_metrics,
    )
    saves.prepare()
    callbacks: Any = [*others, saves]
    if isinstance(given, keras.callbacks.CallbackList):
        saves.set_model(given.model)
        callbacks = copy.copy(given)
        callbacks.callbacks = [*others, saves]
    ready = arguments | {"callbacks": callbacks}
    if side.resumption is not None:
        ready["initial_epoch"] = side.resumption.initial_epoch
    return ready


def _listed(given: Any) -> list[Any]:
    """The callbacks, with one that keeps the History before what saves it."""
    if isinstance(given, keras.callbacks.CallbackList):
        listed = list(given.callbacks)
    else:
        listed = keras.tree.flatten(given or [])
    if not any(isinstance(one, keras.callbacks.History) for one in listed):
        listed.append(keras.callbacks.History())
    return listed
