"""Played schedules: time, idle share and activations in flight against the papers' formulas."""

from __future__ import annotations

import itertools

import pytest

from hyparflow.pipeline.actions import RECEIVES, Edge, Kind, Step
from hyparflow.pipeline.lowering import lower, prove
from hyparflow.pipeline.placement import wrapped
from hyparflow.pipeline.schedules import (
    SCHEDULES,
    forward_only,
    gpipe,
    make_schedule,
    one_forward_one_backward,
    placement_of,
)
from hyparflow.pipeline.simulator import Lowered, peaks_in_flight, play

SIZES = [*itertools.product(range(1, 6), range(1, 8)), (8, 3), (4, 32)]


def chain(partitions: int) -> list[Edge]:
    """Each stage feeds the next."""
    return [Edge(stage, stage, stage + 1, True) for stage in range(partitions - 1)]


def lowered(name: str, partitions: int, microbatches: int) -> Lowered:
    return lower(
        make_schedule(name, placement_of(name, partitions), microbatches), chain(partitions)
    )


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("partitions, microbatches", SIZES)
def test_makespan_and_idle_share(name: str, partitions: int, microbatches: int) -> None:
    """With F=1, B=2 both take 3 (M + P - 1) and idle for (P - 1) / (M + P - 1) of it."""
    timeline = prove(lowered(name, partitions, microbatches), chain(partitions))
    slots = microbatches + partitions - 1
    assert timeline.makespan == pytest.approx(3 * slots)
    assert timeline.idle_share == pytest.approx((partitions - 1) / slots)
    assert [timeline.busy(rank) for rank in range(partitions)] == [3.0 * microbatches] * partitions


@pytest.mark.parametrize("partitions, microbatches", SIZES)
def test_peak_in_flight(partitions: int, microbatches: int) -> None:
    ranks = range(partitions)
    timeline = play(lowered("gpipe", partitions, microbatches))
    assert [timeline.peak_in_flight(rank) for rank in ranks] == [microbatches] * partitions
    timeline = play(lowered("1f1b", partitions, microbatches))
    expected = [min(microbatches, partitions - rank) for rank in ranks]
    assert [timeline.peak_in_flight(rank) for rank in ranks] == expected


@pytest.mark.parametrize("partitions, microbatches", SIZES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_peaks_in_flight_are_those_of_the_played(
    name: str, partitions: int, microbatches: int
) -> None:
    schedule = make_schedule(name, placement_of(name, partitions), microbatches)
    kinds = {Kind.FORWARD: 1, Kind.FUSED: 1, Kind.BACKWARD: -1, Kind.WEIGHT_BACKWARD: -1}
    for stage, peak in peaks_in_flight(schedule).items():
        spans = play(lower(schedule, ())).spans[placement_of(name, partitions).partitions[stage]]
        mine = [span.step for span in spans if span.step.stage == stage]
        kept = [kinds.get(step.kind, 0) for step in mine]
        fused = [step.kind == Kind.FUSED for step in mine]  # kept while it runs, and no longer
        before = itertools.accumulate((k - f for k, f in zip(kept, fused, strict=True)), initial=0)
        assert peak == max(max(b + k, b) for b, k in zip(before, kept, strict=False))


def test_forwards_only_take_one_slot_each() -> None:
    timeline = play(lower(forward_only(wrapped(3), 4), chain(3), training=False))
    assert timeline.makespan == 6
    assert timeline.idle_share == pytest.approx(2 / 6)


def test_spans() -> None:
    """Two partitions, two micro-batches, as drawn in every text book."""
    timeline = play(lower(one_forward_one_backward(2, 2), chain(2)))
    drawn = [
        [(str(s.step), s.start, s.end) for s in spans if s.step.edge < 0 and s.end > s.start]
        for spans in timeline.spans
    ]
    assert drawn == [
        [("0F0", 0, 1), ("0F1", 1, 2), ("0B0", 4, 6), ("0B1", 7, 9)],
        [("1FB0", 1, 4), ("1FB1", 4, 7)],
    ]
    assert timeline.order(1)[:3] == ["1RA0.0@0", "1FB0", "1SG0.0@0"]


def test_cost_of_messages_and_slow_stages() -> None:
    """A transfer takes time on the receiver, is no computation, and a slow stage sets the pace."""

    def cost(step: Step) -> float:
        if step.kind in RECEIVES:
            return 0.5
        return {Kind.FORWARD: 1.0, Kind.BACKWARD: 2.0}.get(step.kind, 0.0) * (1 + 2 * step.stage)

    timeline = play(lower(gpipe(2, 2), chain(2)), cost)
    times = [[(str(s.step), s.start, s.end) for s in spans] for spans in timeline.spans]
    assert times[1][:4] == [
        ("1RA0.0@0", 1, 1.5),
        ("1F0", 1.5, 4.5),
        ("1RA1.0@0", 4.5, 5.0),
        ("1F1", 5.0, 8.0),
    ]
    assert times[0][-3:] == [("0B1", 20.5, 22.5), ("0REDUCE0", 22.5, 22.5), ("0APPLY0", 22.5, 22.5)]
    assert timeline.makespan == 22.5
    assert [timeline.busy(rank) for rank in range(2)] == [6.0, 18.0]
    assert timeline.idle_share == pytest.approx(1 - 24 / 45)


def test_a_send_that_nobody_takes() -> None:
    lists = [[Step(0, Kind.SEND_ACTIVATION, 0, 0, 1)], []]
    with pytest.raises(RuntimeError, match="1 sends are never received"):
        play(lists)


def test_nothing_to_play() -> None:
    timeline = play([[], []])
    assert timeline.makespan == 0.0
    assert timeline.idle_share == 0.0
    assert timeline.peak_in_flight(0) == 0
