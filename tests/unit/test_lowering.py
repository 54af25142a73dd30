"""Lowered lists as text next to the expected text; the proof, and lists that it must reject."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from random_edges import random_edges

from hyparflow.pipeline.actions import RECEIVES, SENDS, Edge, Kind, Step
from hyparflow.pipeline.lowering import lower, prove, tags_of
from hyparflow.pipeline.placement import wrapped
from hyparflow.pipeline.schedules import (
    SCHEDULES,
    forward_only,
    gpipe,
    make_schedule,
    one_forward_one_backward,
    placement_of,
)
from hyparflow.pipeline.simulator import Lowered


def text(lowered: Lowered) -> list[str]:
    """One line per rank."""
    return [" ".join(map(str, steps)) for steps in lowered]


def many_lowered(seed: int) -> list[tuple[Lowered, list[Edge], int]]:
    """(lists, edges, M) of both schedules and of forwards only, for many sizes."""
    rng = random.Random(seed)
    found = []
    for partitions, microbatches in itertools.product(range(1, 7), range(1, 9)):
        edges = random_edges(rng, partitions)
        for name in ("gpipe", "1f1b"):
            schedule = make_schedule(name, wrapped(partitions), microbatches)
            found.append((lower(schedule, edges), edges, microbatches))
        forwards = forward_only(wrapped(partitions), microbatches)
        found.append((lower(forwards, edges, training=False), edges, microbatches))
    return found


# --- expected lists ---


def test_two_partitions() -> None:
    """The last stage fuses; the first sends ahead before it waits for a gradient."""
    edges = [Edge(5, 0, 1, True)]
    assert text(lower(one_forward_one_backward(2, 2), edges)) == [
        "0F0 0SA0.0@1 0F1 0SA1.0@1 0RG0.0@1 0B0 0RG1.0@1 0B1 0REDUCE0 0APPLY0",
        "1RA0.0@0 1FB0 1SG0.0@0 1RA1.0@0 1FB1 1SG1.0@0 1REDUCE0 1APPLY0",
    ]


def test_three_partitions_with_a_skip() -> None:
    """Tensor 1 goes straight from stage 0 to both of its consumers; tensor 2 has no gradient."""
    edges = [Edge(1, 0, 1, True), Edge(1, 0, 2, True), Edge(2, 1, 2, False), Edge(3, 1, 2, True)]
    assert text(lower(gpipe(3, 1), edges)) == [
        "0F0 0SA0.0@1 0SA0.1@2 0RG0.0@1 0RG0.1@2 0B0 0REDUCE0 0APPLY0",
        "1RA0.0@0 1F0 1SA0.2@2 1SA0.3@2 1RG0.3@2 1B0 1SG0.0@0 1REDUCE0 1APPLY0",
        "2RA0.1@0 2RA0.2@1 2RA0.3@1 2FB0 2SG0.1@0 2SG0.3@1 2REDUCE0 2APPLY0",
    ]


def test_forwards_only() -> None:
    edges = [Edge(1, 0, 1, True), Edge(1, 0, 2, True), Edge(2, 1, 2, False)]
    assert text(lower(forward_only(wrapped(3), 2), edges, training=False)) == [
        "0F0 0SA0.0@1 0SA0.1@2 0F1 0SA1.0@1 0SA1.1@2",
        "1RA0.0@0 1F0 1SA0.2@2 1RA1.0@0 1F1 1SA1.2@2",
        "2RA0.1@0 2RA0.2@1 2F0 2RA1.1@0 2RA1.2@1 2F1",
    ]


def test_no_rows_no_microbatches() -> None:
    """A replica without rows still takes part in the reduction."""
    assert text(lower(gpipe(2, 0), [Edge(5, 0, 1, True)])) == [
        "0REDUCE0 0APPLY0",
        "1REDUCE0 1APPLY0",
    ]


def test_gpipe_keeps_forwards_and_backwards_apart() -> None:
    """Nothing to fuse where the backward does not follow at once."""
    last = lower(gpipe(2, 3), [Edge(0, 0, 1, True)])[-1]
    assert [step.kind for step in last].count(Kind.FUSED) == 0


# --- properties ---


def test_only_the_last_stage_fuses() -> None:
    for lowered, _, _ in many_lowered(1):
        for steps in lowered[:-1]:
            assert all(step.kind != Kind.FUSED for step in steps)


def test_1f1b_fuses_every_microbatch() -> None:
    for partitions, microbatches in itertools.product(range(1, 5), range(1, 5)):
        edges = [Edge(p, p, p + 1, True) for p in range(partitions - 1)]
        last = lower(one_forward_one_backward(partitions, microbatches), edges)[-1]
        kinds = Counter(step.kind for step in last)
        assert kinds[Kind.FUSED] == microbatches
        assert not kinds[Kind.FORWARD] and not kinds[Kind.BACKWARD]


def test_training_ends_with_reduce_and_apply() -> None:
    for partitions in range(1, 4):
        for stage, steps in enumerate(lower(gpipe(partitions, 2), [])):
            assert steps[-2:] == [Step(stage, Kind.REDUCE), Step(stage, Kind.APPLY)]


def test_every_message_has_two_ends() -> None:
    for lowered, edges, microbatches in many_lowered(2):
        ends: dict[tuple[bool, int, int], list[tuple[int, str, int]]] = {}
        for rank, steps in enumerate(lowered):
            for step in steps:
                if step.edge >= 0:
                    ends.setdefault(step.message, []).append((rank, step.kind, step.peer))
        for (is_activation, edge, _), both in ends.items():
            _, producer, consumer, carries_gradient = edges[edge]
            assert is_activation or carries_gradient
            expected = (
                [(producer, "SA", consumer), (consumer, "RA", producer)]
                if is_activation
                else [(producer, "RG", consumer), (consumer, "SG", producer)]
            )
            assert both == expected
        trains = any(step.kind == Kind.APPLY for step in lowered[0])
        back = sum(edge.carries_gradient for edge in edges) if trains else 0
        assert len(ends) == (len(edges) + back) * microbatches


def ends_of(lowered: Lowered, limit: int) -> dict[tuple[bool, int, int], list[tuple[int, int]]]:
    """The partition and tag of each message's ends, the sender's first."""
    ends: dict[tuple[bool, int, int], list[tuple[int, int]]] = {}
    tags = tags_of(lowered, limit)
    for kinds in (SENDS, RECEIVES):
        for partition, steps in enumerate(lowered):
            for step, tag in zip(steps, tags[partition], strict=True):
                assert (tag < 0) == (step.edge < 0)
                if step.kind in kinds:
                    ends.setdefault(step.message, []).append((partition, tag))
    return ends


def test_both_ends_know_a_tag_that_no_other_message_between_them_has() -> None:
    for lowered, _, _ in many_lowered(3):
        seen = set()
        for (sender, sent), (receiver, received) in ends_of(lowered, 2**15).values():
            assert sent == received
            assert (sender, receiver, sent) not in seen
            seen.add((sender, receiver, sent))


def test_tags_begin_anew_where_there_are_too_few() -> None:
    """2**15 are allowed by every MPI; here, of eight."""
    most = 0
    for lowered, _, _ in many_lowered(3):
        for (_, sent), (_, received) in ends_of(lowered, 8).values():
            assert sent == received < 8
            most = max(most, sent)
    assert most == 7


def test_messages_that_share_a_tag_are_not_received_in_another_order() -> None:
    edges = [Edge(0, 0, 1, False), Edge(1, 0, 1, False)]
    first, second = lower(forward_only(wrapped(2), 2), edges, training=False)
    second[0], second[1] = second[1], second[0]
    with pytest.raises(RuntimeError, match="must be received as they were sent"):
        tags_of([first, second], 1)


@pytest.mark.parametrize("seed", range(3))
def test_proof_of_many(seed: int) -> None:
    for lowered, edges, _ in many_lowered(seed):
        timeline = prove(lowered, edges)
        played = [[span.step for span in spans] for spans in timeline.spans]
        assert played == lowered


# --- lists that must be rejected ---

EDGES = [Edge(0, 0, 1, True)]


def small() -> Lowered:
    """Two ranks, one micro-batch: 0F0 0SA 0RG 0B0 ... and 1RA 1FB0 1SG ..."""
    return lower(gpipe(2, 1), EDGES)


def index(steps: list[Step], kind: str) -> int:
    """Where the first step of `kind` stands."""
    return [step.kind for step in steps].index(kind)


def test_two_ranks_wait_for_each_other() -> None:
    """The first rank asks for the gradient before it has sent the activation."""
    lowered = small()
    first = lowered[0]
    first.insert(0, first.pop(index(first, Kind.RECEIVE_GRADIENT)))
    with pytest.raises(RuntimeError) as caught:
        prove(lowered, EDGES)
    assert str(caught.value).splitlines() == [
        "The schedule deadlocks: ranks [0, 1] wait for messages that are never sent, "
        "0 sends are never received.",
        "  rank 0: ...  >>0RG0.0@1<<",
        "  rank 1: ...  >>1RA0.0@0<<",
    ]


def test_a_chain_of_waiting_ranks() -> None:
    """Rank 1 waits for 2, 2 for 0, 0 for 1; the table shows what each had done."""
    edges = [Edge(0, 0, 1, True), Edge(0, 0, 2, True), Edge(1, 1, 2, True)]
    lowered = lower(gpipe(3, 1), edges)
    first = lowered[0]
    sends = [i for i, step in enumerate(first) if step.kind == Kind.SEND_ACTIVATION]
    # The send to rank 2 comes only after the gradient from rank 1, which needs rank 2's.
    first.insert(index(first, Kind.BACKWARD), first.pop(sends[1]))
    with pytest.raises(RuntimeError, match="deadlocks: ranks \\[0, 1, 2\\]") as caught:
        prove(lowered, edges)
    rows = str(caught.value).splitlines()[1:]
    assert rows == [
        "  rank 0: ... 0F0 0SA0.0@1 >>0RG0.0@1<<",
        "  rank 1: ... 1RA0.0@0 1F0 1SA0.2@2 >>1RG0.2@2<<",
        "  rank 2: ...  >>2RA0.1@0<<",
    ]


def test_a_rank_that_is_done_is_told_apart() -> None:
    lowered = small()
    first = lowered[0]
    first.insert(0, first.pop(index(first, Kind.RECEIVE_GRADIENT)))
    with pytest.raises(RuntimeError, match=r"rank 2: \.\.\. 0REDUCE0 \(done\)"):
        prove([*lowered, [Step(0, Kind.REDUCE)]], EDGES)


@pytest.mark.parametrize("rank, kind", [(0, "SA"), (0, "RG"), (1, "RA"), (1, "SG")])
def test_an_end_is_missing(rank: int, kind: str) -> None:
    lowered = small()
    lost = lowered[rank].pop(index(lowered[rank], kind))
    with pytest.raises(RuntimeError, match="one sender and one receiver") as caught:
        prove(lowered, EDGES)
    assert str([lost.message]) in str(caught.value)


@pytest.mark.parametrize("rank, kind", [(0, "SA"), (0, "RG"), (1, "RA"), (1, "SG")])
def test_an_end_stands_twice(rank: int, kind: str) -> None:
    lowered = small()
    at = index(lowered[rank], kind)
    double = lowered[rank][at]
    lowered[rank].insert(at, double)
    with pytest.raises(RuntimeError, match="one sender and one receiver") as caught:
        prove(lowered, EDGES)
    assert str([double.message]) in str(caught.value)


def test_both_ends_stand_twice() -> None:
    lowered = small()
    for steps, kind in zip(lowered, ("SA", "RA"), strict=True):
        steps.insert(index(steps, kind), steps[index(steps, kind)])
    with pytest.raises(RuntimeError, match="stands twice"):
        prove(lowered, EDGES)


def test_an_edge_must_lead_to_a_later_stage() -> None:
    with pytest.raises(RuntimeError, match="must lead to a later stage. Received: Edge"):
        prove([[], []], [Edge(3, 1, 0, False)])


def test_reductions_begin_with_the_last_backward_of_a_stage() -> None:
    edges = [Edge(0, 0, 1, True)]
    (steps,) = text(lower(make_schedule("interleaved", wrapped(1, 2), 2), edges))
    assert steps == "0F0 1FB0 0F1 0B0 1FB1 1START0 0B1 0REDUCE0 0APPLY0"


def test_reductions_begin_in_one_order_whatever_the_number_of_microbatches() -> None:
    """Replicas may have different numbers of them, and a collective needs all replicas at once."""
    for name, partitions in itertools.product(SCHEDULES, (1, 2, 3, 4)):
        placement = placement_of(name, partitions)
        edges = [Edge(s, s, s + 1, True) for s in range(placement.num_stages - 1)]
        for microbatches in range(1, 13):
            for steps in lower(make_schedule(name, placement, microbatches), edges):
                begun = [step.stage for step in steps if step.kind == Kind.START_REDUCE]
                forwards = (step.stage for step in steps if step.kind in ("F", "FB"))
                held = sorted(set(forwards), reverse=True)
                assert begun == held[: len(begun)]


def test_one_stage_has_nothing_to_begin_early() -> None:
    for name in ("gpipe", "1f1b", "zero-bubble"):
        lowered = lower(make_schedule(name, wrapped(2), 4), [Edge(0, 0, 1, True)])
        assert not [s for steps in lowered for s in steps if s.kind == Kind.START_REDUCE]
