"""Measures what the operations of a model cost on this machine.

Each kind of segment (`hyparflow.planning.segments`) runs as a stage does, at the sizes of
micro-batches in question; its time is dealt out to its operations in proportion to their
estimates. One long piece of the model is measured too: what it takes beyond the sum of its
segments (activations that leave the caches, memory that must be found) scales them all.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow import keras_internals
from hyparflow.graph import FlatGraph
from hyparflow.partition import OperationGraph
from hyparflow.planning.costs import Costs, Overheads, Weight
from hyparflow.planning.kinds import has_kernel, operation_kinds, tensor_types
from hyparflow.planning.lifetimes import Kept, kept_between, working_bytes
from hyparflow.planning.overheads import measure_overheads
from hyparflow.planning.segments import Segment, alike, segments
from hyparflow.planning.tables import (
    bytes_per_row,
    known_shape,
    size_of,
    slots_per_byte,
    used_weights,
)
from hyparflow.stage import Stage, as_share, gradients_of

__all__ = ["measure"]

_PIECE = 8  # segments of the long piece
_TRACED_ROWS = 13  # sizes that are a multiple of it grow with the rows


@dataclass
class SampleMemory:
    """What a segment needs, for `_TRACED_ROWS` rows.

    Attributes:
        one_call, two_calls: what is kept between a forward and its backward, compiled as one
            call and as two.
        working: bytes that live beside that.
        operations: how many operations were traced.
    """

    one_call: Kept
    two_calls: Kept
    working: int
    operations: int


class Sample:
    """A segment of a model that can be run.

    Args:
        graph: the model's graph.
        operations: the same as pure data.
        segment: which part.
        trained: the model's trainable variables.
    """

    def __init__(
        self, graph: FlatGraph, operations: OperationGraph, segment: Segment, trained: Sequence[Any]
    ) -> None:
        self._graph = graph
        self._specs = [graph.tensors[n] for n in segment.inputs]
        function = graph.function(segment.inputs, segment.outputs, list(segment.operations))

        def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
            graph.mode.training, graph.mode.share, graph.mode.losses = training, share, []
            return function(list(values)), graph.mode.losses

        known = {id(v) for v in graph.variables(segment.operations)}
        self._weights = [v for v in trained if id(v) in known]
        needing = operations.gradient_tensors
        self._sources = [i for i, n in enumerate(segment.inputs) if n in needing]
        self._targets = [i for i, n in enumerate(segment.outputs) if n in needing]
        self._body = body
        self._stage = Stage(body, self._weights, self._sources, self._targets)
        self._fused = tf.function(self._both, autograph=False, reduce_retracing=True)
        self._forward_size = 0
        self._traced: list[Any] = []

    def inputs(self, rows: int) -> list[Any]:
        """Random inputs of `rows` rows."""
        return [
            tf.constant(_random((rows, *known_shape(x.shape[1:])), x.dtype)) for x in self._specs
        ]

    def _both(self, inputs: list[Any]) -> Any:
        """Outputs and gradients; to be traced."""
        outputs: list[Any] = []

        def targets() -> list[Any]:
            made, losses = self._body(inputs, True, tf.constant(1.0, tf.float64))
            outputs.extend(made)
            graph = tf.compat.v1.get_default_graph()
            self._traced = list(made)
            self._forward_size = len(graph.get_operations())
            return [x for x in [*made, *losses] if x.dtype.is_floating]

        sources = [inputs[i] for i in self._sources] + [v.value for v in self._weights]
        return outputs, gradients_of(targets, sources)

    def memory(self) -> SampleMemory:
        """What it keeps and needs, for `_TRACED_ROWS` rows."""
        fixed, inputs = self._trace(_TRACED_ROWS)
        working = working_bytes(fixed, self._forward_size, inputs, self._traced)
        one_call = self._kept(fixed, inputs, shapes_too=False)
        free, inputs = self._trace(None)
        two_calls = self._kept(free, inputs, shapes_too=True)
        return SampleMemory(one_call, two_calls, working, len(free))

    def _trace(self, rows: int | None) -> tuple[list[Any], list[Any]]:
        """The traced operations of forward and backward, and the inputs."""
        specs = [tf.TensorSpec((rows, *known_shape(x.shape[1:])), x.dtype) for x in self._specs]
        traced = tf.function(self._both, autograph=False).get_concrete_function(specs)
        return traced.graph.get_operations(), list(traced.inputs[: len(specs)])

    def _kept(self, operations: list[Any], inputs: list[Any], shapes_too: bool) -> Kept:
        return kept_between(
            operations, self._forward_size, inputs, self._traced, _TRACED_ROWS, shapes_too
        )

    def seconds(self, rows: int, budget: float) -> tuple[float, float, float]:
        """Medians of forward, backward and both as one call, measured for about `budget` s."""
        inputs, share = self.inputs(rows), as_share(1.0)
        outputs = self._stage.forward(inputs, share).outputs
        seeds = [tf.ones_like(outputs[i]) for i in self._targets]

        def split() -> list[float]:
            start = time.perf_counter()
            saved = self._stage.forward(inputs, share)
            middle = time.perf_counter()
            if self._weights or self._sources:
                self._stage.backward(saved, seeds, share)
            return [middle - start, time.perf_counter() - middle]

        def fused() -> list[float]:
            start = time.perf_counter()
            self._fused(inputs)
            return [time.perf_counter() - start]

        forward, backward = _medians(split, budget / 2)
        (both,) = _medians(fused, budget / 2)
        return forward, backward, both


def _medians(run: Callable[[], list[float]], budget: float) -> list[float]:
    """The medians of what `run` returns, after a run that compiles."""
    run()
    found: list[list[float]] = []
    end = time.perf_counter() + budget
    while len(found) < 3 or (time.perf_counter() < end and len(found) < 50):
        found.append(run())
    return [statistics.median(column) for column in zip(*found, strict=True)]


def measure(
    graph: FlatGraph,
    rows: Sequence[int],
    optimizer: Any = None,
    budget: float = 0.1,
    say: Callable[[str], None] = lambda text: None,
) -> Costs:
    """Measure a model's operations, with the threads that TensorFlow has in this process.

    The model is left as it was.

    Args:
        graph: its graph.
        rows: sizes of micro-batches to measure.
        optimizer: the one it trains with, for its slots and its time.
        budget: seconds to spend on each kind of segment and size, beside compiling.
        say: called with a line of progress.

    Returns:
        The costs.
    """
    model = graph.model
    state = [v for v in model.variables if not v.trainable]
    saved = [np.array(v) for v in state]
    try:
        return _measure(graph, tuple(sorted(set(rows))), optimizer, budget, say)
    finally:
        for variable, value in zip(state, saved, strict=True):
            variable.assign(value)


def _measure(
    graph: FlatGraph,
    rows: tuple[int, ...],
    optimizer: Any,
    budget: float,
    say: Callable[[str], None],
) -> Costs:
    trained = graph.model.trainable_variables
    operations = graph.operation_graph(trained)
    found = segments(operations, has_kernel(graph))
    groups = alike(operations, found, operation_kinds(graph), tensor_types(graph))
    call = _call_seconds(budget)
    table = CostTable(graph, operations, rows)
    for number, group in enumerate(groups.values()):
        first = operations.operations[group[0].operations.start].name
        say(f"{number + 1}/{len(groups)}: {first}, {len(group)} times")
        sample = Sample(graph, operations, group[0], trained)
        seconds = np.array([sample.seconds(size, budget) for size in rows]) - call
        for segment in group:
            table.enter(segment, np.maximum(seconds, 1e-7), sample.memory())
    table.scale(_longer(graph, operations, found, rows, budget, call, table))
    return table.costs(
        measure_overheads(trained, optimizer, call[2]), slots_per_byte(trained, optimizer)
    )


class CostTable:
    """The costs of all operations, filled segment by segment."""

    def __init__(self, graph: FlatGraph, operations: OperationGraph, rows: tuple[int, ...]) -> None:
        count = len(operations.operations)
        self._graph, self._operations, self._rows = graph, operations, rows
        self.times = np.zeros((3, count, len(rows)))  # forward, backward, fused
        self._kept = np.zeros((2, count))  # in one call, in two
        self._working = np.zeros(count)
        self._program = np.zeros(count)
        self._makers = {n: i for i, op in enumerate(operations.operations) for n in op.outputs}
        self._tensors = np.array([bytes_per_row(x) for x in graph.tensors], float)
        self._known: set[tuple[int, int]] = set()

    def enter(self, segment: Segment, seconds: np.ndarray, memory: SampleMemory) -> None:
        """Deal out what a segment took, [size, (forward, backward, fused)], to its operations."""
        inside = list(segment.operations)
        weights = np.array([self._operations.operations[i].cost for i in inside]) + 1.0
        share = weights / weights.sum()
        self.times[:, inside, :] = seconds.T[:, None, :] * share[None, :, None]
        self._working[inside] = memory.working / _TRACED_ROWS
        self._program[inside] = share * memory.operations
        for calls, kept in enumerate((memory.one_call, memory.two_calls)):
            self._kept[calls, inside] += share * kept.inside / _TRACED_ROWS
            self._enter_edge(calls, segment.inputs, kept.inputs)
            self._enter_edge(calls, segment.outputs, kept.outputs)

    def _enter_edge(self, calls: int, tensors: Sequence[int], kept: Sequence[bool]) -> None:
        """Tensors between segments are kept once, whoever keeps them."""
        for number, is_kept in zip(tensors, kept, strict=True):
            if is_kept and (calls, number) not in self._known and number in self._makers:
                self._known.add((calls, number))
                self._kept[calls, self._makers[number]] += self._tensors[number]

    def scale(self, factors: np.ndarray) -> None:
        """Multiply all times by `factors`, [(forward, backward, fused), size]."""
        self.times *= factors[:, None, :]

    def costs(self, overheads: Overheads, slots: float) -> Costs:
        """The finished table."""
        model = self._graph.model
        trained = {id(v) for v in model.trainable_variables}
        return Costs(
            tuple(op.name for op in self._operations.operations),
            self._rows,
            forward=self.times[0],
            backward=self.times[1],
            fused=self.times[2],
            kept=self._kept[0],
            held=self._kept[1],
            working=self._working,
            program=self._program,
            tensors=self._tensors,
            weights=tuple(Weight(size_of(v), id(v) in trained) for v in model.variables),
            used=used_weights(self._graph),
            slots=slots,
            overheads=overheads,
            source="measured",
            machine={
                "machine": platform.machine(),
                "node": platform.node(),
                "threads": tf.config.threading.get_intra_op_parallelism_threads(),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
        )


def _longer(
    graph: FlatGraph,
    operations: OperationGraph,
    found: list[Segment],
    rows: tuple[int, ...],
    budget: float,
    call: np.ndarray,
    table: CostTable,
) -> np.ndarray:
    """What a long piece takes, against the sum of its segments: [(F, B, FB), size]."""
    count = min(len(found), _PIECE)
    first = (len(found) - count) // 2
    start, end = found[first].operations.start, found[first + count - 1].operations.stop
    piece = _joined(operations, start, end)
    sample = Sample(graph, operations, piece, graph.model.trainable_variables)
    seconds = np.array([sample.seconds(size, 4 * budget) for size in rows]) - call
    return seconds.T / np.maximum(table.times[:, start:end].sum(1), 1e-7)


def _joined(operations: OperationGraph, start: int, end: int) -> Segment:
    """The operations from `start` to `end` as one segment."""
    made = {n for op in operations.operations[start:end] for n in op.outputs}
    read = dict.fromkeys(n for op in operations.operations[start:end] for n in op.inputs)
    later = {n for op in operations.operations[end:] for n in op.inputs} | set(operations.outputs)
    return Segment(
        range(start, end),
        tuple(n for n in read if n not in made),
        tuple(sorted(made & later)),
    )


def _call_seconds(budget: float) -> np.ndarray:
    """What a compiled call takes that computes nothing: [(forward, backward, fused)]."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.negative(keras.ops.negative(inputs)))
    graph = FlatGraph(model, keras_internals.opened_graph(model))
    operations = graph.operation_graph([])
    piece = _joined(operations, 0, len(operations.operations))
    sample = Sample(graph, operations, piece, [])
    return np.array(sample.seconds(2, budget))


def _random(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers of the type; whole ones are 0 or 1, which every embedding has."""
    random = np.random.default_rng(0)
    if "float" in dtype:
        return random.normal(size=shape)
    return random.integers(0, 2, shape)
