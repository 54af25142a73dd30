"""Blocks of operations that repeat one after the other, as those of a ResNet or a Transformer do.

Operations are of the same kind if they compute the same from tensors of the same shapes, made at
the same distances before them; then blocks of the same kinds compute the same, with other weights,
and need to be traced and compiled only once.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    found: Sequence[Repeat], blocks_per_unit: int, fixed: Sequence[int]
) -> tuple[int, ...]:
    """The boundaries of the units into which a model is divided to be compiled.

    Args:
        found: from `repeats`.
        blocks_per_unit: the number of blocks of a unit; the last of a repeat may have fewer.
        fixed: boundaries that must be there, as those of stages, and 0 and n.

    Returns:
        Boundaries from 0 to n. Blocks are counted from the first whole one behind a fixed boundary,
        so that each stage has units of the same blocks.
    """
    cuts = set(fixed)
    for repeat in found:
        inside = [cut for cut in sorted(fixed) if repeat.start < cut < repeat.stop]
        for start, stop in zip([repeat.start, *inside], [*inside, repeat.stop], strict=True):
            first = start + (repeat.start - start) % repeat.length  # of the first whole block
            last = stop - (stop - repeat.start) % repeat.length
            cuts.update(range(first, last + 1, repeat.length * blocks_per_unit))
            cuts.update(end for end in (last,) if first <= end)
    return tuple(sorted(cuts))


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
