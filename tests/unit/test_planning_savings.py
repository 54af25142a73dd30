"""Plans that save memory: forwards computed again, optimizer state shared out."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from plans_on_paper import FAST, FREE, MEGABYTE, candidate, chain, costs

import hyparflow as hf
from hyparflow.pipeline.operations import Operation, OperationGraph
from hyparflow.pipeline.partition import make_partitioning
from hyparflow.pipeline.units import Units
from hyparflow.planning.search.activations import Activations
from hyparflow.planning.search.layouts import best_of
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Problem, Saving, constrained
from hyparflow.planning.search.saving import search

SAVINGS = [Saving(), Saving("block"), Saving("segments")]


def units(graph: OperationGraph, *boundaries: int, kinds: tuple[int, ...] = ()) -> Units:
    """Units between these boundaries, in one stage; of their own kinds if none are given."""
    count = len(boundaries) - 1
    table = make_partitioning(graph, boundaries)
    return Units(table, (range(count),), kinds or tuple(range(count)))


def problem(saving: Saving, count: int = 8, each: int = 2, **changes: Any) -> Problem:
    """A chain whose operations keep a megabyte per row inside and take a second per row."""
    graph = chain(count)
    made = units(graph, *range(0, count + 1, each))
    table = costs([1.0] * count, **changes)
    return Problem(graph, table, FAST, 8, saving, made if saving.recompute else None)


# --- activations ---


def test_a_stage_keeps_what_crosses_between_its_pieces() -> None:
    graph = chain(8)
    table = costs([1.0] * 8, kept=np.arange(1.0, 9.0), working=np.arange(10.0, 90.0, 10.0))
    table = dataclasses.replace(table, tensors=np.arange(100.0, 1000.0, 100.0))
    found = Activations(graph, table, (0, 2, 4, 6, 8))
    # Tensors 2, 4 and 6 cross; what comes from another stage, or goes there, does not count.
    assert found.kept(range(8)) == 300 + 500 + 700
    assert found.kept(range(2, 6)) == 500
    assert found.working(range(8)) == 7 + 8 + 80  # the last piece
    assert found.working(range(2, 6)) == 5 + 6 + 60
    kept, working = found.of_operations()
    assert kept.tolist() == [0, 300, 0, 500, 0, 700, 0, 0]
    assert working[0] == working[1] == 1 + 2 + 20


def test_a_cut_within_a_unit_makes_two_pieces() -> None:
    table = costs([1.0] * 8, kept=np.arange(1.0, 9.0))
    found = Activations(chain(8), table, (0, 4, 8))
    assert found.working(range(3, 8)) == 5 + 6 + 7 + 8
    assert found.working(range(3, 6)) == 5 + 6
    assert found.kept(range(3, 6)) == MEGABYTE


def test_what_several_pieces_read_is_kept_once() -> None:
    last = 4
    operations = [Operation(f"op{i}", (i,), (i + 1,)) for i in range(last)]
    operations[3] = Operation("op3", (3, 1), (4,))  # reads the first one's, too
    operations[2] = Operation("op2", (2, 1), (3,))
    graph = OperationGraph(tuple(operations), (0,), (last,), frozenset(range(1, last + 1)))
    found = Activations(graph, costs([1.0] * last), (0, 1, 2, 3, 4))
    assert found.kept(range(last)) == 3 * MEGABYTE


def test_segments_keep_less_and_need_more_at_a_time() -> None:
    table, boundaries = costs([1.0] * 16), tuple(range(17))
    block = Activations(chain(16), table, boundaries)
    segments = Activations(chain(16), table, boundaries, in_segments=True)
    assert (block.kept(range(16)), block.working(range(16))) == (15 * MEGABYTE, MEGABYTE)
    assert (segments.kept(range(16)), segments.working(range(16))) == (3 * MEGABYTE, 4 * MEGABYTE)


# --- predictions ---


def test_a_forward_again_takes_its_time_in_the_backward() -> None:
    layout = candidate(chain(8), (0, 4, 8), 1)
    once, block, segments = (Prediction(problem(saving), layout) for saving in SAVINGS)
    # 8 rows; the backward of the last unit follows its forward, and "block" keeps it.
    assert once.step_seconds == 8 * (4 * 3 + 4 * 3)
    assert block.step_seconds == 8 * (4 * 4 + 2 * 4 + 2 * 3)
    assert segments.step_seconds == 8 * (4 * 4 + 4 * 4)
    assert [m.activations for m in once.memory] == [8 * 4 * MEGABYTE] * 2
    assert [m.activations for m in block.memory] == [8 * 3 * MEGABYTE] * 2


def test_halves_of_a_backward_with_a_forward_add_up() -> None:
    made = problem(Saving("segments"), halves=(0.4, 0.7))
    of_inputs, of_weights = made.spent.halves
    # Of 3 seconds one is the forward again: 1 + 0.4 x 2 and 0.7 x 2.
    assert of_inputs == pytest.approx((1 + 0.8) / 3)
    assert of_weights == pytest.approx(1.4 / 3)


def test_slots_are_shared_out_over_replicas() -> None:
    layout = candidate(chain(8), (0, 8), 1, replicas=4)
    (whole,), (shared,) = (
        Prediction(problem(Saving(shard_optimizer=shard), slots=2.0), layout).memory
        for shard in (False, True)
    )
    assert (whole.slots, shared.slots) == (16 * MEGABYTE, 4 * MEGABYTE)
    # The gradient, and of a share its sum.
    assert (whole.gradients, shared.gradients) == (2 * 8 * MEGABYTE, 10 * MEGABYTE)


def test_whole_weights_come_out_uneven() -> None:
    """Eight weights on three replicas: one of them updates three."""
    layout = candidate(chain(8), (0, 8), 1, replicas=3)
    for divides, most in ((True, 8 / 3), (False, 3)):
        made = problem(Saving(shard_optimizer=True), slots=2.0, divides=divides)
        (memory,) = Prediction(made, layout).memory
        assert memory.slots == round(2 * most * MEGABYTE)


def test_units_that_are_alike_are_compiled_once_in_each_partition() -> None:
    graph = chain(8)
    over = dataclasses.replace(FREE, program=1.0, program_in_two=1000.0)
    table = costs([1.0] * 8, over, program=np.full(8, 1.0))
    alike = units(graph, 0, 2, 4, 6, 8, kinds=(0, 1, 1, 1))
    layout = candidate(graph, (0, 4, 8), 1)
    made = Problem(graph, table, FAST, 8, Saving(), alike)
    # The second partition has two units of one kind; its last one follows the loss.
    assert [m.program for m in Prediction(made, layout).memory] == [4000, 2000]


def test_one_process_compiles_units_too() -> None:
    graph, layout = chain(8), candidate(chain(8), (0, 8), 1)
    over = dataclasses.replace(FREE, program=1.0, program_in_two=3.0, program_of_keras=0.5)
    table = costs([1.0] * 8, over, program=np.full(8, 100.0))

    def program(alike: Units | None, rewritten: bool = False) -> int:
        found = dataclasses.replace(table, rewritten=rewritten)
        (memory,) = Prediction(Problem(graph, found, FAST, 8, Saving(), alike), layout).memory
        return memory.program

    assert program(None) == 800 + 400  # by Keras
    assert program(None, rewritten=True) == 800
    assert program(units(graph, 0, 2, 4, 6, 8, kinds=(0, 1, 1, 1))) == 3 * 400


@pytest.mark.parametrize("shard", [False, True])
def test_units_are_updated_one_after_the_other(shard: bool) -> None:
    """All have gradients at a time, and sums over replicas; one of them is being updated."""
    graph = chain(8)
    made = problem(Saving(shard_optimizer=shard), kept=np.zeros(8), working=np.zeros(8))
    alike = units(graph, 0, 3, 5, 7, 8, kinds=(0, 1, 1, 3))
    layout = candidate(graph, (0, 8), 1, replicas=4)
    (memory,) = Prediction(dataclasses.replace(made, units=alike), layout).memory
    share = 4 if shard else 1
    assert memory.gradients == (8 + 8 / share) * MEGABYTE
    assert (memory.activations, memory.updates) == (0, 3 * 3 / share * MEGABYTE)


# --- the search ---


def choose(limit: float | None, replicas: int | None = None, **decided: Any) -> Prediction:
    """The layout of two ranks that is chosen under a limit of so many megabytes."""
    bytes_ = None if limit is None else round(limit * MEGABYTE)
    wishes = constrained(2, bytes_, num_microbatches=1, num_replicas=replicas, **decided)
    given = decided.get("slots", 1.0)

    def problem_with(saving: Saving) -> Problem:
        return problem(saving, slots=given)

    return best_of(search(problem_with, wishes), bytes_)


def peak(found: Prediction) -> float:
    return max(memory.total for memory in found.memory) / MEGABYTE


def test_nothing_is_saved_where_all_fits() -> None:
    assert choose(None).saving == choose(1000).saving == Saving()
    assert choose(None, recompute="auto").saving == Saving()


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_smaller_limit_takes_more_savings(replicas: int) -> None:
    limit, seen = peak(choose(None, replicas)), []
    while True:
        try:
            found = choose(limit, replicas)
        except ValueError as error:
            assert "No layout fits" in str(error)
            break
        assert peak(found) <= limit
        seen.append(found)
        limit = peak(found) - 0.01
    steps = [found.step_seconds for found in seen]
    assert seen[0].saving == Saving()
    assert len(seen) > replicas
    if replicas == 2:  # next to nothing of time
        assert seen[1].saving == Saving(shard_optimizer=True)
    assert any(found.saving.recompute for found in seen)
    assert steps[0] == min(steps)


def test_what_the_user_gave_stays() -> None:
    assert choose(None, recompute="block").saving.recompute == "block"
    assert choose(None, 2, shard_optimizer=True).saving.shard_optimizer
    limit = peak(choose(None, 2, recompute="segments")) - 0.01
    found = choose(limit, 2, recompute="segments")
    assert found.saving.recompute == "segments"
    assert found.saving.shard_optimizer


def test_auto_takes_the_fastest_that_fits() -> None:
    free = choose(None, 1)
    block = choose(None, 1, recompute="block")
    limit = (peak(free) + peak(block)) / 2
    assert peak(block) < limit < peak(free)
    found = choose(limit, 1, recompute="auto")
    assert found.saving.recompute == "block"
    assert not found.saving.apart


# --- whole plans ---


def deep() -> Any:
    x = inputs = keras.Input((64,))
    for _ in range(40):
        x = layers.Dense(64, activation="gelu")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("adam", "mse")
    return model


def test_a_plan_says_what_it_saves_and_passes_it_on() -> None:
    model = deep()
    arguments = {"batch_size": 4096, "num_ranks": 2, "costs": "estimate", "num_microbatches": 1}
    free = hf.plan(model, **arguments)
    assert (free.recompute, free.shard_optimizer) == (None, False)
    most = max(part.memory.total for part in free.partitions)
    plan = hf.plan(model, memory_limit=most - 24_000_000, **arguments)
    assert plan.recompute in ("block", "segments")
    assert plan.arguments["recompute"] == plan.recompute
    text = str(plan)
    assert f"recompute='{plan.recompute}'" in text
    assert any("needs too much" in other.reason for other in plan.alternatives)
    again = hf.Plan.from_values(plan.to_values())
    assert again == plan
    with pytest.raises(
        ValueError, match=r"'block', 'segments' or null, got 'x' - at `\$.recompute"
    ):
        hf.Plan.from_values(plan.to_values() | {"recompute": "x"})


def test_auto_shows_what_each_way_takes() -> None:
    plan = hf.plan(deep(), batch_size=512, num_ranks=2, costs="estimate", recompute="auto",
                   num_replicas=1)  # fmt: skip
    assert plan.recompute is None
    named = " ".join(other.name for other in plan.alternatives)
    assert "recompute='block'" in named
    assert "recompute='segments'" in named
    assert all(other.memory > 0 for other in plan.alternatives)
