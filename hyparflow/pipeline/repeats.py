"""Blocks of operations that repeat one after the other, as those of a ResNet or a Transformer do.

Operations are of the same kind if they compute the same from tensors of the same shapes, made at
the same distances before them; then blocks of the same kinds compute the same, with other weights,
and need to be traced and compiled only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Repeat", "repeats", "unit_boundaries"]

_LONGEST = 1024  # operations of a block


@dataclass(frozen=True)
class Repeat:
    """Blocks of the same operations, each behind the one before.

    Attributes:
        start: the first operation of the first block.
        length: operations of a block.
        count: the number of blocks.
    """

    start: int
    length: int
    count: int

    @property
    def stop(self) -> int:
        """The first operation behind the last block."""
        return self.start + self.length * self.count

    @property
    def saved(self) -> int:
        """The number of operations that need not be traced."""
        return self.length * (self.count - 1)


def repeats(kinds: Sequence[int], crossing: Sequence[float]) -> list[Repeat]:
    """The repeats in a list of operations; they do not overlap.

    First the one that saves most is taken, of several the one of shorter blocks, and then those
    before and behind it. Where a block begins is free; it is where least crosses.

    Args:
        kinds: the kind of each operation.
        crossing: what crosses each boundary 0..n, in any unit.

    Returns:
        The repeats of at least two blocks, in order.
    """
    array = np.asarray(kinds)
    found: list[Repeat] = []
    spans = [(0, len(array))]
    while spans:
        begin, end = spans.pop()
        best = _best(array[begin:end])
        if best is None:
            continue
        start, length, stop = best
        repeat = _placed(begin + start, begin + stop, length, crossing)
        found.append(repeat)
        spans += [(begin, repeat.start), (repeat.stop, end)]
    return sorted(found, key=lambda repeat: repeat.start)


def unit_boundaries(
    found: Sequence[Repeat], least: Callable[[Repeat], int], fixed: Sequence[int]
) -> tuple[int, ...]:
    """The boundaries of the units into which a model is divided to be compiled.

    Args:
        found: from `repeats`.
        least: the number of blocks that a unit of a repeat should have at least.
        fixed: boundaries that must be there, as those of stages, and 0 and n.

    Returns:
        Boundaries from 0 to n. Blocks are counted from the first whole one behind a fixed boundary,
        so that each stage has units of the same blocks.
    """
    cuts = set(fixed)
    for repeat in found:
        runs = _whole_blocks(repeat, fixed)
        size = _blocks_of_unit([(b - a) // repeat.length for a, b in runs], least(repeat))
        for first, last in runs:
            cuts.update(range(first, last + 1, repeat.length * size))
            cuts.add(last)
    return tuple(sorted(cuts))


def _whole_blocks(repeat: Repeat, fixed: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of whole blocks of a repeat between the fixed boundaries: first, last boundary."""
    inside = [cut for cut in sorted(fixed) if repeat.start < cut < repeat.stop]
    runs = []
    for start, stop in zip([repeat.start, *inside], [*inside, repeat.stop], strict=True):
        first = start + (repeat.start - start) % repeat.length
        last = stop - (stop - repeat.start) % repeat.length
        if first < last:
            runs.append((first, last))
    return runs


def _blocks_of_unit(counts: Sequence[int], least: int) -> int:
    """How many blocks a unit has, at least `least`, for runs of so many blocks.

    Of the sizes up to twice `least` the one is best with which fewest blocks are compiled; what
    remains of a run is a unit of its own.
    """

    def compiled(size: int) -> int:
        return sum({min(size, count) for count in counts} | {count % size for count in counts})

    if least >= max(counts, default=0):
        return least
    return min(range(least, 2 * least), key=lambda size: (compiled(size), size))


def _best(kinds: np.ndarray) -> tuple[int, int, int] | None:
    """The repeat that saves most: (start, length of a block, stop); None if nothing repeats."""
    best, saved = None, 0
    for length in range(1, min(_LONGEST, len(kinds) // 2) + 1):
        # Runs of operations that are of the kind of the one a block later.
        same = np.concatenate([[False], kinds[:-length] == kinds[length:], [False]])
        starts, stops = np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2).T
        if not len(starts):
            continue
        run = int(np.argmax(stops - starts))
        # Of whole blocks: a run as long as a block makes two of them.
        whole = int(stops[run] - starts[run]) // length * length
        if whole > saved:
            best, saved = (int(starts[run]), length, int(stops[run]) + length), whole
    return best


def _placed(start: int, stop: int, length: int, crossing: Sequence[float]) -> Repeat:
    """The repeat with its blocks where least crosses, of as many blocks as there can be."""
    spare = (stop - start) % length
    first = min(range(start, start + spare + 1), key=lambda place: (crossing[place], place))
    return Repeat(first, length, (stop - first) // length)
