"""Which replica updates which weights: about as many bytes each, groups together where even."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hyparflow.pipeline.row_ranges import RowRanges
from hyparflow.pipeline.share_out import share_out, share_out_common, share_out_divided


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


DIVIDED = {
    "one large": ([600, 100, 100, 100, 100], None),
    "three alike": ([333, 333, 333], None),
    "one": ([1000], None),
    "blocks": (
        [1000, *[70, 2, 70, 2] * 6],
        [[0], *(list(range(p, p + 4)) for p in range(1, 25, 4))],
    ),
    "many": ([random.Random(3).randrange(1, 1000) ** 2 for _ in range(40)], None),
}


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", DIVIDED)
def test_divided_weights_make_it_even(name: str, replicas: int) -> None:
    sizes, groups = DIVIDED[name]
    loads = [0] * replicas
    may = [True] * len(sizes)
    owners, parts = share_out_divided(sizes, groups or alone(sizes), replicas, loads, may)
    whole = [0 if p in parts else size for p, size in enumerate(sizes)]
    found = np.array(totals(whole, owners, replicas)) + sum(map(np.array, parts.values()))
    assert max(found) <= 1.051 * sum(sizes) / replicas
    assert sum(found) == pytest.approx(sum(sizes))
    for position, part in parts.items():
        assert sum(part) == pytest.approx(sizes[position])


def test_weights_are_whole_where_that_is_even() -> None:
    sizes = [9, 1, 9, 1] * 8
    blocks = [list(range(start, start + 4)) for start in range(0, 32, 4)]
    found = share_out_divided(sizes, blocks, 2, [0, 0], [True] * 32)
    assert found == (share_out(sizes, blocks, 2), {})


def test_blocks_stay_together_beside_a_divided_weight() -> None:
    sizes = [600, *[60, 60] * 3]
    blocks = [[0], [1, 2], [3, 4], [5, 6]]
    owners, parts = share_out_divided(sizes, blocks, 2, [0, 0], [True] * 7)
    assert list(parts) == [0] and all(owners[a] == owners[b] for a, b in blocks[1:])


def test_what_may_not_be_divided_stays_whole() -> None:
    sizes = [600, 100, 100, 100, 100]
    may = [False, True, True, True, True]
    owners, parts = share_out_divided(sizes, alone(sizes), 2, [0, 0], may)
    assert parts == {} and owners == share_out(sizes, alone(sizes), 2)
    owners, parts = share_out_divided(sizes, alone(sizes), 4, [0, 0, 0, 0], may)
    assert 0 not in parts


@pytest.mark.parametrize("shape", [(1000, 7), (3, 3, 50, 20), (5,), (4096, 512), (77, 3), (101,)])
@pytest.mark.parametrize("parts", [[1, 1], [1, 1, 1, 1], [0, 3, 1], [1, 0, 1e-12], [0, 0, 5]])
def test_rows_of_a_divided_weight(shape: tuple[int, ...], parts: list[float]) -> None:
    ranges = RowRanges.of(shape, parts)
    values = np.arange(np.prod(shape)).reshape(ranges.view)
    rows = [values[ranges.rows(replica)] for replica in range(len(parts))]
    assert np.array_equal(np.concatenate(rows), values)
    assert [found.shape for found in rows] == [ranges.shape(r) for r in range(len(parts))]
    assert ranges.owners == [r for r, part in enumerate(parts) if part > 1e-9]
    for found, part in zip(rows, parts, strict=True):
        assert abs(found.size / values.size - part / sum(parts)) <= max(0.02, 1 / values.size)
