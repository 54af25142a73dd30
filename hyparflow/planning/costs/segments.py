"""Segments: runs of operations that are measured together, and which of them are alike.

A model of a hundred layers has few different ones. Its operations are grouped into short
segments, each from one operation with a kernel to the next; segments with the same operations,
shapes and wiring share a measurement.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from hyparflow.pipeline.operations import OperationGraph

__all__ = ["Segment", "alike", "cut_out", "segments"]

_LONGEST = 12  # operations; a segment of more is cut, so that its costs can be told apart


@dataclass(frozen=True)
class Segment:
    """A run of operations.

    Attributes:
        operations: their numbers.
        inputs: tensors that it takes from before it.
        outputs: tensors that it makes and others read.
    """

    operations: range
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def segments(graph: OperationGraph, heavy: Sequence[bool]) -> list[Segment]:
    """The segments of `graph`, in order; together they hold each operation once.

    Args:
        graph: the operations.
        heavy: whether each has a kernel, so that a segment starts with it.
    """
    starts = [0]
    for index in range(1, len(graph.operations)):
        second_kernel = heavy[index] and any(heavy[starts[-1] : index])
        if second_kernel or index - starts[-1] >= _LONGEST:
            starts.append(index)
    return cut_out(graph, [*starts, len(graph.operations)])


def cut_out(graph: OperationGraph, bounds: Sequence[int]) -> list[Segment]:
    """The segments between neighbouring `bounds`, which are numbers of operations."""
    last_reader: dict[int, int] = {}
    for index, operation in enumerate(graph.operations):
        last_reader.update(dict.fromkeys(operation.inputs, index))
    last_reader.update(dict.fromkeys(graph.outputs, len(graph.operations)))
    found = []
    for start, end in itertools.pairwise(bounds):
        made = [n for op in graph.operations[start:end] for n in op.outputs]
        read = dict.fromkeys(n for op in graph.operations[start:end] for n in op.inputs)
        inputs = tuple(n for n in read if n not in set(made))
        outputs = tuple(n for n in made if last_reader.get(n, -1) >= end)
        found.append(Segment(range(start, end), inputs, outputs))
    return found


def alike(
    graph: OperationGraph,
    found: Sequence[Segment],
    kinds: Sequence[Hashable],
    types: Sequence[Hashable],
) -> dict[Hashable, list[Segment]]:
    """Segments by what a measurement of them depends on.

    Args:
        graph: the operations.
        found: its segments.
        kinds: for each operation, its type and settings.
        types: for each tensor, its shape and type.
    """
    groups: dict[Hashable, list[Segment]] = {}
    for segment in found:
        local = {n: position for position, n in enumerate(segment.inputs)}
        wiring = []
        for index in segment.operations:
            operation = graph.operations[index]
            wiring.append((kinds[index], tuple(local[n] for n in operation.inputs)))
            for n in operation.outputs:
                local[n] = len(local)
        outside = tuple((types[n], n in graph.gradient_tensors) for n in segment.inputs)
        given = tuple(local[n] for n in segment.outputs)
        groups.setdefault((tuple(wiring), outside, given), []).append(segment)
    return groups
