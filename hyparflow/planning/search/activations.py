"""Bytes of activations that a stage keeps from its forward to its backward, and needs in between.

Where forwards are computed again, a stage keeps what crosses between its pieces, which are units or
segments of units (`hyparflow.engine.stages.segmented_stage`); all that a piece keeps inside is
there only while its backward runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hyparflow.pipeline.crossing import reads_of
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.planning.costs.costs import Costs

__all__ = ["Activations"]


class Activations:
    """The activations of any stage of a model.

    Args:
        graph: the model's operations.
        costs: their costs.
        boundaries: of the units that are computed again; None if nothing is.
        in_segments: whether segments of units are, and not each unit by itself.
    """

    def __init__(
        self,
        graph: OperationGraph,
        costs: Costs,
        boundaries: Sequence[int] | None = None,
        in_segments: bool = False,
    ) -> None:
        self._costs, self._in_segments = costs, in_segments
        self._boundaries = None if boundaries is None else np.asarray(boundaries)
        reads, tensors = reads_of(graph)
        readers = [reader for _, several in reads for reader in several]
        counts = [len(several) for _, several in reads]
        self._readers = np.array(readers, int)
        self._makers = np.repeat(np.array([maker for maker, _ in reads], int), counts)
        self._positions = np.repeat(np.arange(len(reads)), counts)
        self._sizes = costs.tensors[tensors]

    def kept(self, stage: range) -> float:
        """Bytes per row that a stage keeps of each micro-batch in flight."""
        pieces = self._pieces(stage)
        if pieces is None:
            return float(self._costs.kept[stage.start : stage.stop].sum())
        return float(self._crossing(stage, pieces).sum())

    def working(self, stage: range) -> float:
        """Bytes per row that a stage needs besides, while it runs."""
        kept, working, pieces = self._costs.kept, self._costs.working, self._pieces(stage)
        if pieces is None:
            return float(working[stage.start : stage.stop].max())
        return max(
            float(kept[a:b].sum() + working[a:b].max()) for a, b in itertools.pairwise(pieces)
        )

    def of_operations(self) -> tuple[np.ndarray, np.ndarray]:
        """What each operation keeps, and needs besides, as if the model were one stage."""
        whole = range(len(self._costs.kept))
        pieces = self._pieces(whole)
        if pieces is None:
            return self._costs.kept, self._costs.working
        needed = np.zeros(len(whole))
        for start, stop in itertools.pairwise(pieces):
            inside = slice(start, stop)
            needed[inside] = self._costs.kept[inside].sum() + self._costs.working[inside].max()
        return self._crossing(whole, pieces), needed

    def _pieces(self, stage: range) -> list[int] | None:
        """The boundaries of the pieces of a stage, its ends included; None without pieces."""
        if self._boundaries is None:
            return None
        first, last = np.searchsorted(self._boundaries, [stage.start, stage.stop], side="left")
        cuts = {stage.start, stage.stop, *self._boundaries[first:last].tolist()}
        found = sorted(cuts)
        size = max(1, round(math.sqrt(len(found) - 1))) if self._in_segments else 1
        return [*found[:-1:size], stage.stop]

    def _crossing(self, stage: range, pieces: Sequence[int]) -> np.ndarray:
        """For each operation of a stage, bytes of what it makes and another piece reads."""
        inside = (self._makers >= stage.start) & (self._readers < stage.stop)
        makers, readers = self._makers[inside], self._readers[inside]
        places = np.searchsorted(pieces, np.stack([makers, readers]), side="right")
        tensors, first = np.unique(
            self._positions[inside][places[0] != places[1]], return_index=True
        )
        makers = makers[places[0] != places[1]][first]
        return np.bincount(makers - stage.start, self._sizes[tensors], len(stage))
