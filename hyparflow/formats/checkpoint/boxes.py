"""Boxes of a tensor, given by the first index and the one after the last on each axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["MOST_SHARDS", "extent", "fault_of_tiling", "overlap", "slices"]

MOST_SHARDS = (
    2**14
)  # of one tensor; the time to find overlaps grows with the square of hostile ones
_PAIRWISE = 64  # boxes that are compared each with each, without a search for cuts between them
_MOST_PAIRWISE = 2048  # the same where there is no cut between them


def extent(start: Sequence[int], stop: Sequence[int]) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(end - begin for begin, end in zip(start, stop, strict=True))


def overlap(
    start: Sequence[int], stop: Sequence[int], other: Sequence[int], end: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The box that two boxes have in common; None if they have none."""
    first = tuple(map(max, start, other))
    last = tuple(map(min, stop, end))
    return (first, last) if all(a < b for a, b in zip(first, last, strict=True)) else None


def slices(start: Sequence[int], stop: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    """A box as slices of an array that begins at `origin`."""
    return tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))


def fault_of_tiling(
    shape: Sequence[int], boxes: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> str:
    """Why boxes do not cover each element of a tensor once; an empty string if they do.

    Args:
        shape: the tensor's.
        boxes: (start, stop) of each box.
    """
    if not boxes or len(boxes) > MOST_SHARDS:
        return f"it has {len(boxes)} shards, and 1 to {MOST_SHARDS} are allowed"
    covered = 0
    for start, stop in boxes:
        if not len(start) == len(stop) == len(shape):
            return f"a shard has {len(start)} and {len(stop)} axes, and it has {len(shape)}"
        if not all(0 <= a <= b <= c for a, b, c in zip(start, stop, shape, strict=True)):
            return f"the shard from {list(start)} to {list(stop)} does not lie within {list(shape)}"
        covered += _volume(extent(start, stop))
    if covered != _volume(shape):
        return f"its shards have {covered} elements, and it has {_volume(shape)}"
    # As many elements as it has, and none of them twice: so each of them once.
    filled = [box for box in boxes if _volume(extent(*box))]
    return _fault_of_overlaps(filled) if len(filled) > 1 else ""


def _volume(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _fault_of_overlaps(boxes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> str:
    """Cut the boxes into groups that nothing crosses, until a group can be compared as it is."""
    starts = np.array([start for start, _ in boxes], np.int64)
    stops = np.array([stop for _, stop in boxes], np.int64)
    groups = [np.arange(len(boxes))]
    while groups:
        group = groups.pop()
        parts = [group] if len(group) <= _PAIRWISE else _parted(group, starts, stops)
        if len(parts) > 1:
            groups.extend(part for part in parts if len(part) > 1)
        elif len(group) > _MOST_PAIRWISE:
            return f"{len(group)} of its shards interlock, with no cut between them"
        elif _some_overlap(starts[group], stops[group]):
            return "two of its shards overlap"
    return ""


def _parted(group: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
    """The group in parts, along the first axis on which a plane lies between some of the boxes."""
    for axis in range(starts.shape[1]):
        order = group[np.argsort(starts[group, axis], kind="stable")]
        reached = np.maximum.accumulate(stops[order, axis])
        cuts = np.flatnonzero(starts[order[1:], axis] >= reached[:-1]) + 1
        if len(cuts):
            return np.split(order, cuts)
    return [group]


def _some_overlap(starts: np.ndarray, stops: np.ndarray) -> bool:
    for place in range(len(starts) - 1):
        first = np.maximum(starts[place], starts[place + 1 :])
        last = np.minimum(stops[place], stops[place + 1 :])
        if (first < last).all(axis=1).any():
            return True
    return False
