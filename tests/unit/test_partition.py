"""The crossing table, what a user may ask for, and faults named all at once."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

import pytest

from hyparflow.pipeline.actions import Edge
from hyparflow.pipeline.operations import Operation, OperationGraph
from hyparflow.pipeline.partition import Partitioning, allowed_cuts, divide, verify
from hyparflow.pipeline.placement import wrapped

# --- a small graph with everything in it ---


def line(count: int, cost: float = 1.0) -> OperationGraph:
    """Operations op0, op1, ... each reading the last one's tensor; all carry gradients."""
    operations = [Operation(f"op{i}", (i,), (i + 1,), cost) for i in range(count)]
    return OperationGraph(tuple(operations), (0,), (count,), frozenset(range(1, count + 1)))


def skipping() -> OperationGraph:
    """Four operations; tensor 2 has consumers 1, 2, 3 stages on, and is itself an output.

    Input 1 is read by the last operation only; tensor 3 is an integer.
    """
    return OperationGraph(
        (
            Operation("a", (0,), (2,)),
            Operation("b", (2,), (3,)),
            Operation("c", (2, 3), (4,)),
            Operation("d", (1, 2, 4), (5,)),
        ),
        inputs=(0, 1),
        outputs=(5, 2),
        gradient_tensors=frozenset({2, 4, 5}),
    )


def test_crossing_table() -> None:
    table = divide(skipping(), 4)
    assert table.boundaries == (0, 1, 2, 3, 4)
    assert table.edges == (
        Edge(1, 0, 3, False),  # a model input used late enters at stage 0
        Edge(2, 0, 1, True),  # several consumers: straight from the producer to each
        Edge(2, 0, 2, True),
        Edge(2, 0, 3, True),  # for operation d and as an early output: one edge
        Edge(3, 1, 2, False),
        Edge(4, 2, 3, True),
    )
    assert table.stage_inputs == ((0, 1), (2,), (2, 3), (1, 2, 4))
    assert table.stage_outputs == ((1, 2), (3,), (4,), (5, 2))


def test_crossing_table_of_two_stages() -> None:
    table = divide(skipping(), 2, lpp=[2, 2])
    assert table.edges == (Edge(1, 0, 1, False), Edge(2, 0, 1, True), Edge(3, 0, 1, False))
    assert table.stage_outputs == ((1, 2, 3), (5, 2))


def test_early_output_crosses_to_the_last_stage() -> None:
    graph = OperationGraph(
        tuple(Operation(f"op{i}", (i,), (i + 1,)) for i in range(3)), (0,), (1, 3), frozenset()
    )
    assert Edge(1, 0, 2, False) in divide(graph, 3).edges


def test_an_input_that_is_an_output() -> None:
    graph = OperationGraph((Operation("a", (0,), (1,)), Operation("b", (1,), (2,))), (0,), (2, 0))
    assert divide(graph, 2).edges == (Edge(0, 0, 1, False), Edge(1, 0, 1, False))


def test_one_stage_has_no_edges() -> None:
    table = divide(skipping(), 1)
    assert table == Partitioning((0, 4), (), ((0, 1),), ((5, 2),))
    assert table.num_stages == 1
    assert table.operations(0) == range(4)


# --- any graph: the stages, fed by nothing but the edges, compute what the graph computes ---


def random_graph(rng: random.Random) -> OperationGraph:
    known = list(range(rng.randint(1, 3)))
    inputs = tuple(known)
    operations = []
    for index in range(rng.randint(4, 14)):
        reads = tuple(rng.sample(known, rng.randint(1, min(3, len(known)))))
        makes = tuple(range(len(known), len(known) + rng.randint(1, 2)))
        known += makes
        state = frozenset({rng.randint(0, 20)} if rng.random() < 0.2 else ())
        operations.append(Operation(f"op{index}", reads, makes, rng.random(), state))
    outputs = tuple(rng.sample(known, min(len(known), rng.randint(1, 4))))
    gradients = frozenset(rng.sample(known, len(known) // 2))
    return OperationGraph(tuple(operations), inputs, outputs, gradients)


def run(operations: Sequence[Operation], values: dict[int, int]) -> None:
    """Stand-in for computing: a tensor's value is a hash of all that went into it."""
    for operation in operations:
        read = tuple(values[tensor] for tensor in operation.inputs)
        values.update({t: hash((operation.name, i, read)) for i, t in enumerate(operation.outputs)})


def run_stages(graph: OperationGraph, table: Partitioning) -> list[int]:
    """Run each stage on what its edges bring, as the engine does."""
    mail: dict[tuple[int, int], int] = {(t, 0): hash(("input", t)) for t in graph.inputs}
    for stage in range(table.num_stages):
        values = {tensor: mail[tensor, stage] for tensor in table.stage_inputs[stage]}
        numbers = table.operations(stage)
        run(graph.operations[numbers.start : numbers.stop], values)
        given = {tensor: values[tensor] for tensor in table.stage_outputs[stage]}
        for edge in table.edges:
            if edge.producer == stage:
                mail[edge.tensor, edge.consumer] = given[edge.tensor]
    return [given[tensor] for tensor in graph.outputs]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_compute_the_graph(stages: int) -> None:
    rng = random.Random(stages)
    divided = 0
    for _ in range(100):
        graph = random_graph(rng)
        try:
            table = divide(graph, stages)
        except ValueError as error:
            assert "Too few places to cut" in str(error)
            continue
        divided += 1
        values = {t: hash(("input", t)) for t in graph.inputs}
        run(graph.operations, values)
        assert run_stages(graph, table) == [values[tensor] for tensor in graph.outputs]
        assert list(table.edges) == sorted(set(table.edges))
        for edge in table.edges:
            assert edge.carries_gradient == (edge.tensor in graph.gradient_tensors)
    assert divided > 50


def test_cuts_are_moved_for_a_schedule() -> None:
    graph, schedule = line(80), ("interleaved", wrapped(2, 2), 2)
    assert divide(graph, 4).boundaries == (0, 20, 40, 60, 80)
    moved = divide(graph, 4, balanced_for=schedule).boundaries
    assert moved[4] - moved[3] < 18  # the last stage
    # Where tensors cost a lot to send, cuts stand where few cross.
    wide = [
        dataclasses.replace(op, crossing=(50.0 if index % 8 < 7 else 0.0,))
        for index, op in enumerate(graph.operations)
    ]
    narrow = divide(dataclasses.replace(graph, operations=tuple(wide)), 4, balanced_for=schedule)
    assert all(cut % 8 == 0 for cut in narrow.boundaries)
    fixed = divide(graph, 4, lpp=[5, 5, 5, 65], balanced_for=schedule)
    assert fixed.boundaries == (0, 5, 10, 15, 80)


# --- what the user may ask for ---


def test_layers_per_partition() -> None:
    assert divide(line(6), 3, lpp=[1, 3, 2]).boundaries == (0, 1, 4, 6)
    assert divide(line(6), 3, lpp=(4, 1, 1)).boundaries == (0, 4, 5, 6)


@pytest.mark.parametrize("lpp", [[3, 3], [2, 2, 3], [1, 1, 1], [0, 3, 3], [7, -2, 1], []])
def test_bad_lpp(lpp: list[int]) -> None:
    with pytest.raises(ValueError) as caught:
        divide(line(6), 3, lpp=lpp)
    message = str(caught.value)
    assert "one positive number per partition" in message
    assert "must add up to the model's 6 operations" in message
    assert f"Received: lpp={lpp} with sum {sum(lpp)} for 3 partitions" in message


def test_more_partitions_than_operations() -> None:
    with pytest.raises(ValueError) as caught:
        divide(line(2), 3)
    assert "Received: 3 of them for 2 operations." in str(caught.value)
    assert "Use fewer partitions, or replicas." in str(caught.value)


def with_state(*states: set[int]) -> OperationGraph:
    """A line of operations that change these variables."""
    graph = line(len(states))
    operations = [
        Operation(op.name, op.inputs, op.outputs, op.cost, frozenset(state))
        for op, state in zip(graph.operations, states, strict=True)
    ]
    return OperationGraph(tuple(operations), graph.inputs, graph.outputs, graph.gradient_tensors)


def test_no_cut_between_operations_that_share_state() -> None:
    graph = with_state({7}, set(), {7, 8}, set(), {8}, set(), {9})
    assert allowed_cuts(graph) == [True, False, False, False, False, True, True, True]
    assert divide(graph, 3).boundaries == (0, 5, 6, 7)
    with pytest.raises(ValueError, match="share changing state"):
        divide(graph, 4)


def test_lpp_may_not_separate_shared_state() -> None:
    with pytest.raises(ValueError, match=r"'op0' \(stage 0\) and 'op2' \(stage 1\) change"):
        divide(with_state({7}, set(), {7}), 2, lpp=[1, 2])


# --- verify: every fault in one message ---


def faults(graph: OperationGraph, table: Partitioning) -> list[str]:
    """The lines of the message of `verify`."""
    with pytest.raises(ValueError) as caught:
        verify(graph, table)
    head, *lines = str(caught.value).splitlines()
    assert head == "The partitioning is not valid:"
    return [line.removeprefix("  - ") for line in lines]


def test_all_faults_at_once() -> None:
    graph = with_state({7}, set(), {7}, set())
    table = Partitioning(
        boundaries=(0, 1, 1, 3),
        edges=(Edge(1, 0, 2, True), Edge(3, 2, 1, True)),
        stage_inputs=((0,), (), ()),
        stage_outputs=((), (), (4,)),
    )
    assert faults(graph, table) == [
        "boundaries (0, 1, 1, 3) do not span all 4 operations",
        "stage 1 holds no operation",
        "operation 'op3' is in 0 stages instead of one",
        "stage 2 lacks tensor 1 for operation 'op1'",
        "stage 2 cannot give tensor 4",
        "stage 0 does not give crossing tensor 1",
        "tensor 3 goes back from stage 2 to 1",
        "operations 'op0' (stage 0) and 'op2' (stage 2) change the same variable and must stay in "
        "one stage",
    ]


def test_an_operation_in_two_stages() -> None:
    edges = (Edge(1, 0, 2, True),)
    table = Partitioning((0, 2, 1, 3), edges, ((0,), (), (1,)), ((1,), (), (3,)))
    assert faults(line(3), table) == [
        "stage 1 holds no operation",
        "operation 'op1' is in 2 stages instead of one",
    ]


def test_boundaries_past_the_end() -> None:
    """Further faults are still listed."""
    table = Partitioning((0, 1, 4), (), ((0,), ()), ((), (2,)))
    assert faults(line(2), table) == [
        "boundaries (0, 1, 4) do not span all 2 operations",
        "stage 1 lacks tensor 1 for operation 'op1'",
    ]


def test_a_stage_input_that_no_edge_brings() -> None:
    table = Partitioning((0, 1, 2), (), ((0,), (1,)), ((1,), (2,)))
    found = faults(line(2), table)
    assert len(found) == 1 and "tensor 1" in found[0] and "stage 1" in found[0]


def test_an_edge_that_the_consumer_does_not_take() -> None:
    good = divide(skipping(), 2, lpp=[2, 2])
    edges = (*good.edges, Edge(0, 0, 1, False))
    bad = Partitioning(good.boundaries, edges, good.stage_inputs, ((0, 1, 2, 3), (5, 2)))
    found = faults(skipping(), bad)
    assert len(found) == 1 and "tensor 0" in found[0] and "stage 1" in found[0]


def test_an_output_of_the_model_that_is_not_given() -> None:
    good = divide(line(3), 3)
    outputs = (*good.stage_outputs[:2], ())
    bad = Partitioning(good.boundaries, good.edges, good.stage_inputs, outputs)
    found = faults(line(3), bad)
    assert len(found) == 1 and re.search(r"\boutputs?\b.*\b3\b", found[0])


def test_divisions_are_valid() -> None:
    for stages in range(1, 5):
        verify(skipping(), divide(skipping(), stages))
