"""The object behind `fit`, `evaluate` and `predict`: a model spread over the ranks."""

from __future__ import annotations

import math
import os
from typing import Any

import keras

from hyparflow import checks, guard, keras_internals
from hyparflow.comm import World
from hyparflow.commands import Call
from hyparflow.data import ArraySource
from hyparflow.grid import LEADER
from hyparflow.options import Options
from hyparflow.saving import save_atomically
from hyparflow.session import Session
from hyparflow.trainer import row_numbers, with_weights
from hyparflow.worker import Worker

__all__ = ["ParallelModel"]

_DEFAULT_BATCH = 32  # Keras's


class ParallelModel:
    """A Keras model on the ranks of a job. Every method is called by all ranks alike.

    Made by `hyparflow.parallelize`; what was compiled for one call serves the next.

    Args:
        model: a Keras model.
        options: the checked parallel arguments.
        world: all ranks.
        session: runs the calls; shared by all with the same grid, lpp and batchnorm.
    """

    def __init__(self, model: Any, options: Options, world: World, session: Session) -> None:
        self.model = model
        self.options = options
        self._world = world
        self._session = session

    # --- public ---

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        class_weight: Any = None,
        validation_data: Any = None,
        validation_batch_size: int | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Train as Keras's `fit` does; all its arguments are taken.

        Returns:
            The History, the same on every rank.
        """
        checks.require_compiled(self.model, "fit")
        checks.check_optimizer(self.model.optimizer, self.options)
        sources: dict[str, ArraySource] = {}
        arguments = dict(kwargs, batch_size=batch_size, validation_batch_size=validation_batch_size)
        arguments |= self._training_data(sources, x, y, sample_weight, class_weight)
        if validation_data is not None:
            parts = keras_internals.unpack(validation_data)
            if keras_internals.is_array_data(parts[0]):
                checks.check_labels(self.model, parts[1])
                sources["validation"] = ArraySource(*parts)
                numbers = row_numbers("validation", sources["validation"].num_samples)
                validation_data = (numbers,)
            arguments["validation_data"] = validation_data
        rows = batch_size or _batch_rows(sources.get("train"), kwargs.get("steps_per_epoch"))
        checks.check_batch(self.options, rows)

        def train(worker: Worker, stream: Any) -> Any:
            if stream is not None:
                arguments["x"] = stream
            history = self.model.fit(callbacks=with_weights(callbacks, worker), **arguments)
            return {"history": history.history, "epoch": history.epoch, "params": history.params}

        call = Call("fit", self.options, sources, x, rows, kwargs)
        return self._history(self._session.run(call, train))

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Evaluate as Keras's `evaluate` does; the result is the same on every rank."""
        checks.require_compiled(self.model, "evaluate")
        sources: dict[str, ArraySource] = {}
        arguments = dict(kwargs, batch_size=batch_size)
        arguments |= self._training_data(sources, x, y, sample_weight, None)
        rows = batch_size or _batch_rows(sources.get("train"), kwargs.get("steps"))

        def evaluate(worker: Worker, stream: Any) -> Any:
            if stream is not None:
                arguments["x"] = stream
            return self.model.evaluate(callbacks=with_weights(callbacks, worker), **arguments)

        call = Call("evaluate", self.options, sources, x, rows, kwargs)
        return self._session.run(call, evaluate)

    def predict(
        self, x: Any, batch_size: int | None = None, *, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        """Predict as Keras's `predict` does; the result is the same on every rank."""
        sources: dict[str, ArraySource] = {}
        checks.check_data(x)
        data = x
        if keras_internals.is_array_data(x):
            sources["train"] = ArraySource(x)
            data = row_numbers("train", sources["train"].num_samples)
        rows = batch_size or _batch_rows(sources.get("train"), kwargs.get("steps"))

        def predict(worker: Worker, stream: Any) -> Any:
            return self.model.predict(
                data if stream is None else stream,
                batch_size=batch_size,
                callbacks=with_weights(callbacks, worker),
                **kwargs,
            )

        call = Call("predict", self.options, sources, x, rows, kwargs)
        return self._session.run(call, predict)

    def save(self, path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the model as a plain Keras file: by the leader, complete or not at all.

        Args:
            path: ending in ".keras" (or another that Keras knows).
            **kwargs: passed to Keras's `save`.
        """
        error = None
        if self._world.rank == LEADER:
            try:
                save_atomically(self.model, path, **kwargs)
            except Exception as caught:  # noqa: BLE001 (raised below, on all ranks)
                error = caught
        error = self._world.broadcast_object(error, LEADER, "the leader to save the model")
        if error is not None:
            raise guard.everywhere(error)

    def __str__(self) -> str:
        grid = self.options.grid
        return f"replicas: {grid.num_replicas}\n{self._session.layout().describe()}"

    # --- data ---

    def _training_data(
        self,
        sources: dict[str, ArraySource],
        x: Any,
        y: Any,
        sample_weight: Any,
        class_weight: Any,
    ) -> dict[str, Any]:
        """Arrays become a source and row numbers; a stream goes to Keras as it is."""
        checks.check_data(x)
        if not keras_internals.is_array_data(x):
            given = {"y": y, "sample_weight": sample_weight, "class_weight": class_weight}
            return {"x": x} | {key: value for key, value in given.items() if value is not None}
        checks.check_labels(self.model, y)
        source = sources["train"] = ArraySource(x, y, sample_weight, class_weight)
        return {"x": row_numbers("train", source.num_samples)}

    def _history(self, outcome: dict[str, Any]) -> Any:
        if self._world.rank == LEADER:
            return self.model.history
        history = keras.callbacks.History()
        history.set_model(self.model)
        history.set_params(outcome["params"])
        history.history, history.epoch = outcome["history"], outcome["epoch"]
        self.model.history = history
        return history


def _batch_rows(source: ArraySource | None, steps: int | None) -> int:
    """The batch size that Keras chooses where none is given."""
    if source is not None and steps:
        return math.ceil(source.num_samples / steps)
    return _DEFAULT_BATCH
