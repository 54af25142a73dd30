"""Measures what the operations of a model cost on this machine.

Each kind of segment (`hyparflow.planning.costs.segments`) runs as a stage does, at the sizes of
micro-batches in question; its time is divided among its operations in proportion to their
estimates. One long piece of the model is measured, too: all times are scaled by its time over the
sum of its segments' (activations that leave the caches, memory that must be allocated).
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled import choice
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.launching.cores import intra_op_threads
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.model.keras_internals.weight_parts import divides
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.planning.costs.contention import companions_possible, measure_crowd
from hyparflow.planning.costs.costs import Costs, Weight
from hyparflow.planning.costs.measure_overheads import measure_overheads
from hyparflow.planning.costs.measurement_keys import has_kernel, operation_kinds, tensor_types
from hyparflow.planning.costs.overheads import Overheads
from hyparflow.planning.costs.sample import TRACED_ROWS, Sample, SampleMemory
from hyparflow.planning.costs.segments import Segment, alike, cut_out, segments
from hyparflow.planning.costs.tensor_sizes import (
    bytes_per_row,
    slots_per_byte,
    used_weights,
)

__all__ = ["measure"]

_PIECE, _PIECE_BYTES = 8, 1 << 28  # segments of the long piece, and bytes of its weights, at most
_ROUNDS = 3


def measure(
    graph: FlatGraph,
    rows: Sequence[int],
    optimizer: Any = None,
    budget: float = 0.1,
    ranks_per_node: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Costs:
    """Measure a model's operations, with the threads that TensorFlow has in this process.

    The model is left as it was.

    Args:
        graph: the model's graph.
        rows: sizes of micro-batches to measure.
        optimizer: the model's optimizer, for its slots and its time.
        budget: seconds to spend on each kind of segment and size, besides compiling.
        ranks_per_node: how many ranks will compute on a node at a time; how they slow each other
            down is measured with as many processes as this machine has cores for.
        say: called with a line of progress.

    Returns:
        The costs.
    """
    model = graph.model
    # What has no memory has it only while it is measured, with the same value each time.
    state = [v for v in model.variables if not v.trainable and not is_absent(v)]
    saved = [v.numpy() for v in state]
    try:
        return _measure(graph, tuple(sorted(set(rows))), optimizer, budget, ranks_per_node, say)
    finally:
        for variable, value in zip(state, saved, strict=True):
            variable.assign(value)


def _measure(
    graph: FlatGraph,
    rows: tuple[int, ...],
    optimizer: Any,
    budget: float,
    ranks_per_node: int,
    say: Callable[[str], None],
) -> Costs:
    trained = graph.model.trainable_variables
    operations = graph.operation_graph(trained)
    found = segments(operations, has_kernel(graph))
    groups = alike(operations, found, operation_kinds(graph), tensor_types(graph))
    piece = _long_piece(graph, operations, found)
    rewriter = Rewriter() if choice.compiler().shares else None
    trials = [
        Trial(
            f"{operations.operations[group[0].operations.start].name}, {len(group)} times",
            Sample(graph, operations, group[0], trained, rewriter),
            budget,
        )
        for group in groups.values()
    ]
    longer = Sample(graph, operations, piece, trained, rewriter)
    trials.append(Trial("a longer piece", longer, 4 * budget))
    call = _call_seconds(budget)
    seconds = np.maximum(_fastest(trials, rows, say) - call, 1e-7)
    table = CostTable(graph, operations, rows)
    for group, trial, times in zip(groups.values(), trials, seconds, strict=False):
        memory = trial.sample.memory()
        for segment in group:
            table.enter(segment, times, memory)
    table.scale(piece, seconds[-1])
    say("measuring a backward in two parts")
    halves = trials[-1].sample.halves(rows[len(rows) // 2], 4 * budget)
    crowd, crowded = _crowd(trials[-1].sample, rows, ranks_per_node, budget, say)
    say("measuring the optimizer")
    over = measure_overheads(trained, optimizer, call[2])
    scratch = max(trial.sample.scratch(rows) for trial in trials)
    return table.costs(
        dataclasses.replace(over, scratch=float(scratch)),
        slots_per_byte(trained, optimizer),
        optimizer is None or divides(optimizer),
        halves,
        crowd,
        crowded,
    )


class Trial(NamedTuple):
    """Something to measure: its name, and the seconds to spend on each size."""

    name: str
    sample: Sample
    budget: float


def _fastest(
    trials: Sequence[Trial], rows: Sequence[int], say: Callable[[str], None]
) -> np.ndarray:
    """Seconds, [trial, size, (forward, backward, fused)], of the fastest of several rounds.

    A shared machine is slow for seconds at a time, so each trial is repeated, with all others in
    between.
    """
    rounds = []
    for number in range(_ROUNDS):
        found = []
        for index, (name, sample, budget) in enumerate(trials):
            place = f"{index + 1} of {len(trials)}, round {number + 1} of {_ROUNDS}"
            say(f"measuring {place}: {name}")
            found.append([sample.seconds(size, budget / _ROUNDS) for size in rows])
        rounds.append(found)
    return np.min(rounds, axis=0)


def _crowd(
    sample: Sample,
    rows: tuple[int, ...],
    ranks_per_node: int,
    budget: float,
    say: Callable[[str], None],
) -> tuple[int, np.ndarray]:
    """How many processes were tried at a time, and how much slower each of them was."""
    count = companions_possible(ranks_per_node)
    if count:
        say(f"measuring {count + 1} processes at a time")
        try:
            return count + 1, measure_crowd(sample, rows, count, budget)
        except Exception as error:  # for example a layer that another process cannot load
            say(f"measuring {count + 1} processes at a time: not possible ({error})")
    return 1, np.ones((3, len(rows)))


class CostTable:
    """The costs of all operations, filled segment by segment."""

    def __init__(self, graph: FlatGraph, operations: OperationGraph, rows: tuple[int, ...]) -> None:
        count = len(operations.operations)
        self._graph, self._operations, self._rows = graph, operations, rows
        self.times = np.zeros((3, count, len(rows)))  # forward, backward, fused
        self._kept = np.zeros(count)
        self._working = np.zeros(count)
        self._program = np.zeros(count)
        self._makers = {n: i for i, op in enumerate(operations.operations) for n in op.outputs}
        self._tensors = np.array([bytes_per_row(x) for x in graph.tensors], float)
        self._known: set[int] = set()

    def enter(self, segment: Segment, seconds: np.ndarray, memory: SampleMemory) -> None:
        """Divide a segment's seconds, [size, (forward, backward, fused)], among its operations."""
        inside = list(segment.operations)
        weights = np.array([self._operations.operations[i].cost for i in inside]) + 1.0
        share = weights / weights.sum()
        self.times[:, inside, :] = seconds.T[:, None, :] * share[None, :, None]
        self._working[inside] = memory.working / TRACED_ROWS
        self._program[inside] = share * memory.operations
        self._kept[inside] += share * memory.kept.inside / TRACED_ROWS
        self._enter_edge(segment.inputs, memory.kept.inputs)
        self._enter_edge(segment.outputs, memory.kept.outputs)

    def _enter_edge(self, tensors: Sequence[int], kept: Sequence[bool]) -> None:
        """Count tensors between segments once, whichever segment keeps them."""
        for number, is_kept in zip(tensors, kept, strict=True):
            if is_kept and number not in self._known and number in self._makers:
                self._known.add(number)
                self._kept[self._makers[number]] += self._tensors[number]

    def scale(self, piece: Segment, seconds: np.ndarray) -> None:
        """Scale all times so that a long `piece` takes these, [size, (F, B, FB)]."""
        inside = slice(piece.operations.start, piece.operations.stop)
        factors = seconds.T / np.maximum(self.times[:, inside].sum(1), 1e-7)
        self.times *= factors[:, None, :]

    def costs(
        self,
        overheads: Overheads,
        slots: float,
        divides: bool,
        halves: tuple[float, float],
        crowd: int,
        crowded: np.ndarray,
    ) -> Costs:
        """The finished table; arguments as the attributes of `Costs`."""
        model = self._graph.model
        trained = {id(v) for v in model.trainable_variables}
        return Costs(
            tuple(op.name for op in self._operations.operations),
            self._rows,
            forward=self.times[0],
            backward=self.times[1],
            fused=self.times[2],
            kept=self._kept,
            working=self._working,
            program=self._program,
            tensors=self._tensors,
            weights=tuple(Weight(bytes_of(v), id(v) in trained) for v in model.variables),
            used=used_weights(self._graph),
            slots=slots,
            divides=divides,
            halves=halves,
            crowd=crowd,
            crowded=crowded,
            overheads=overheads,
            source="measured",
            machine={
                "machine": platform.machine(),
                "node": platform.node(),
                "threads": intra_op_threads(),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
        )


def _long_piece(graph: FlatGraph, operations: OperationGraph, found: list[Segment]) -> Segment:
    """Several segments of the model's middle as one, whose weights fit in any memory."""
    for count in range(min(len(found), _PIECE), 0, -1):
        first = (len(found) - count) // 2
        start, end = found[first].operations.start, found[first + count - 1].operations.stop
        if sum(map(bytes_of, graph.variables(range(start, end)))) <= _PIECE_BYTES:
            break
    return cut_out(operations, [start, end])[0]


def _call_seconds(budget: float) -> np.ndarray:
    """The seconds of a compiled call that computes nothing: [(forward, backward, fused)]."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.negative(keras.ops.negative(inputs)))
    graph = FlatGraph(model, opened_graph(model))
    operations = graph.operation_graph([])
    (piece,) = cut_out(operations, [0, len(operations.operations)])
    sample = Sample(graph, operations, piece, [])
    return np.array(sample.seconds(2, budget))
