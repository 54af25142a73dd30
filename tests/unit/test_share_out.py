"""Which replica updates which weights: about as many bytes each, groups together where even."""

from __future__ import annotations

import random

import pytest

from hyparflow.pipeline.share_out import share_out, share_out_common


def totals(sizes: list[int], owners: list[int], replicas: int) -> list[int]:
    return [sum(s for s, o in zip(sizes, owners, strict=True) if o == r) for r in range(replicas)]


def alone(sizes: list[int]) -> list[list[int]]:
    return [[position] for position in range(len(sizes))]


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 8])
def test_about_as_many_bytes_each(replicas: int) -> None:
    sizes = [random.Random(7).randrange(1, 1000) for _ in range(200)]
    found = totals(sizes, share_out(sizes, alone(sizes), replicas), replicas)
    assert max(found) <= 1.01 * sum(sizes) / replicas


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_weight_larger_than_its_share_is_alone(replicas: int) -> None:
    sizes = [5, 1000, 5, 5]
    owners = share_out(sizes, [[0, 1, 2, 3]], replicas)
    assert [owner for owner in owners if owner == owners[1]] == [owners[1]]


def test_blocks_stay_together_where_that_is_even() -> None:
    sizes = [9, 1, 9, 1] * 8
    blocks = [list(range(start, start + 4)) for start in range(0, 32, 4)]
    owners = share_out(sizes, blocks, 2)
    assert all(len({owners[position] for position in block}) == 1 for block in blocks)
    assert totals(sizes, owners, 2) == [80, 80]


def test_only_the_largest_blocks_are_parted() -> None:
    sizes = [40, 40, 1, 1, 1, 1]
    owners = share_out(sizes, [[0, 1], [2, 3], [4, 5]], 2)
    assert totals(sizes, owners, 2) == [42, 42]
    assert owners[2] == owners[3] and owners[4] == owners[5]


@pytest.mark.parametrize("sizes", [[], [3], [3, 3]])
def test_fewer_weights_than_replicas(sizes: list[int]) -> None:
    owners = share_out(sizes, alone(sizes), 4)
    assert len(owners) == len(sizes) == len(set(owners))


def test_what_replicas_have_already_counts() -> None:
    assert share_out([10, 10], [[0], [1]], 2, [20, 0]) == [1, 1]


def test_all_holders_of_a_weight_have_its_owner_in_one_replica() -> None:
    owners, loads = share_out_common([6, 4, 2], [[0, 1], [1, 2], [0, 2]], 3, 2)
    assert owners == [0, 1, 1]
    assert loads == [[6, 2], [6, 4], [0, 6]]


def test_nothing_in_common() -> None:
    assert share_out_common([], [], 2, 3) == ([], [[0, 0, 0], [0, 0, 0]])
