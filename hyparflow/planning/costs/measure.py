"""Measures what the operations of a model cost on this machine.

Kinds of segments (`hyparflow.planning.costs.segments`) run as stages do, at the sizes of
micro-batches in question; their time is divided among their operations in proportion to their
estimates. Only those are run that take most of the time, and those of operations that Keras does
not know; the others are counted at the rate of these, for each kind takes a second to compile. One
long piece of the model is measured, too: all times are scaled by its time over the sum of its
segments' (activations that leave the caches, memory that must be allocated).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from hyparflow.engine.compiled import choice
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.model.keras_internals.weight_parts import divides
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.planning.costs.contention import Companions, companions, measure_crowd
from hyparflow.planning.costs.cost_table import CostTable
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs.measure_overheads import measure_overheads
from hyparflow.planning.costs.measurement_keys import has_kernel, operation_kinds, tensor_types
from hyparflow.planning.costs.sample import Sample
from hyparflow.planning.costs.segment_kinds import SegmentKind, most_of, rate_of
from hyparflow.planning.costs.segments import Segment, alike, cut_out, segments
from hyparflow.planning.costs.tensor_sizes import slots_per_byte

__all__ = ["LONG_PIECE", "measure"]

_PIECE = 8  # segments of the long piece, at most
LONG_PIECE = 1 << 28  # bytes of its weights, at most
_ROUNDS = 2
_SEVERAL = 32  # rows that are enough to keep several cores busy


def measure(
    graph: FlatGraph,
    rows: Sequence[int],
    optimizer: Any = None,
    budget: float = 0.1,
    ranks_per_node: int = 1,
    say: Callable[[str], None] = lambda text: None,
    faster_kernels: bool = True,
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
        faster_kernels: whether layers compute with them, or as Keras does.

    Returns:
        The costs.
    """
    model = graph.model
    rewriter = Rewriter() if faster_kernels and choice.compiler().shares else None
    # What has no memory has it only while it is measured, with the same value each time.
    state = [v for v in model.variables if not v.trainable and not is_absent(v)]
    saved = [v.numpy() for v in state]
    try:
        return _measure(
            *(graph, tuple(sorted(set(rows))), optimizer, budget, ranks_per_node, say, rewriter)
        )
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
    rewriter: Rewriter | None,
) -> Costs:
    trained = graph.model.trainable_variables
    operations = graph.operation_graph(trained)
    found = segments(operations, has_kernel(graph))
    groups = alike(operations, found, operation_kinds(graph), tensor_types(graph)).values()
    kinds = [SegmentKind(graph, operations, group) for group in groups]
    sample = functools.partial(Sample, graph, operations, trained=trained, rewriter=rewriter)
    piece = _long_piece(graph, operations, found)
    longer, samples = sample(piece), {kind: sample(kind.group[0]) for kind in kinds}
    with companions(longer, ranks_per_node, say) as beside:  # which start meanwhile
        chosen = most_of(kinds)
        ends = rows[:1] + rows[1:][-1:]
        trials = [Trial(kind.name, samples[kind], ends, budget) for kind in chosen]
        trials.append(Trial("a longer piece", longer, rows, 2 * budget))
        call = _call_seconds(budget)
        seconds = np.maximum(_fastest(trials, rows, say) - call[:2], 1e-7)
        fused = _fused(longer, rows, budget / 2, say)
        say("measuring a backward in two parts")
        halves = longer.halves(rows[len(rows) // 2], 2 * budget)
        crowd, crowded = _crowd(longer, rows, beside, budget / 2, say)
        say("measuring the optimizer")
        over = measure_overheads(trained, optimizer, call[2])
        scratch = max(trial.sample.scratch(rows) for trial in trials)
        memory = {kind: sample.memory() for kind, sample in samples.items()}
        gain = _gain_of_all_cores(rows, beside, budget, say)
    table = CostTable(graph, operations, rows)
    known = dict(zip(chosen, seconds, strict=False))
    rate = rate_of(kinds, known)
    for kind in kinds:
        for segment in kind.group:
            table.enter(segment, known.get(kind, rate * kind.cost), memory[kind])
    table.scale(piece, np.column_stack([seconds[-1], np.maximum(fused - call[2], 1e-7)]))
    return table.costs(
        dataclasses.replace(over, scratch=float(scratch)),
        slots_per_byte(trained, optimizer),
        optimizer is None or divides(optimizer),
        halves,
        crowd,
        crowded,
        gain,
        rewriter is not None and rewriter.has_rewritten,
    )


class Trial(NamedTuple):
    """Something to measure: its name, sizes to try, and the seconds to spend on each of them."""

    name: str
    sample: Sample
    rows: Sequence[int]
    budget: float


def _fastest(
    trials: Sequence[Trial], rows: Sequence[int], say: Callable[[str], None]
) -> np.ndarray:
    """Seconds, [trial, size, (forward, backward)], of the fastest of several rounds.

    A shared machine is slow for seconds at a time, so each trial is repeated, with all others in
    between. Sizes that are not tried lie on a line between those that are: rows take their time,
    and calls theirs.
    """
    rounds = []
    for number in range(_ROUNDS):
        found = []
        for index, (name, sample, tried, budget) in enumerate(trials):
            place = f"{index + 1} of {len(trials)}, round {number + 1} of {_ROUNDS}"
            say(f"measuring {place}: {name}")
            seconds = np.array([sample.seconds(size, budget / _ROUNDS) for size in tried])
            found.append(np.stack([np.interp(rows, tried, s) for s in seconds.T], axis=1))
        rounds.append(found)
    return np.min(rounds, axis=0)


def _fused(
    sample: Sample, rows: Sequence[int], budget: float, say: Callable[[str], None]
) -> np.ndarray:
    """Seconds, [size], of forward and backward in one call, of the fastest of several rounds."""
    say("measuring forward and backward in one call")
    rounds = [[sample.fused_seconds(size, budget) for size in rows] for _ in range(_ROUNDS)]
    return np.min(rounds, axis=0)


def _crowd(
    sample: Sample,
    rows: tuple[int, ...],
    beside: Companions | None,
    budget: float,
    say: Callable[[str], None],
) -> tuple[int, np.ndarray]:
    """How many processes were tried at a time, and how much slower each of them was."""
    if beside is not None:
        count = beside.count + 1
        say(f"measuring {count} processes at a time")
        try:
            return count, measure_crowd(sample, rows, beside, budget)
        except RuntimeError as error:
            say(f"measuring {count} processes at a time: not possible ({error})")
    return 1, np.ones((3, len(rows)))


def _gain_of_all_cores(
    rows: Sequence[int], beside: Companions | None, budget: float, say: Callable[[str], None]
) -> float | None:
    """How many times as fast one process with all cores computes, if that was tried."""
    if beside is None:
        return None
    say("measuring one process with the cores of all ranks")
    try:
        few = [size for size in rows if size <= _SEVERAL] or rows
        return beside.gain_of_all_cores(few[-1], budget)
    except RuntimeError as error:
        say(f"measuring one process with the cores of all ranks: not possible ({error})")
        return None


def _long_piece(graph: FlatGraph, operations: OperationGraph, found: list[Segment]) -> Segment:
    """Several segments of the model's middle as one, whose weights fit in any memory."""
    for count in range(min(len(found), _PIECE), 0, -1):
        first = (len(found) - count) // 2
        start, end = found[first].operations.start, found[first + count - 1].operations.stop
        if sum(map(bytes_of, graph.variables(range(start, end)))) <= LONG_PIECE:
            break
    return cut_out(operations, [start, end])[0]


def _call_seconds(budget: float) -> np.ndarray:
    """The seconds of a compiled call that computes nothing: [(forward, backward, fused)]."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.negative(keras.ops.negative(inputs)))
    graph = FlatGraph(model, opened_graph(model))
    operations = graph.operation_graph([])
    (piece,) = cut_out(operations, [0, len(operations.operations)])
    sample = Sample(graph, operations, piece, trained=[])
    return np.array([*sample.seconds(2, budget), sample.fused_seconds(2, budget)])
