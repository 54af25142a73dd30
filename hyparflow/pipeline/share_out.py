"""Deals out weights to replicas, so that each updates about as many bytes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

__all__ = ["share_out", "share_out_common"]

_EVEN = 1.05  # of the mean: what the fullest replica may have for weights to stay together


def share_out(
    sizes: Sequence[int],
    groups: Sequence[Sequence[int]],
    num_replicas: int,
    loads: Sequence[int] = (),
) -> list[int]:
    """The replica of each weight: the largest first, each to the replica that has least.

    The weights of a group stay together where that is about as even. Where it is not, the largest
    groups are dealt out weight by weight.

    Args:
        sizes: of the weights, in bytes.
        groups: positions of weights that should have one owner; each weight is in one of them.
        num_replicas: how many there are.
        loads: what each replica has already.

    Returns:
        For each weight, the number of its replica.
    """
    before = list(loads) or [0] * num_replicas
    alone = [[position] for group in groups for position in group]
    together = [list(group) for group in groups if group]
    even = _EVEN * (sum(before) + sum(sizes)) / num_replicas
    limit = max(even, max(_dealt(sizes, alone, before)[1], default=0))
    while True:
        owners, totals = _dealt(sizes, together, before)
        most = max((_size(group, sizes) for group in together if len(group) > 1), default=None)
        if most is None or max(totals) <= limit:
            return owners
        parted = [group for group in together if len(group) > 1 and _size(group, sizes) == most]
        together = [group for group in together if group not in parted]
        together += [[position] for group in parted for position in group]


def share_out_common(
    sizes: Sequence[int],
    holders: Sequence[Sequence[int]],
    num_partitions: int,
    num_replicas: int,
) -> tuple[list[int], list[list[int]]]:
    """The replica of each weight that several partitions hold; it is the same in all of them.

    Args:
        sizes: of the weights, in bytes.
        holders: for each, the partitions that hold it.
        num_partitions, num_replicas: how many there are.

    Returns:
        For each weight, the number of its replica; and what the replicas of each partition have.
    """
    loads = [[0] * num_replicas for _ in range(num_partitions)]
    owners = [0] * len(sizes)
    for position in sorted(range(len(sizes)), key=lambda position: -sizes[position]):
        most = [max(loads[p][r] for p in holders[position]) for r in range(num_replicas)]
        owners[position] = most.index(min(most))
        for partition in holders[position]:
            loads[partition][owners[position]] += sizes[position]
    return owners, loads


def _dealt(
    sizes: Sequence[int], groups: Sequence[Sequence[int]], before: Sequence[int]
) -> tuple[list[int], list[int]]:
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


def _size(group: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(sizes[position] for position in group)
