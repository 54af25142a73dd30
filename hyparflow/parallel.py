"""The object behind `fit`, `evaluate` and `predict`: a model spread over the ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import keras

from hyparflow import build, checks, fingerprint, guard, keras_internals, notices
from hyparflow.comm import World
from hyparflow.data import ArraySource, peek
from hyparflow.grid import LEADER
from hyparflow.layout import Layout, make_layout
from hyparflow.options import Options, automatic_microbatches
from hyparflow.portable import portable
from hyparflow.saving import save_atomically, use_atomic_saves
from hyparflow.trainer import bridge, row_numbers, with_weights
from hyparflow.worker import Command, Worker

__all__ = ["ParallelModel"]

_DEFAULT_BATCH = 32  # Keras's


class ParallelModel:
    """A Keras model on the ranks of a job. Every method is called by all ranks alike.

    Made by `hyparflow.parallelize`; what was compiled for one call serves the next.

    Args:
        model: a Keras model.
        options: the checked parallel arguments.
        world: all ranks.
    """

    def __init__(self, model: Any, options: Options, world: World) -> None:
        self.model = model
        self.options = options
        self._world = world
        self._part: build.Part | None = None
        self._part_key: Any = None
        self._layout: Layout | None = None

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

        outcome = self._session(train, sources, x, rows, check=("fit", kwargs, rows))
        return self._history(outcome)

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
        return self._session(
            lambda worker, stream: self.model.evaluate(
                **(arguments if stream is None else arguments | {"x": stream}),
                callbacks=with_weights(callbacks, worker),
            ),
            sources,
            x,
            rows,
            check=("evaluate", kwargs, rows),
        )

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
        return self._session(
            lambda worker, stream: self.model.predict(
                data if stream is None else stream,
                batch_size=batch_size,
                callbacks=with_weights(callbacks, worker),
                **kwargs,
            ),
            sources,
            x,
            rows,
            check=("predict", kwargs, rows),
        )

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
        layout = self._layout or make_layout(self.model, self.options)
        return f"replicas: {grid.num_replicas}\n{layout.describe()}"

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
        if class_weight is not None:
            # `validation_split` cuts these rows off before Keras applies class weights.
            sources["train without class weights"] = ArraySource(x, y, sample_weight)
        return {"x": row_numbers("train", source.num_samples)}

    # --- running ---

    def _session(
        self,
        lead: Callable[[Worker, Any], Any],
        sources: dict[str, ArraySource],
        stream: Any,
        rows: int,
        check: Any,
    ) -> Any:
        """Run `lead` on the leader while the others follow; its result, on every rank.

        Args:
            lead: calls Keras; takes the leader's worker and the stream to read.
            sources: the arrays of this call.
            stream: the data where they are no arrays; only the leader reads it.
            rows: rows of a full batch.
            check: what must be the same on all ranks.
        """
        count = self.options.num_microbatches
        if not isinstance(count, int):
            count = automatic_microbatches(rows, self.options.grid)
        if self.options.grid.num_partitions > 1:
            checks.check_can_cut(self.model)
        is_leader = self._world.rank == LEADER
        if self.model.built and self._layout is None:
            self._layout = make_layout(self.model, self.options)
        fingerprint.require_same(
            self._world, fingerprint.collect(self.model, self.options, sources, *check)
        )
        if "train" in sources:
            stream, specs = None, sources["train"].specs()
        else:
            stream, specs = self._peek(stream)
        part = self._build(specs, with_loss=check[0] != "predict")
        if is_leader and check[0] == "fit":
            notices.announce(self.model, self.options, rows, count, part.terms, check[1])
        worker = Worker(self.model, part, self.options, self._world, count)
        worker.sources = sources
        try:
            worker.start()
            result = self._lead(worker, lead, stream) if is_leader else worker.follow()
        except BaseException as error:
            if not getattr(error, "hyparflow_everywhere", False):
                guard.locate(error, self.options.grid.describe(self._world.rank))
                guard.fail(error)
            raise
        finally:
            self._world.board.write("outside of hyparflow")
        use_atomic_saves(self.model)
        return result

    def _peek(self, stream: Any) -> tuple[Any, Any]:
        """What `peek` returns on the leader; None and the specs on the others. Collective."""
        specs = error = None
        try:
            if self._world.rank == LEADER:
                stream, specs = peek(stream)
        except Exception as caught:
            error = caught
        message = (specs, error and portable(error))
        specs, recipe = self._world.broadcast_object(message, LEADER, "the types of the data")
        if recipe is not None:
            raise guard.everywhere(error or recipe[0](*recipe[1]))
        return stream, specs

    def _lead(self, worker: Worker, lead: Callable[[Worker, Any], Any], stream: Any) -> Any:
        try:
            with bridge(self.model, worker):
                result = lead(worker, stream)
        except Exception as error:
            if worker.in_command:
                raise  # in the middle of a step: no rank can go on
            guard.locate(error, f"{self.options.grid.describe(LEADER)}, between two steps")
            guard.everywhere(error)
            worker.order(Command("finish"))  # as in plain Keras, what was learnt so far is kept
            worker.release("fail", error=portable(error))
            raise
        worker.order(Command("finish"))
        worker.release("stop", result=result)
        return result

    def _build(self, specs: Any, with_loss: bool) -> build.Part:
        """This rank's part, built anew after the model was compiled again.

        As in plain Keras, what is trainable is decided at the first `fit` after `compile`.
        """
        model = self.model
        if isinstance(model, keras.Sequential) and not model.built:
            model.build(specs[0].shape)
        if not model.built:
            zeros = keras.tree.map_structure(lambda spec: spec.zeros(), specs[0])
            inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, zeros)
            keras_internals.call_model(model, inputs, False)
        compiled = model.compiled
        key = (
            id(model.optimizer) if compiled else 0,
            id(keras_internals.compile_loss(model)) if compiled else 0,
            id(keras_internals.compile_metrics(model)) if compiled else 0,
            compiled and model.run_eagerly,
        )
        usable = self._part is not None and (self._part.metrics is not None or not with_loss)
        if self._part is None or not usable or self._part_key != key:
            for comm in self._part.comms if self._part else []:
                comm.free()
            self._layout = make_layout(model, self.options)
            self._part = build.build_part(
                model, self._layout, self.options, self._world, specs, with_loss
            )
            self._part_key = key
        return self._part

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
