"""Schedules as text next to the expected text, and the order that each must keep."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from hyparflow.pipeline.actions import Action, Edge, Kind
from hyparflow.pipeline.lowering import lower, prove
from hyparflow.pipeline.placement import v_shaped, wrapped
from hyparflow.pipeline.schedules import (
    SCHEDULES,
    TABLE,
    Schedule,
    forward_only,
    gpipe,
    in_words,
    interleaved,
    make_schedule,
    one_forward_one_backward,
    placement_of,
    zero_bubble,
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
    assert text(forward_only(wrapped(2), 3)) == ["0F0 0F1 0F2", "1F0 1F1 1F2"]
    assert text(forward_only(v_shaped(2), 2)) == ["0F0 0F1 3F0 3F1", "1F0 1F1 2F0 2F1"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_computation_stands_once(name: str) -> None:
    kinds = "FIW" if TABLE[name].in_two else "BF"
    for partitions, microbatches in SIZES:
        placement = placement_of(name, partitions)
        schedule = make_schedule(name, placement, microbatches)
        assert len(schedule) == partitions
        for partition, actions in enumerate(schedule):
            stages, numbers = placement.stages(partition), range(microbatches)
            expected = [Action(s, Kind(k), m) for s in stages for k in kinds for m in numbers]
            assert sorted(actions) == expected, (partitions, microbatches)


@pytest.mark.parametrize("name", SCHEDULES)
def test_forward_before_its_backward(name: str) -> None:
    for partitions, microbatches in SIZES:
        placement = placement_of(name, partitions)
        for partition, actions in enumerate(make_schedule(name, placement, microbatches)):
            stages, kinds_in_order = placement.stages(partition), ("FB", "FI", "IW")
            for stage, m, kinds in itertools.product(stages, range(microbatches), kinds_in_order):
                pair = [Action(stage, Kind(kind), m) for kind in kinds]
                if all(action in actions for action in pair):
                    places = [actions.index(action) for action in pair]
                    assert places == sorted(places), (partitions, microbatches)


@pytest.mark.parametrize("name", SCHEDULES)
def test_microbatches_in_order(name: str) -> None:
    """MPI keeps the order of messages only if all ranks take micro-batches in one order."""
    for partitions, microbatches in SIZES:
        placement = placement_of(name, partitions)
        for actions in make_schedule(name, placement, microbatches):
            for stage, kind in itertools.product(range(placement.num_stages), "FBIW"):
                order = [a.microbatch for a in actions if (a.stage, a.kind) == (stage, kind)]
                assert order == sorted(order), (partitions, microbatches)


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


# --- several stages per partition ---

INTERLEAVED_SIZES = list(itertools.product((1, 2, 3, 4, 6), (1, 2, 3, 4, 5, 7, 8, 12), (1, 2, 3)))


def chain(num_stages: int) -> list[Edge]:
    return [Edge(stage, stage, stage + 1, True) for stage in range(num_stages - 1)]


def test_interleaved_as_published() -> None:
    """Narayanan et al. 2021, figure 4: 4 partitions of 2 stages; rank 0 begins with a group of
    micro-batches of its first stage, then of its second. Theirs have 4 of 8."""
    order = text(interleaved(wrapped(4, 2), 12))[0]
    assert order.startswith("0F0 0F1 0F2 0F3 0F4 0F5 4F0 4F1 4F2 4F3 4F4 4F5 0F6 4B0 0F7")
    last = text(interleaved(wrapped(4, 2), 12))[3]
    assert last.startswith("3F0 3F1 3F2 3F3 3F4 3F5 7F0 7B0 7F1 7B1 7F2 7B2")
    assert "7F5 7B5 3F6 3B0 3F7 3B1" in last


def seconds(schedule: Schedule, latency: float, seed: int) -> float:
    """How long a step takes whose computations vary; messages arrive late but keep no rank busy."""
    rng = random.Random(seed)
    last = max(action.stage for actions in schedule for action in actions)
    clocks, at = [0.0] * len(schedule), [0] * len(schedule)
    arrivals: dict[tuple[int, str, int], float] = {}
    while any(position < len(actions) for position, actions in zip(at, schedule, strict=True)):
        for rank, actions in enumerate(schedule):
            while at[rank] < len(actions):
                stage, kind, m = actions[at[rank]]
                needed = (stage - 1, "F", m) if kind == "F" else (stage + 1, "B", m)
                if 0 <= needed[0] <= last and needed not in arrivals:
                    break
                start = max(clocks[rank], arrivals.get(needed, 0.0))
                clocks[rank] = start + (1 if kind == "F" else 2) * rng.uniform(0.8, 1.2)
                arrivals[stage, kind, m] = clocks[rank] + latency
                at[rank] += 1
    return max(clocks)


@pytest.mark.parametrize("partitions, each", [(2, 2), (2, 4), (4, 2), (4, 4), (8, 4)])
def test_interleaved_ranks_wait_less_than_as_published(
    partitions: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a message takes half a forward and computations do not all take the same time."""

    def median() -> float:
        made = interleaved(wrapped(partitions, each), 4 * partitions)
        return statistics.median(seconds(made, 0.5, seed) for seed in range(9))

    ours = median()
    monkeypatch.setattr(
        "hyparflow.pipeline.schedules.group_size", lambda num_partitions: num_partitions
    )
    assert ours < 0.98 * median()


def test_one_interleaved_stage_is_1f1b() -> None:
    for partitions, microbatches in SIZES:
        one = interleaved(wrapped(partitions), microbatches)
        assert one == one_forward_one_backward(partitions, microbatches)


def test_interleaved_computations_stand_once_and_in_order() -> None:
    for partitions, microbatches, each in INTERLEAVED_SIZES:
        schedule = interleaved(wrapped(partitions, each), microbatches)
        for partition, actions in enumerate(schedule):
            stages = range(partition, partitions * each, partitions)
            kinds = Kind.BACKWARD, Kind.FORWARD
            expected = [Action(s, k, m) for s in stages for k in kinds for m in range(microbatches)]
            assert sorted(actions) == expected
            for stage, kind in itertools.product(stages, "FB"):
                order = [a.microbatch for a in actions if (a.stage, a.kind) == (stage, kind)]
                assert order == sorted(order)


def test_interleaved_ends_and_wastes_what_it_must() -> None:
    """(P - 1) / (V M + P - 1) with enough micro-batches, whatever their number."""
    for partitions, microbatches, each in INTERLEAVED_SIZES:
        edges = chain(partitions * each)
        made = interleaved(wrapped(partitions, each), microbatches)
        timeline = prove(lower(made, edges), edges)
        if microbatches >= partitions:
            expected = (partitions - 1) / (each * microbatches + partitions - 1)
            assert timeline.idle_share == pytest.approx(expected)


def test_zero_bubble_by_hand() -> None:
    assert text(zero_bubble(wrapped(2), 4)) == [
        "0F0 0F1 0I0 0W0 0I1 0F2 0W1 0F3 0I2 0W2 0I3 0W3",
        "1F0 1I0 1F1 1I1 1W0 1W1 1F2 1I2 1F3 1I3 1W2 1W3",
    ]


def test_zero_bubble_wastes_less_than_1f1b_and_keeps_no_more() -> None:
    """At most 2 (P - 1) units of idle time on a partition instead of 3 (P - 1); and the memory of
    1F1B's first stage."""
    for partitions, microbatches in itertools.product((2, 3, 4, 8), (8, 9, 16)):
        edges = chain(partitions)
        timeline = prove(lower(zero_bubble(wrapped(partitions), microbatches), edges), edges)
        known = prove(lower(one_forward_one_backward(partitions, microbatches), edges), edges)
        assert timeline.makespan < known.makespan
        assert known.makespan == 3 * (microbatches + partitions - 1)
        assert timeline.makespan <= 3 * microbatches + 2 * (partitions - 1)
        peaks = [timeline.peak_in_flight(p) for p in range(partitions)]
        assert max(peaks) <= min(partitions, microbatches)


def test_a_v_keeps_no_more_and_wastes_nothing_but_its_first_fill() -> None:
    """Each partition waits P - 1 units in all, of the 6 M that it computes; and the memory is that
    of 1F1B's first stage, P micro-batches, or 2 P of half a partition."""
    for partitions, microbatches in itertools.product((1, 2, 3, 4, 5, 8), (8, 9, 16, 31)):
        edges = chain(2 * partitions)
        made = zero_bubble(v_shaped(partitions), microbatches)
        timeline = prove(lower(made, edges), edges)
        least = 6 * microbatches + partitions - 1
        if partitions < 5 or microbatches % partitions == 0:
            assert timeline.makespan == least
            assert timeline.idle_share == pytest.approx((partitions - 1) / least)
        assert timeline.makespan <= least + partitions // 2
        peaks = [timeline.peak_in_flight(p) for p in range(partitions)]
        assert max(peaks) <= 2 * min(partitions, microbatches)


def test_a_v_of_few_microbatches_ends() -> None:
    for partitions, microbatches in itertools.product(range(1, 9), range(1, 8)):
        edges = chain(2 * partitions)
        prove(lower(zero_bubble(v_shaped(partitions), microbatches), edges), edges)


def test_several_stages_need_the_interleaved_schedule() -> None:
    with pytest.raises(ValueError, match="Received: schedule='gpipe', stages_per_partition=2"):
        placement_of("gpipe", 2, 2)
    with pytest.raises(ValueError, match="'zero-bubble-v', stages_per_partition=3"):
        placement_of("zero-bubble-v", 2, 3)
    with pytest.raises(ValueError, match="num_partitions=2, stages_per_partition=1048576"):
        placement_of("interleaved", 2, 2**20)


def test_one_partition_is_no_pipeline() -> None:
    for schedule in SCHEDULES:
        assert in_words(schedule, wrapped(1)) == ""
        assert in_words(schedule, wrapped(2)) == schedule
    assert in_words("interleaved", wrapped(2, 3)) == "interleaved, 3 stages per partition"
    assert in_words("interleaved", wrapped(1, 4)) == "4 stages per partition"
    assert in_words("zero-bubble-v", v_shaped(2)) == "zero-bubble-v, 2 stages per partition"


def test_unknown_schedule_lists_the_known() -> None:
    with pytest.raises(ValueError) as caught:
        make_schedule("pipe-dream", wrapped(2), 4)
    assert str(caught.value) == (
        "`schedule` must be one of 'gpipe', '1f1b', 'interleaved', 'zero-bubble', "
        "'zero-bubble-v' or 'auto'. Received: schedule='pipe-dream'"
    )
