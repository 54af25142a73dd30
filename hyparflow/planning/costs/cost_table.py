"""The measured costs of all operations of a model, as they are filled in."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from hyparflow.launching.cores import intra_op_threads
from hyparflow.model.graph import FlatGraph
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs.model_weights import mixtures_of, weights_of
from hyparflow.planning.costs.overheads import Overheads
from hyparflow.planning.costs.sample import TRACED_ROWS, SampleMemory
from hyparflow.planning.costs.segments import Segment
from hyparflow.planning.costs.tensor_sizes import bytes_per_row, used_weights

__all__ = ["CostTable"]


class CostTable:
    """The costs of all operations, filled segment by segment."""

    def __init__(self, graph: FlatGraph, operations: OperationGraph, rows: tuple[int, ...]) -> None:
        count = len(operations.operations)
        self._graph, self._operations, self._rows = graph, operations, rows
        self.times = np.zeros((3, count, len(rows)))  # forward, backward, fused
        self._kept = np.zeros(count)
        self._working = np.zeros(count)
        self._program = np.zeros(count)
        self._by_xla = np.zeros(count)
        self._makers = {n: i for i, op in enumerate(operations.operations) for n in op.outputs}
        self._tensors = np.array([bytes_per_row(x) for x in graph.tensors], float)
        self._known: set[int] = set()

    def enter(self, segment: Segment, seconds: np.ndarray, memory: SampleMemory) -> None:
        """Divide a segment's seconds, [size, (forward, backward)], among its operations."""
        inside = list(segment.operations)
        weights = np.array([self._operations.operations[i].cost for i in inside]) + 1.0
        share = weights / weights.sum()
        both = np.column_stack([seconds, seconds.sum(1)])
        self.times[:, inside, :] = both.T[:, None, :] * share[None, :, None]
        self._working[inside] = memory.working / TRACED_ROWS
        self._program[inside] = share * memory.operations
        self._by_xla[inside] = memory.by_xla
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
        gain_of_all_cores: float | None,
        rewritten: bool,
    ) -> Costs:
        """The finished table; arguments as the attributes of `Costs`."""
        return Costs(
            tuple(op.name for op in self._operations.operations),
            self._rows,
            forward=self.times[0],
            backward=self.times[1],
            fused=self.times[2],
            kept=self._kept,
            working=self._working,
            program=self._program,
            by_xla=self._by_xla,
            tensors=self._tensors,
            weights=weights_of(self._graph.model),
            used=used_weights(self._graph),
            slots=slots,
            divides=divides,
            halves=halves,
            crowd=crowd,
            crowded=crowded,
            gain_of_all_cores=gain_of_all_cores,
            rewritten=rewritten,
            mixtures=mixtures_of(self._graph),
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
