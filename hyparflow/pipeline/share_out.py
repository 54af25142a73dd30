"""Deals out weights to replicas, so that each updates about as many bytes.

Whole weights travel in one message each, so weights are divided only where whole ones would not
come out even, the largest first.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

__all__ = ["largest_share", "share_out", "share_out_common", "share_out_divided"]

_EVEN = 1.05  # of the mean: what the fullest replica may have for weights to stay together


def share_out(
    sizes: Sequence[int],
    groups: Sequence[Sequence[int]],
    num_replicas: int,
    loads: Sequence[float] = (),
    mean: float | None = None,
) -> list[int]:
    """The replica of each weight: the largest first, each to the replica that has least.

    The weights of a group stay together where that is about as even. Where it is not, the largest
    groups are dealt out weight by weight.

    Args:
        sizes: of the weights, in bytes.
        groups: positions of weights that should have one owner; each weight is in one of them.
        num_replicas: how many there are.
        loads: what each replica has already.
        mean: what each should have; by default the mean of all that there is.

    Returns:
        For each weight, the number of its replica.
    """
    before = list(loads) or [0] * num_replicas
    alone = [[position] for group in groups for position in group]
    together = [list(group) for group in groups if group]
    even = _EVEN * ((sum(before) + sum(sizes)) / num_replicas if mean is None else mean)
    limit = max(even, max(_dealt(sizes, alone, before)[1], default=0))
    while True:
        owners, totals = _dealt(sizes, together, before)
        most = max((_size(group, sizes) for group in together if len(group) > 1), default=None)
        if most is None or max(totals) <= limit:
            return owners
        parted = [group for group in together if len(group) > 1 and _size(group, sizes) == most]
        together = [group for group in together if group not in parted]
        together += [[position] for group in parted for position in group]


def largest_share(sizes: Sequence[int], num_replicas: int) -> float:
    """What the replica has that has most of whole weights of these sizes."""
    alone = [[position] for position in range(len(sizes))]
    return max(_dealt(sizes, alone, [0] * num_replicas)[1])


def share_out_divided(
    sizes: Sequence[int],
    groups: Sequence[Sequence[int]],
    num_replicas: int,
    loads: Sequence[float],
    divisible: Sequence[bool],
) -> tuple[list[int], dict[int, list[float]]]:
    """The replica of each weight, and what each replica has of those that are divided.

    As few are divided as make it about even, the largest first.

    Args:
        sizes, groups, num_replicas, loads: as of `share_out`.
        divisible: for each weight, whether it may be divided.

    Returns:
        For each weight, the number of its replica; and by the positions of those that are divided,
        the bytes of each replica.
    """
    mean = (sum(loads) + sum(sizes)) / num_replicas
    order = sorted((p for p in range(len(sizes)) if divisible[p]), key=lambda p: -sizes[p])
    largest = max((s for s, may in zip(sizes, divisible, strict=True) if not may), default=0)
    enough, count = _EVEN * max(mean, largest), 0
    best: tuple[float, list[int], dict[int, list[float]]] | None = None
    while True:
        apart = order[:count]
        kept = [[p for p in group if p not in apart] for group in groups]
        whole = [0 if p in apart else size for p, size in enumerate(sizes)]
        owners = share_out(whole, kept, num_replicas, loads, mean)
        totals = list(loads)
        for owner, size in zip(owners, whole, strict=True):
            totals[owner] += size
        parts, most = _filled(totals, {p: sizes[p] for p in apart})
        if best is None or most < best[0]:
            best = most, owners, parts
        if most <= enough or count == len(order):
            return best[1:]
        count = min(len(order), count + 1 + count // 4)


def share_out_common(
    sizes: Sequence[int],
    holders: Sequence[Sequence[int]],
    num_partitions: int,
    num_replicas: int,
) -> tuple[list[int], list[list[float]]]:
    """The replica of each weight that several partitions hold; it is the same in all of them.

    Args:
        sizes: of the weights, in bytes.
        holders: for each, the partitions that hold it.
        num_partitions, num_replicas: how many there are.

    Returns:
        For each weight, the number of its replica; and what the replicas of each partition have.
    """
    loads: list[list[float]] = [[0] * num_replicas for _ in range(num_partitions)]
    owners = [0] * len(sizes)
    for position in sorted(range(len(sizes)), key=lambda position: -sizes[position]):
        most = [max(loads[p][r] for p in holders[position]) for r in range(num_replicas)]
        owners[position] = most.index(min(most))
        for partition in holders[position]:
            loads[partition][owners[position]] += sizes[position]
    return owners, loads


def _dealt(
    sizes: Sequence[int], groups: Sequence[Sequence[int]], before: Sequence[float]
) -> tuple[list[int], list[float]]:
    """The replica of each weight, and what each replica has then."""
    owners = [0] * len(sizes)
    least = [(load, replica) for replica, load in enumerate(before)]
    heapq.heapify(least)
    for group in sorted(groups, key=lambda group: -_size(group, sizes)):
        load, replica = least[0]
        for position in group:
            owners[position] = replica
        heapq.heapreplace(least, (load + _size(group, sizes), replica))
    return owners, [load for load, _ in least]


def _filled(totals: Sequence[float], sizes: dict[int, int]) -> tuple[dict[int, list[float]], float]:
    """What each replica gets of divided weights, so that those with least have as much as others.

    One replica after the other is filled, so a weight has few parts.

    Args:
        totals: what each replica has.
        sizes: of the weights, by their positions.

    Returns:
        For each weight, the bytes of each replica; and what the fullest replica has then.
    """
    rising, level = sorted(totals), max(totals)
    for count, (_, after) in enumerate(itertools.pairwise([*rising, math.inf]), 1):
        level = (sum(rising[:count]) + sum(sizes.values())) / count
        if level <= after:
            break
    room = [max(0.0, level - total) for total in totals]
    parts = {}
    for position, size in sizes.items():
        parts[position], left = [0.0] * len(totals), float(size)
        for replica in range(len(totals)):
            taken = min(room[replica], left)
            parts[position][replica] += taken
            room[replica] -= taken
            left -= taken
        parts[position][-1] += left  # of rounding
    return parts, max(level, *totals) if sizes else max(totals)


def _size(group: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(sizes[position] for position in group)
