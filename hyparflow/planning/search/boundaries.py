"""Where a model may be cut, and the time and memory of stages between these places."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hyparflow.pipeline.crossing import Reads, crossing_sums, reads_of
from hyparflow.pipeline.partition import allowed_cuts
from hyparflow.pipeline.placement import Placement
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.search.cuts import Fits
from hyparflow.planning.search.problem import Problem

__all__ = ["Boundaries", "Load", "StageSeconds", "candidates"]

# Approximate number of boundaries in a search: per rank, and the least and the most.
_PER_RANK, _FEWEST, _MOST = 64, 512, 1024
_ROUNDING = 1e-9  # relative; sums in another order differ by less


class Load(NamedTuple):
    """What the memory of a layout depends on besides its cuts.

    Attributes:
        rows: the rows of a micro-batch.
        copies: how many tensors as large as a weight's gradient there are at a time.
        updated: how many more the optimizer makes when activations are gone.
        slots: bytes of optimizer state per byte of trained weights.
        sharers: how many replicas share out the experts.
        in_flight: for each stage, of how many micro-batches it keeps activations.
        placement: of the stages.
    """

    rows: float
    copies: float
    updated: float
    slots: float
    sharers: int
    in_flight: Sequence[int]
    placement: Placement


class Boundaries:
    """The places where a problem's model may be cut.

    Args:
        problem: the problem to solve.
        rows: the rows of a typical micro-batch, by which places are chosen.

    Attributes:
        positions: numbers of operations that a stage may start with, and the number of all.
    """

    def __init__(self, problem: Problem, rows: float) -> None:
        self._problem = problem
        count = len(problem.graph.operations)
        self._reads, self._tensors = reads_of(problem.graph)
        sizes = problem.costs.tensors[self._tensors]
        crossing = crossing_sums(self._reads, sizes, count)
        allowed = allowed_cuts(problem.graph)
        limit = min(max(_FEWEST, _PER_RANK * problem.cluster.num_ranks), _MOST)
        self.positions = candidates(self.operation_seconds(rows), crossing, allowed, limit)
        self._crossing = crossing[self.positions]
        self._weights = functools.cache(self._weights_of)
        self._stages = StageSeconds(self._reads, self.positions)

    def operation_seconds(self, rows: float) -> np.ndarray:
        """The seconds of forward and backward of each operation for a micro-batch."""
        times = self._problem.spent.times(rows)
        return (times.forward + times.backward) / self._problem.cluster.speed

    def seconds(self, rows: float) -> np.ndarray:
        """The seconds of forward and backward of a stage for a micro-batch, as a matrix [a, b]."""
        cluster, over = self._problem.cluster, self._problem.costs.overheads
        seconds = self.operation_seconds(rows)
        call = 2 * over.call / cluster.speed
        return self._stages.matrix(seconds, self._prices(rows)) + call

    def fused_share(self, rows: float) -> float:
        """The time of forward and backward in one call, over their time in two."""
        times = self._problem.spent.times(rows)
        return float(times.fused.sum() / max(1e-30, (times.forward + times.backward).sum()))

    def crossing_seconds(self, rows: float) -> np.ndarray:
        """The seconds to send all tensors that cross each boundary 0..n, and their gradients."""
        count = len(self._problem.graph.operations)
        return crossing_sums(self._reads, self._prices(rows), count)

    def _prices(self, rows: float) -> np.ndarray:
        """The seconds to send each tensor of a micro-batch, and its gradient."""
        cluster, over = self._problem.cluster, self._problem.costs.overheads
        link = cluster.within if cluster.ranks_per_node > 1 else cluster.between
        size = self._problem.costs.tensors[self._tensors] * rows
        price = link.latency + size / link.bandwidth + 2 * over.message / cluster.speed
        needing = self._problem.graph.gradient_tensors
        return np.asarray(price * [2.0 if n in needing else 1.0 for n in self._tensors])

    def fits(self, load: Load, limit: int) -> Fits | None:
        """What fits in the memory of each stage; None if the model cannot fit.

        It is not as exact as `partition_memory`: a weight counts where it is first used, and a
        tensor that several stages read crosses once.

        Args:
            load: see `Load`. The stages of a partition have equal parts of the memory left.
            limit: bytes.
        """
        if self._plainly_too_large(load, limit):
            return None
        costs = self._problem.spent
        rows, updated, in_flight, placement = load.rows, load.updated, *load[-2:]
        over = costs.overheads
        fixed = costs.base_bytes + over.scratch + costs.working.min() * rows
        fixed += over.xla * costs.by_xla.any()
        trained, held_of_each = self._held(load)
        held = self._before(held_of_each)
        compiled = self._before(costs.program * self._problem.compiled_shares)
        updates = self._before(costs.updated * self._problem.compiled_shares)
        activations, gradients = self._before(costs.kept), self._before(trained)
        buffers = 2 * rows * self._crossing
        share = (limit - fixed) / placement.depth

        def holds(stage: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
            needed = (held + buffers)[end] - (held - buffers)[start]
            kept = in_flight[stage] * rows * (activations[end] - activations[start])
            needed += np.maximum(kept, updated * (gradients[end] - gradients[start]))
            count = compiled[end] - compiled[start]
            split = (count, 0.0) if stage == len(in_flight) - 1 else (0.0, count)
            program = over.program_bytes(split[0], split[1], updates[end] - updates[start])
            return np.asarray(needed + program <= share)

        def longest(stage: int) -> int:
            before = held + in_flight[stage] * rows * activations
            ends = np.searchsorted(before, before + share * (1 + _ROUNDING), side="right")
            return int((ends - np.arange(len(ends))).max()) - 1

        return Fits(holds, longest)

    def _plainly_too_large(self, load: Load, limit: int) -> bool:
        """Whether the partitions together cannot hold the model, wherever it is cut."""
        costs = self._problem.spent
        rows, in_flight, placement = load.rows, *load[-2:]
        others = self._held(load)[1].sum()
        others += costs.overheads.program * (costs.program * self._problem.compiled_shares).sum()
        share = limit - costs.base_bytes
        if not self._problem.saving.apart and costs.fixed_bytes > share:
            return True
        # Activations have the memory that other needs leave. An upper bound: all other needs are
        # charged to partitions that keep the most micro-batches, where they cost the least room.
        held = [placement.stages(partition) for partition in range(placement.num_partitions)]
        fewest = [min(in_flight[stage] for stage in stages) for stages in held]
        room = sum(share / kept for kept in fewest) - others / max(in_flight)
        return bool(room < rows * costs.kept.sum())

    def _held(self, load: Load) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of each operation's trained weights, and of its weights, gradients and slots."""
        trained, every = self._weights(load.sharers)
        # Gradients that are not summed over replicas are there once.
        summed = trained if load.sharers == 1 else self._weights(None)[0]
        return trained, every + trained * (1 + load.slots) + summed * (load.copies - 1)

    def _weights_of(self, sharers: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of each operation's trained weights and of all, if so many share out experts.

        None leaves the experts out of the trained ones.
        """
        problem = self._problem
        costs = problem.without_experts if sharers is None else problem.held_by_one_of(sharers)
        return _first_used_bytes(costs, trainable=True), _first_used_bytes(costs, trainable=False)

    def _before(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` before each position."""
        return np.concatenate([[0.0], np.cumsum(values)])[self.positions]


class StageSeconds:
    """The times of stages between given positions, for any times of operations and messages.

    Args:
        reads: which operation makes, and which ones read, each tensor.
        positions: boundaries that may be used, from 0 to the number of operations.
    """

    def __init__(self, reads: Reads, positions: np.ndarray) -> None:
        self._positions = positions
        cells: list[np.ndarray] = [np.zeros(0, int)]
        tensors: list[np.ndarray] = [np.zeros(0, int)]
        for number, (maker, readers) in enumerate(reads):
            if readers:
                found = self._receives(maker, readers)
                cells.append(found)
                tensors.append(np.full(len(found), number))
        self._cells = np.concatenate(cells)
        self._cell_tensors = np.concatenate(tensors)

    def _receives(self, maker: int, readers: Sequence[int]) -> np.ndarray:
        """The cells [a, b] from which on a stage receives a tensor, as flat indices.

        A tensor is received once by a stage that starts after its maker and holds a reader of it:
        from the first reader in the stage on, whatever else the stage holds.
        """
        low = int(np.searchsorted(self._positions, maker, side="right"))
        ends = np.searchsorted(self._positions, readers, side="right")
        starts = np.arange(low, int(ends[-1]))
        following = ends[np.searchsorted(ends - 1, starts)]
        return starts * (len(self._positions) + 1) + following

    def matrix(self, seconds: np.ndarray, prices: np.ndarray) -> np.ndarray:
        """The seconds of a stage from candidate a to candidate b, [a, b]; infinite if b <= a.

        Args:
            seconds: the seconds of each operation.
            prices: for each tensor, the seconds to send it to another stage.
        """
        count = len(self._positions)
        before = np.concatenate([[0.0], np.cumsum(seconds)])[self._positions]
        received = np.bincount(
            self._cells, weights=prices[self._cell_tensors], minlength=count * (count + 1)
        ).reshape(count, count + 1)
        cost = before[None, :] - before[:, None] + np.cumsum(received, axis=1)[:, :-1]
        cost[np.tril_indices(count)] = np.inf
        return cost


def candidates(
    seconds: np.ndarray, crossing: np.ndarray, allowed: Sequence[bool], limit: int
) -> np.ndarray:
    """The boundaries worth looking at: all allowed ones, or `limit` of them.

    In a model of thousands of operations most take next to no time. Neighbours that are less than
    1 / `limit` of the model apart are represented by the one that the fewest bytes cross.

    Args:
        seconds: of each of n operations.
        crossing: bytes that cross each boundary 0..n.
        allowed: whether a cut may stand at each boundary 0..n.
        limit: how many to return at most, about.
    """
    count = len(seconds)
    inner = np.flatnonzero(np.asarray(allowed)[1:count]) + 1
    if len(inner) > limit:
        before = np.concatenate([[0.0], np.cumsum(seconds)])
        bins = np.floor(before[inner] / max(before[-1], 1e-30) * limit).astype(int)
        order = np.lexsort((crossing[inner], bins))  # cheapest of each bin first
        _, first = np.unique(bins[order], return_index=True)
        inner = np.sort(inner[order[first]])
    return np.concatenate([[0], inner, [count]])


def _first_used_bytes(costs: Costs, trainable: bool) -> np.ndarray:
    """Bytes of the weights of each operation that no earlier one uses.

    With `trainable`, only those of trained weights.
    """
    seen: set[int] = set()
    sizes = []
    for numbers in costs.used:
        fresh = [costs.weights[number] for number in set(numbers) - seen]
        counted = [weight.size for weight in fresh if weight.trainable or not trainable]
        sizes.append(float(sum(counted)))
        seen.update(numbers)
    return np.array(sizes)
