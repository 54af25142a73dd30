"""The object behind `fit`, `evaluate` and `predict`: a model spread over the ranks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import keras

from hyparflow.checkpoint.settings import Checkpoint, as_checkpoint
from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.world import World
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.formats.text import counted_names
from hyparflow.model.checks import require_compiled
from hyparflow.model.experts.expert_checks import check_experts
from hyparflow.model.keras_internals.data import is_array_data
from hyparflow.options import Options
from hyparflow.tracing.collect import TraceRequest, wants_trace
from hyparflow.training import checks, notices
from hyparflow.training.call import Call
from hyparflow.training.checkpointing import with_checkpoints
from hyparflow.training.data.array_source import ArraySource
from hyparflow.training.data_arguments import (
    DATA,
    array_source,
    batch_rows,
    check_data,
    keras_arguments,
    reading,
    validation_parts,
)
from hyparflow.training.leader_arguments import leader_arguments
from hyparflow.training.leader_data import row_numbers
from hyparflow.training.saving_on_ranks import save_on_leader
from hyparflow.training.session import Session
from hyparflow.training.worker import Worker

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan

__all__ = ["ParallelModel"]


class ParallelModel:
    """A Keras model that is trained, evaluated and asked for predictions on the ranks of a job.

    Made by `hyparflow.parallelize`. All ranks call each method alike. What was compiled for one
    call serves the next.

    Args:
        model: A Keras model.
        options: The checked parallel arguments.
        world: All ranks.
        session: Runs the calls; shared by all objects of the model with the same layout.
        plan: The plan that the arguments come from, or `None`.
    """

    def __init__(
        self,
        model: Any,
        options: Options,
        world: World,
        session: Session,
        plan: Plan | None = None,
    ) -> None:
        self.model = model
        self._plan = plan
        self.options = options
        self._world = world
        self._session = session

    # --- public ---

    def fit(
        self,
        *args: Any,
        trace: str | os.PathLike[str] | None = None,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Train the model over the ranks, as Keras's `model.fit` does in one process.

        Args:
            *args: Positional arguments of `model.fit`: `x`, `y` and so on.
            trace: String, path or `None`. A file to write what each rank did in the last 200 steps,
                and when; see `hyparflow.fit`.
            checkpoint: String, path, `hyparflow.Checkpoint` or `None`. Where checkpoints are kept,
                and training goes on from; see `hyparflow.fit`.
            **kwargs: Keyword arguments of `model.fit`: `batch_size`, `epochs` and so on.

        Returns:
            A `History` object, the same on every rank.

        Raises:
            ValueError: If an argument is not valid; the same on every rank.
        """
        with abort.alike():
            arguments = keras_arguments(self.model, "fit", args, kwargs)
            require_compiled(self.model, "fit")
            checks.check_optimizer(self.model.optimizer, self.options)
            checks.check_jit_compile(self.model, self.options)
            checks.check_recompute(self.model, self.options)
            call = self._call("fit", arguments, arguments.get("steps_per_epoch"))
            self._take_validation_data(call, arguments)
            self._trace(call, trace)
            call.checkpoint = as_checkpoint(checkpoint)
            call.arguments["checkpoint"] = repr(call.checkpoint)  # the same on all ranks
            checks.check_batch(self.options, call.rows)
        if self._plan is not None and self._world.rank == LEADER:
            notices.announce_other_batch(self._plan.batch_size, call.rows)

        def train(worker: Worker, stream: Any) -> Any:
            ready = leader_arguments(call, arguments, worker, stream)
            history = self.model.fit(**with_checkpoints(ready, call, worker, self.model))
            return {"history": history.history, "epoch": history.epoch, "params": history.params}

        return self._history(self._session.run(call, train))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss and metrics, as Keras's `model.evaluate` does in one process.

        Args:
            *args: Positional arguments of `model.evaluate`.
            **kwargs: Keyword arguments of `model.evaluate`.

        Returns:
            What `model.evaluate` returns, the same on every rank.

        Raises:
            ValueError: If an argument is not valid; the same on every rank.
        """
        with abort.alike():
            arguments = keras_arguments(self.model, "evaluate", args, kwargs)
            require_compiled(self.model, "evaluate")
            call = self._call("evaluate", arguments, arguments.get("steps"))
        return self._session.run(
            call,
            lambda worker, stream: self.model.evaluate(
                **leader_arguments(call, arguments, worker, stream)
            ),
        )

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the model, as Keras's `model.predict` does in one process.

        Args:
            *args: Positional arguments of `model.predict`.
            **kwargs: Keyword arguments of `model.predict`.

        Returns:
            NumPy array(s) of predictions for all rows, the same on every rank.

        Raises:
            ValueError: If an argument is not valid; the same on every rank.
        """
        with abort.alike():
            arguments = keras_arguments(self.model, "predict", args, kwargs)
            call = self._call("predict", arguments, arguments.get("steps"))
        return self._session.run(
            call,
            lambda worker, stream: self.model.predict(
                **leader_arguments(call, arguments, worker, stream)
            ),
        )

    @property
    def num_replicas(self) -> int:
        """Integer. The number of replicas."""
        return self.options.grid.num_replicas

    @property
    def replica(self) -> int:
        """Integer, from 0. The replica that this rank belongs to."""
        return self.options.grid.replica(self._world.rank)

    @property
    def sequence_counts(self) -> SequenceCounts:
        """What this rank exchanged and kept so far to divide sequences; a `SequenceCounts`."""
        return self._session.sequence_counts

    def save(self, path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the model as a plain Keras file, which loads without hyparflow.

        All ranks call it, and the leader writes. The file is complete or not written at all.

        Args:
            path: String or path. The file to write, with a suffix that Keras knows: `.keras`.
            **kwargs: Keyword arguments of `model.save`.
        """
        save_on_leader(self.model, self._world, path, "save", **kwargs)

    def save_weights(self, path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the weights alone, as `save` does the model.

        Args:
            path: String or path. The file to write, which ends in `.weights.h5`.
            **kwargs: Keyword arguments of `model.save_weights`.
        """
        save_on_leader(self.model, self._world, path, "save_weights", **kwargs)

    def export(self, path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a SavedModel, as `save` does a Keras file.

        Args:
            path: String or path. The folder to write.
            **kwargs: Keyword arguments of `model.export`.
        """
        save_on_leader(self.model, self._world, path, "export", **kwargs)

    def __str__(self) -> str:
        grid = self.options.grid
        lines = [f"replicas: {grid.num_replicas}", self._session.layout().describe()]
        if self.options.divides_sequences:
            shards, chunks = grid.num_shards, self.options.num_sequence_chunks
            store = self.options.sequence_store
            lines.append(f"sequences: {shards} shards, {chunks} chunks, which wait in {store!r}")
        if self.options.recompute is not None:
            lines.append(f"forwards computed again: {self.options.recompute}")
        if self.options.shard_optimizer and grid.num_replicas > 1:
            lines.append("optimizer state: sharded over the replicas")
        if self.options.expert_parallel and grid.num_replicas > 1:
            lines.append("experts: shared out over the replicas")
        if rewritten := self._session.rewritten:
            lines.append(f"faster kernels on this rank: {counted_names(rewritten)}")
        return "\n".join(lines)

    # --- arguments ---

    def _call(self, method: str, arguments: dict[str, Any], steps: int | None) -> Call:
        """The call; arrays in `arguments` become sources, and row numbers take their place."""
        simple = {name: value for name, value in arguments.items() if name not in DATA}
        checks.check_sequences(self.model, self.options)
        check_experts(self.model, self.options)
        x = arguments.get("x")
        checks.check_own_steps(self.model, self.options)
        check_data("x", x)
        sources: dict[str, ArraySource] = {}
        if is_array_data(x):
            parts = [arguments.pop(name, None) for name in DATA[1:]]
            if method != "predict":
                checks.check_labels(self.model, parts[0], method)
            sources["train"] = array_source(x, *parts)
            arguments["x"] = row_numbers("train", sources["train"].num_samples)
        checks.check_shards(self.options, sources)
        rows = None  # known when the stream is opened
        if sources:
            rows = arguments.get("batch_size") or batch_rows(sources["train"], steps)
        call = Call(
            method=method,
            options=self.options,
            sources=sources,
            stream=x,
            rows=rows,
            arguments=simple,
            reading=reading(method, arguments),
        )
        if self.options.sharded_data:
            call.shards["train"] = (x, call.reading)
            arguments.pop("class_weight", None)
        return call

    def _take_validation_data(self, call: Call, arguments: dict[str, Any]) -> None:
        if (data := arguments.get("validation_data")) is None:
            return
        parts = validation_parts(data)
        if is_array_data(parts[0]):
            checks.check_labels(self.model, parts[1], "evaluate", within="validation_data")
            call.sources["validation"] = array_source(*parts, within="validation_data")
            numbers = row_numbers("validation", call.sources["validation"].num_samples)
            arguments["validation_data"] = (numbers,)
        elif self.options.sharded_data:
            call.shards["validation"] = (data, {})

    def _trace(self, call: Call, trace: Any) -> None:
        if wants_trace(trace):
            call.arguments["trace"] = True  # must be wanted by all ranks or by none
            plan = None if self._plan is None else self._plan.to_values()
            call.trace = TraceRequest(call, trace, plan)

    # --- results ---

    def _history(self, outcome: dict[str, Any]) -> Any:
        if self._world.rank == LEADER:
            return self.model.history
        history = keras.callbacks.History()
        history.set_model(self.model)
        history.set_params(outcome["params"])
        history.history, history.epoch = outcome["history"], outcome["epoch"]
        self.model.history = history
        return history
