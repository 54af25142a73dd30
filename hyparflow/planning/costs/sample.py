"""A part of a model that can be run, to measure its time and memory."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.tensor_lifetimes import (
    Kept,
    kept_between,
    needed_in_order,
    working_bytes,
)
from hyparflow.engine.compiled.tensors import as_share
from hyparflow.engine.compiled.xla_function import is_by_xla
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.pooled_memory import peak_of
from hyparflow.engine.stages.recorded import Recorded
from hyparflow.engine.stages.stage import Stage
from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import CallContext
from hyparflow.model.keras_internals.deferred_variables import present
from hyparflow.model.random_rows import random_rows
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.planning.costs.saved_graph import write_graph
from hyparflow.planning.costs.segments import Segment
from hyparflow.planning.costs.tensor_sizes import known_shape
from hyparflow.planning.costs.traced_graph import TracedGraph

__all__ = ["TRACED_ROWS", "Sample", "SampleMemory"]

_ROWS_OF_SCRATCH = 16  # enough to tell what grows with rows from what does not
TRACED_ROWS = 13  # memory is counted for this number of rows


@dataclass
class SampleMemory:
    """The memory of a segment, for `TRACED_ROWS` rows.

    Attributes:
        kept: the tensors that are kept between a forward and its backward.
        working: bytes of further tensors.
        operations: how many operations were traced.
        by_xla: whether XLA compiles some of them.
    """

    kept: Kept
    working: int
    operations: int
    by_xla: bool


class Sample:
    """A segment of a model that can be run.

    Args:
        graph: the model's graph.
        operations: the same as pure data.
        segment: the part.
        trained: the model's trainable variables.
        rewriter: puts in faster kernels, each of which it proves once; None leaves all as it is.
    """

    def __init__(
        self,
        graph: FlatGraph,
        operations: OperationGraph,
        segment: Segment,
        *,
        trained: Sequence[Any],
        rewriter: Rewriter | None = None,
    ) -> None:
        self._graph, self._segment = graph, segment
        self._specs = [graph.tensors[n] for n in segment.inputs]
        function = graph.function(segment.inputs, segment.outputs, list(segment.operations))

        def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
            context = CallContext(training, share)
            return function(list(values), context), context.losses

        known = {id(v) for v in graph.variables(segment.operations)}
        self._weights = [v for v in trained if id(v) in known]
        needing = operations.gradient_tensors
        self._sources = [i for i, n in enumerate(segment.inputs) if n in needing]
        self._targets = [i for i, n in enumerate(segment.outputs) if n in needing]
        self._variables = graph.variables(segment.operations)
        self._body = body
        self._stage = Stage(body, self._weights, self._sources, self._targets, rewriter=rewriter)
        self._rewriter = rewriter
        both = functools.partial(self._both, rewriter)
        self._fused = tf.function(both, autograph=False, reduce_retracing=True)
        self._ran: set[tuple[str, int]] = set()  # what was run before, with so many rows
        self._forward_size = 0
        self._traced: list[Any] = []

    def inputs(self, rows: int) -> list[Any]:
        """Random inputs of `rows` rows."""
        return [random_rows((rows, *known_shape(x.shape[1:])), x.dtype) for x in self._specs]

    def _both(self, rewriter: Rewriter | None, inputs: list[Any]) -> Any:
        """Outputs and gradients; to be traced."""

        def compute() -> list[Any]:
            made, losses = self._body(inputs, True, tf.constant(1.0, tf.float64))
            return [*made, *losses]

        sources = [inputs[i] for i in self._sources] + [v.value for v in self._weights]
        recorded = Recorded(compute, sources, rewriter)
        self._forward_size = len(tf.compat.v1.get_default_graph().get_operations())
        self._traced = recorded.results[: len(self._segment.outputs)]
        targets = [x for x in recorded.results if x.dtype.is_floating]
        return self._traced, recorded.gradients(targets, None) if sources else []

    def memory(self) -> SampleMemory:
        """The memory of the segment, for `TRACED_ROWS` rows."""
        specs = [
            tf.TensorSpec((TRACED_ROWS, *known_shape(x.shape[1:])), x.dtype) for x in self._specs
        ]
        with present(self._variables):
            both = functools.partial(self._both, self._rewriter)
            traced = tf.function(both, autograph=False).get_concrete_function(specs)
        everything, inputs = traced.graph.get_operations(), list(traced.inputs[: len(specs)])
        effects = [operation for operation in everything if not operation.outputs]
        wanted = [*(x.op for x in [*traced.outputs, *self._traced]), *effects]
        front = set(everything[: self._forward_size])
        needed = needed_in_order(everything, wanted)
        operations = sorted(needed, key=lambda operation: operation not in front)
        size = sum(operation in front for operation in needed)
        graph = TracedGraph(traced.graph)
        working = working_bytes(operations, size, inputs, self._traced, graph.bytes_of)
        kept = kept_between(operations, size, inputs, self._traced, graph.bytes_of)
        by_xla = any(map(is_by_xla, operations))
        return SampleMemory(kept, working, graph.count(operations), by_xla)

    def scratch(self, rows: Sequence[int]) -> int:
        """Bytes that forward and backward take however few the rows, gradients of weights apart.

        Such are the buffers of the gradient of a convolution. 0 if memory is not pooled.

        Args:
            rows: sizes, of which two are tried.
        """
        few, many = min(rows), max(2 * min(rows), min(_ROWS_OF_SCRATCH, max(rows)))
        with present(self._variables):
            low, high = self._peak(few), self._peak(many)
        if low is None or high is None:
            return 0
        per_row = (high - low) / (many - few)
        fixed = low - per_row * few - sum(map(bytes_of, self._weights))
        return max(0, round(fixed))

    def _peak(self, rows: int) -> int | None:
        """Bytes that a forward with its backward needs beside what it is given, after a first."""
        inputs, share = self.inputs(rows), as_share(1.0)

        def run() -> None:
            saved = self._stage.forward(inputs, share)
            if self._weights or self._sources:
                seeds = [tf.ones_like(saved.outputs[i]) for i in self._targets]
                self._stage.backward(saved, seeds, share)
                self._stage.begin(several=False)  # let go of the gradients

        peak_of(run)
        return peak_of(run)

    def save(self, folder: str) -> None:
        """Write forward and backward in one call, for other processes."""
        write_graph(self._traced_fused(), len(self._specs), self._variables, folder)

    def _traced_fused(self) -> Any:
        """Forward and backward in one call, traced for any number of rows."""
        specs = [tf.TensorSpec((None, *known_shape(x.shape[1:])), x.dtype) for x in self._specs]
        with present(self._variables):
            return self._fused.get_concrete_function(specs)

    def seconds(self, rows: int, budget: float) -> tuple[float, float]:
        """Medians of forward and backward, measured for about `budget` s."""
        with present(self._variables):
            return self._seconds(rows, budget)

    def _seconds(self, rows: int, budget: float) -> tuple[float, float]:
        inputs, share = self.inputs(rows), as_share(1.0)
        outputs = self._stage.forward(inputs, share).outputs
        seeds = [tf.ones_like(outputs[i]) for i in self._targets]

        def split() -> list[float]:
            start = time.perf_counter()
            saved = self._stage.forward(inputs, share)
            middle = time.perf_counter()
            if self._weights or self._sources:
                self._stage.backward(saved, seeds, share)
                self._stage.begin(several=False)  # let go of the gradients
            return [middle - start, time.perf_counter() - middle]

        forward, backward = self._medians("split", rows, split, budget)
        return forward, backward

    def _medians(
        self, what: str, rows: int, run: Callable[[], list[float]], budget: float
    ) -> list[float]:
        """The medians of what `run` returns, after a run that compiles if there was none."""
        if (what, rows) not in self._ran:
            self._ran.add((what, rows))
            run()
        found: list[list[float]] = []
        end = time.perf_counter() + budget
        while not found or (time.perf_counter() < end and len(found) < 50):
            found.append(run())
        return [statistics.median(column) for column in zip(*found, strict=True)]

    def fused_seconds(self, rows: int, budget: float) -> float:
        """The median of forward and backward as one call, measured for about `budget` s."""
        self._traced_fused()  # or TensorFlow would trace it for the first size, too
        inputs = self.inputs(rows)

        def fused() -> list[float]:
            start = time.perf_counter()
            self._fused(inputs)
            return [time.perf_counter() - start]

        with present(self._variables):
            return self._medians("fused", rows, fused, budget)[0]

    def halves(self, rows: int, budget: float) -> tuple[float, float]:
        """The times of the two parts of a backward, as multiples of a backward in one piece.

        Measured in turns for about `budget` s; 0.5 each if there are no two parts.
        """
        if not (self._weights and self._sources):
            return 0.5, 0.5
        with present(self._variables):
            return self._halves(rows, budget)

    def _halves(self, rows: int, budget: float) -> tuple[float, float]:
        inputs, share = self.inputs(rows), as_share(1.0)
        outputs = self._stage.forward(inputs, share).outputs
        seeds = [tf.ones_like(outputs[i]) for i in self._targets]

        def run() -> list[float]:
            saved = [self._stage.forward(inputs, share) for _ in range(2)]
            times = [time.perf_counter()]
            self._stage.backward(saved[0], seeds, share)
            times.append(time.perf_counter())
            self._stage.input_backward(saved[1], seeds, share)
            times.append(time.perf_counter())
            self._stage.weight_backward(saved[1])
            times.append(time.perf_counter())
            self._stage.begin(several=False)  # let go of the gradients
            return [end - start for start, end in zip(times, times[1:], strict=False)]

        whole, of_inputs, of_weights = self._medians("halves", rows, run, budget)
        return of_inputs / whole, of_weights / whole
