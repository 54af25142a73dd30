"""Blocks of operations that repeat."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from hyparflow.pipeline.repeats import Repeat, repeats, unit_boundaries


def found(text: str, crossing: list[float] | None = None) -> list[Repeat]:
    """Of operations whose kinds are letters."""
    return repeats([ord(letter) for letter in text], crossing or [0.0] * (len(text) + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("abc", []),
        ("aa", [Repeat(0, 1, 2)]),
        ("xaaaay", [Repeat(1, 1, 4)]),
        ("xabcabcabcy", [Repeat(1, 3, 3)]),
        # Stages of a ResNet: other widths, and between them blocks that halve the images.
        ("xababab-cdcdcd-ee", [Repeat(1, 2, 3), Repeat(8, 2, 3), Repeat(15, 1, 2)]),
        # Blocks within blocks: the longer save more.
        ("abbbcabbbc", [Repeat(0, 5, 2)]),
        # Half a block at the end.
        ("abcabcab", [Repeat(0, 3, 2)]),
    ],
)
def test_repeats(text: str, expected: list[Repeat]) -> None:
    assert found(text) == expected


def test_blocks_begin_where_least_crosses() -> None:
    crossing = [0, 9, 9, 1, 9, 9, 1, 9, 9, 1, 9, 9]
    assert found("xabcabcabca", crossing) == [Repeat(1, 3, 3)]
    assert found("cabcabcabcab", [9.0, *crossing]) == [Repeat(0, 3, 4)]
    assert found("cabcabcabca", crossing) == [Repeat(0, 3, 3)]
    assert found("bcabcabcabc", [9, 9, 0, 9, 9, 0, 9, 9, 0, 9, 9, 0]) == [Repeat(2, 3, 3)]


@given(strategies.lists(strategies.integers(0, 3), max_size=40))
def test_what_repeats_is_equal_and_apart(kinds: list[int]) -> None:
    last = 0
    for repeat in repeats(kinds, [0.0] * (len(kinds) + 1)):
        assert repeat.start >= last and repeat.count >= 2
        last = repeat.stop
        block = kinds[repeat.start : repeat.start + repeat.length]
        assert kinds[repeat.start : repeat.stop] == block * repeat.count
    assert last <= len(kinds)


@given(strategies.lists(strategies.integers(0, 2), min_size=2, max_size=30))
def test_no_two_neighbours_of_a_kind_are_missed(kinds: list[int]) -> None:
    known = repeats(kinds, [0.0] * (len(kinds) + 1))
    for place in range(len(kinds) - 1):
        if kinds[place] == kinds[place + 1]:
            assert any(r.start <= place + 1 and r.stop > place for r in known)


def test_units_of_several_blocks() -> None:
    repeat = [Repeat(1, 3, 5)]
    assert unit_boundaries(repeat, lambda _: 1, [0, 18]) == (0, 1, 4, 7, 10, 13, 16, 18)
    assert unit_boundaries(repeat, lambda _: 2, [0, 18]) == (0, 1, 7, 13, 16, 18)
    assert unit_boundaries(repeat, lambda _: 9, [0, 18]) == (0, 1, 16, 18)


def test_units_do_not_cross_the_cuts_of_stages() -> None:
    """A stage may begin within a block: its whole blocks are units all the same."""
    repeat = [Repeat(0, 3, 6)]
    assert unit_boundaries(repeat, lambda _: 2, [0, 9, 18]) == (0, 6, 9, 15, 18)
    assert unit_boundaries(repeat, lambda _: 1, [0, 7, 18]) == (0, 3, 6, 7, 9, 12, 15, 18)
    assert unit_boundaries(repeat, lambda _: 1, [0, 7, 8, 18]) == (0, 3, 6, 7, 8, 9, 12, 15, 18)
    assert unit_boundaries([], lambda _: 4, [0, 7, 18]) == (0, 7, 18)
