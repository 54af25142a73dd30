"""Schedules as text next to the expected text, and the order that each must keep."""

from __future__ import annotations

import itertools

import pytest

from hyparflow.actions import Action
from hyparflow.schedule import (
    SCHEDULES,
    Schedule,
    forward_only,
    gpipe,
    make_schedule,
    one_forward_one_backward,
)

# Odd ones, one of each, and fewer micro-batches than partitions.
SIZES = [*itertools.product(range(1, 7), range(9)), (7, 3), (8, 21), (3, 32), (16, 5)]


def text(schedule: Schedule) -> list[str]:
    """One line per partition."""
    return [" ".join(map(str, actions)) for actions in schedule]


GPIPE = {
    (1, 1): ["0F0 0B0"],
    (1, 3): ["0F0 0F1 0F2 0B0 0B1 0B2"],
    (2, 1): ["0F0 0B0", "1F0 1B0"],
    (2, 2): ["0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1"],
    (3, 4): [
        "0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3",
        "1F0 1F1 1F2 1F3 1B0 1B1 1B2 1B3",
        "2F0 2F1 2F2 2F3 2B0 2B1 2B2 2B3",
    ],
    (4, 2): ["0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", "2F0 2F1 2B0 2B1", "3F0 3F1 3B0 3B1"],
}

ONE_F_ONE_B = {
    (1, 1): ["0F0 0B0"],
    (1, 3): ["0F0 0B0 0F1 0B1 0F2 0B2"],
    (2, 1): ["0F0 0B0", "1F0 1B0"],
    (2, 2): ["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"],
    (2, 4): ["0F0 0F1 0B0 0F2 0B1 0F3 0B2 0B3", "1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3"],
    (3, 2): ["0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", "2F0 2B0 2F1 2B1"],
    (3, 5): [
        "0F0 0F1 0F2 0B0 0F3 0B1 0F4 0B2 0B3 0B4",
        "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1F4 1B3 1B4",
        "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 2F4 2B4",
    ],
    (4, 1): ["0F0 0B0", "1F0 1B0", "2F0 2B0", "3F0 3B0"],
    (4, 3): [
        "0F0 0F1 0F2 0B0 0B1 0B2",
        "1F0 1F1 1F2 1B0 1B1 1B2",
        "2F0 2F1 2B0 2F2 2B1 2B2",
        "3F0 3B0 3F1 3B1 3F2 3B2",
    ],
    (4, 5): [
        "0F0 0F1 0F2 0F3 0B0 0F4 0B1 0B2 0B3 0B4",
        "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1B3 1B4",
        "2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2B4",
        "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4",
    ],
}


@pytest.mark.parametrize("size", GPIPE, ids=str)
def test_gpipe(size: tuple[int, int]) -> None:
    assert text(gpipe(*size)) == GPIPE[size]


@pytest.mark.parametrize("size", ONE_F_ONE_B, ids=str)
def test_1f1b(size: tuple[int, int]) -> None:
    assert text(one_forward_one_backward(*size)) == ONE_F_ONE_B[size]


def test_forward_only() -> None:
    assert text(forward_only(2, 3)) == ["0F0 0F1 0F2", "1F0 1F1 1F2"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_computation_stands_once(name: str) -> None:
    for partitions, microbatches in SIZES:
        schedule = make_schedule(name, partitions, microbatches)
        assert len(schedule) == partitions
        for stage, actions in enumerate(schedule):
            expected = [Action(stage, k, m) for k in "BF" for m in range(microbatches)]
            assert sorted(actions) == expected, (partitions, microbatches)


@pytest.mark.parametrize("name", SCHEDULES)
def test_forward_before_its_backward(name: str) -> None:
    for partitions, microbatches in SIZES:
        for stage, actions in enumerate(make_schedule(name, partitions, microbatches)):
            for m in range(microbatches):
                forward = actions.index(Action(stage, "F", m))
                assert forward < actions.index(Action(stage, "B", m)), (partitions, microbatches)


@pytest.mark.parametrize("name", SCHEDULES)
def test_microbatches_in_order(name: str) -> None:
    """MPI keeps the order of messages only if all ranks take micro-batches in one order."""
    for size in SIZES:
        for actions in make_schedule(name, *size):
            for kind in "FB":
                order = [action.microbatch for action in actions if action.kind == kind]
                assert order == sorted(order), size


def peak(actions: list[Action]) -> int:
    """The most micro-batches between their forward and their backward."""
    steps = [1 if action.kind == "F" else -1 for action in actions]
    return max(itertools.accumulate(steps), default=0)


def test_activations_in_flight() -> None:
    for partitions, microbatches in SIZES:
        all_kept = [peak(actions) for actions in gpipe(partitions, microbatches)]
        few_kept = [peak(a) for a in one_forward_one_backward(partitions, microbatches)]
        assert all_kept == [microbatches] * partitions
        assert few_kept == [min(microbatches, partitions - p) for p in range(partitions)]


def test_unknown_schedule_lists_the_known() -> None:
    with pytest.raises(ValueError) as caught:
        make_schedule("pipe-dream", 2, 4)
    assert str(caught.value) == (
        "`schedule` must be one of 'gpipe', '1f1b' or 'auto'. Received: schedule='pipe-dream'"
    )
