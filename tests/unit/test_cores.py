"""Ranks that share cores are told so."""

from __future__ import annotations

import pytest

from hyparflow.launching.cores import Claim, crowded


def claims(*wanted: tuple[tuple[int, ...], int], node: str = "a") -> list[Claim]:
    return [Claim(node, cores, threads) for cores, threads in wanted]


@pytest.mark.parametrize(
    "good",
    [
        claims(((0,), 1), ((1,), 1)),
        claims(((0, 1, 2, 3), 2), ((0, 1, 2, 3), 2)),
        claims(((0, 1), 2), ((2, 3), 2)),
        claims(((0, 1, 2, 3), 4)),
        [*claims(((0,), 1)), *claims(((0,), 1), node="b")],
    ],
)
def test_a_core_for_each_thread(good: list[Claim]) -> None:
    assert crowded(good) == []


def test_more_ranks_than_cores() -> None:
    (text,) = crowded(claims(*[((0, 1), 1)] * 6))
    assert "ranks 0, 1, 2, 3 and 2 more on node 'a' compute with 6 threads on 2 cores" in text
    assert "at most 2 ranks" in text


def test_ranks_bound_to_one_core_beside_idle_ones() -> None:
    (text,) = crowded(claims(((0,), 1), ((0,), 1), ((1,), 1), ((2, 3), 1)))
    assert "ranks 0, 1 on node 'a' compute with 2 threads on 1 core." in text
    assert "Give each rank cores of its own, 1 each" in text


def test_each_rank_with_a_thread_for_every_core() -> None:
    (text,) = crowded(claims(((0, 1, 2, 3), 4), ((0, 1, 2, 3), 4)))
    assert "8 threads on 4 cores" in text
    assert "Give each rank cores of its own, 2 each" in text


def test_each_node_is_told_of() -> None:
    both = [*claims(*[((0,), 1)] * 2), *claims(*[((0,), 1)] * 2, node="b")]
    assert [text.split("'")[1] for text in crowded(both)] == ["a", "b"]
