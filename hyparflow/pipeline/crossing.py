"""Which tensors cross where a model may be cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyparflow.pipeline.operations import OperationGraph

__all__ = ["Reads", "crossing_sums", "reads_of"]

# For each tensor: the operation that makes it, and the operations that read it, in order.
Reads = Sequence[tuple[int, Sequence[int]]]


def reads_of(graph: OperationGraph) -> tuple[list[tuple[int, list[int]]], np.ndarray]:
    """Who makes and who reads each tensor, and the numbers of these tensors."""
    readers: dict[int, list[int]] = {n: [] for op in graph.operations for n in op.outputs}
    for index, operation in enumerate(graph.operations):
        for number in dict.fromkeys(operation.inputs):
            if number in readers:
                readers[number].append(index)
    last = len(graph.operations) - 1
    for number in graph.outputs:  # the loss sits in the last stage
        if number in readers and last not in readers[number]:
            readers[number].append(last)
    makers = [(n, index) for index, op in enumerate(graph.operations) for n in op.outputs]
    return [(maker, readers[n]) for n, maker in makers], np.array([n for n, _ in makers], int)


def crossing_sums(reads: Reads, values: np.ndarray, count: int) -> np.ndarray:
    """The sum over the tensors that cross each boundary 0..count of their `values`."""
    change = np.zeros(count + 2)
    for (maker, readers), value in zip(reads, values, strict=True):
        if readers:
            change[maker + 1] += value
            change[readers[-1] + 1] -= value
    return np.cumsum(change)[: count + 1]
