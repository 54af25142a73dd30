"""Adds to the callbacks of a call the one that saves checkpoints. On the leader."""

from __future__ import annotations

import copy
import types
from typing import Any

import keras

from hyparflow.checkpoint.save_point import SavePoint
from hyparflow.model.keras_internals.compiled import tracked_metrics
from hyparflow.training.call import Call
from hyparflow.training.checkpoints.callback_states import best_weights
from hyparflow.training.checkpoints.saves import Saves
from hyparflow.training.worker import Worker

__all__ = ["with_checkpoints"]


def with_checkpoints(
    arguments: dict[str, Any], call: Call, worker: Worker, model: Any
) -> dict[str, Any]:
    """The arguments for Keras's `fit`, so that it saves checkpoints and goes on from one.

    Args:
        arguments: those without.
        call: what is called.
        worker: the leader's.
        model: the user's.

    Raises:
        ValueError: if the training cannot go on from its checkpoint with these arguments.
    """
    if call.checkpoint is None:
        return arguments
    given: Any = arguments.get("callbacks")
    others = _listed(given)
    _require_alone(others)
    side = worker.checkpoints
    reading = _reading(call, model)
    if side.resumption is not None:
        side.resumption.require(reading)

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
        reading=reading,
    )
    saves.prepare(model)
    callbacks: Any = [*others, saves]
    if isinstance(given, keras.callbacks.CallbackList):
        saves.set_model(given.model)
        callbacks = copy.copy(given)
        callbacks.callbacks = [*others, saves]
    ready = arguments | {"callbacks": callbacks}
    if side.resumption is not None:
        ready["initial_epoch"] = side.resumption.initial_epoch
    return ready


def _require_alone(callbacks: list[Any]) -> None:
    """Refuse the callback of Keras that lets training go on from a file of its own.

    Raises:
        ValueError: if it is there.
    """
    if any(isinstance(one, keras.callbacks.BackupAndRestore) for one in callbacks):
        raise ValueError(
            "Training goes on from one place. Received: `checkpoint` and Keras's callback "
            "BackupAndRestore, which would both set weights back. Leave one of them out."
        )


def _reading(call: Call, model: Any) -> dict[str, Any]:
    """What the rest of an epoch must have in common with its beginning."""
    source = call.sources.get("train")
    return {
        "samples": None if source is None else source.num_samples,
        "batch_size": None if source is None else call.rows,
        "steps_per_epoch": call.arguments.get("steps_per_epoch"),
        "metrics": [metric.name for metric in tracked_metrics(model)],
    }


def _listed(given: Any) -> list[Any]:
    """The callbacks, with one that keeps the History before what saves it."""
    if isinstance(given, keras.callbacks.CallbackList):
        listed = list(given.callbacks)
    else:
        listed = keras.tree.flatten(given or [])
    if not any(isinstance(one, keras.callbacks.History) for one in listed):
        listed.append(keras.callbacks.History())
    return listed
