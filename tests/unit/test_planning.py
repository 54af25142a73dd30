"""Plans on paper: the machine, the costs, memory, predictions and the choice between layouts."""

from __future__ import annotations

import dataclasses
import html
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans_on_paper import FAST, FREE, INSTANT, MEGABYTE, candidate, chain, costs

from hyparflow.formats.sizes import parse_bytes
from hyparflow.pipeline.actions import Kind
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.partition import make_partitioning
from hyparflow.pipeline.placement import wrapped
from hyparflow.pipeline.schedules import SCHEDULES
from hyparflow.planning.costs.cluster import Cluster, Link
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.make_plan import make_plan
from hyparflow.planning.plan import Plan
from hyparflow.planning.search import layouts
from hyparflow.planning.search.divisions import Divisions
from hyparflow.planning.search.layouts import best_of, consider
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Candidate, Problem, Saving, constrained

# --- the machine ---


def test_a_ring_sends_the_data_twice() -> None:
    cluster = Cluster(1, 4, within=Link(1e-3, 1e6), allreduce="ring", sum_bandwidth=INSTANT)
    # 2 (n - 1) messages of a quarter: 6 x (1 ms + 0.25 s)
    assert cluster.allreduce_seconds(range(4), 1e6) == pytest.approx(6 * (1e-3 + 0.25))


def test_a_tree_needs_fewer_messages() -> None:
    cluster = Cluster(1, 8, within=Link(1e-3, 1e6), allreduce="tree", sum_bandwidth=INSTANT)
    assert cluster.allreduce_seconds(range(8), 1e6) == pytest.approx(6 * (1e-3 + 1.0))


@pytest.mark.parametrize(("kind", "added"), [("ring", 3 / 4), ("tree", 2.0)])
def test_what_arrives_is_added_up(kind: str, added: float) -> None:
    instant = Link(0.0, INSTANT)
    cluster = Cluster(1, 4, within=instant, allreduce=kind, sum_bandwidth=1e6)
    assert cluster.allreduce_seconds(range(4), 1e6) == pytest.approx(added)


def test_the_faster_allreduce_is_taken() -> None:
    small, large = 8.0, 1e8
    for size in (small, large):
        times = [
            Cluster(1, 64, allreduce=kind).allreduce_seconds(range(64), size)
            for kind in ("ring", "tree", "auto")
        ]
        assert times[2] == min(times[:2])
    assert Cluster(1, 64).allreduce_seconds(range(64), small) < 1e-3


def test_groups_share_the_link_between_nodes() -> None:
    cluster = Cluster(2, 4, between=Link(0.0, 1e6), allreduce="ring", sum_bandwidth=INSTANT)
    alone = cluster.allreduce_seconds([0, 4], 1e6, groups=1)
    assert cluster.allreduce_seconds([0, 4], 1e6, groups=4) == pytest.approx(4 * alone)
    within = cluster.allreduce_seconds([0, 1], 1e6, groups=4)
    assert within == cluster.allreduce_seconds([0, 1], 1e6, groups=1)


def test_one_rank_sums_nothing() -> None:
    assert Cluster().allreduce_seconds([3], 1e9) == 0.0


def test_links_tell_nodes_apart() -> None:
    cluster = Cluster(2, 2)
    assert cluster.link(0, 1) is cluster.within
    assert cluster.link(1, 2) is cluster.between


def test_a_cluster_is_saved_and_loaded(tmp_path: Path) -> None:
    cluster = Cluster(3, 2, Link(1e-6, 2e9), Link(1e-5, 1e9), 1.5, "tree")
    cluster.save(tmp_path / "cluster.json")
    assert Cluster.load(tmp_path / "cluster.json") == cluster
    assert Cluster.load(tmp_path / "cluster.json", nodes=9) == dataclasses.replace(cluster, nodes=9)


@pytest.mark.parametrize(
    "arguments",
    [{"nodes": 0}, {"ranks_per_node": 0}, {"allreduce": "star"}, {"sum_bandwidth": 0.0}],
)
def test_impossible_clusters_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Received"):
        Cluster(**arguments)


def test_impossible_links_are_refused() -> None:
    with pytest.raises(ValueError, match="Received: latency=0, bandwidth=0"):
        Link(0, 0)


# --- costs ---


def test_times_follow_lines_between_sizes_and_beyond() -> None:
    table = costs([1.0])
    table = dataclasses.replace(
        table, rows=(10, 20, 40), forward=np.array([[1.0, 2.0, 6.0]]),
        backward=np.zeros((1, 3)), fused=np.zeros((1, 3)),
    )  # fmt: skip
    expected = {10: 1.0, 15: 1.5, 20: 2.0, 30: 4.0, 40: 6.0, 60: 10.0, 5: 0.5, 0: 0.0}
    for rows, seconds in expected.items():
        assert table.times(rows).forward[0] == pytest.approx(seconds)


def test_fewer_rows_than_measured_are_not_cheaper_each() -> None:
    # Noise: twice as many rows seem to take more than twice as long.
    table = dataclasses.replace(
        costs([1.0]), rows=(8, 16), forward=np.array([[1.0, 2.4]]),
        backward=np.zeros((1, 2)), fused=np.zeros((1, 2)),
    )  # fmt: skip
    expected = {16: 2.4, 8: 1.0, 4: 0.5, 1: 0.125, 0: 0.0}
    for rows, seconds in expected.items():
        assert table.times(rows).forward[0] == pytest.approx(seconds)


def test_one_size_is_scaled() -> None:
    assert costs([0.5]).times(8).fused[0] == pytest.approx(12.0)


def test_ranks_of_a_node_slow_each_other() -> None:
    crowded = np.array([[2.0], [1.5], [1.0]])
    table = costs([0.5], crowd=3, crowded=crowded)
    expected = {1: (0.5, 1.0, 1.5), 2: (0.75, 1.25, 1.5), 3: (1.0, 1.5, 1.5), 9: (1.0, 1.5, 1.5)}
    for at_once, seconds in expected.items():
        times = table.times(1, at_once)
        found = (times.forward[0], times.backward[0], times.fused[0])
        assert found == pytest.approx(seconds)


def test_a_pipeline_of_one_microbatch_slows_nobody() -> None:
    crowded = dataclasses.replace(costs([1.0] * 4), crowd=2, crowded=np.full((3, 1), 2.0))
    problem = Problem(chain(4), crowded, FAST, 8)
    one, many = (Prediction(problem, candidate(chain(4), (0, 2, 4), m)) for m in (1, 8))
    assert one.forward == pytest.approx((16.0, 16.0))  # 2 operations, 8 rows
    assert many.forward[0] == pytest.approx(2.0 * 2 * 8 / 9)  # both compute 8 of 9 rounds
    replicas = Prediction(problem, candidate(chain(4), (0, 4), 1, replicas=2))
    assert replicas.forward[0] == pytest.approx(4 * 4 * 2.0)


def test_a_weight_used_twice_counts_once() -> None:
    table = costs([1, 1, 1], used=((0,), (1,), (0,)))
    assert table.weight_bytes(range(3)) == 2 * MEGABYTE
    assert table.weight_bytes(range(1, 3)) == 2 * MEGABYTE
    assert len(table.trained_sizes(range(3))) == 2


def test_costs_are_saved_and_loaded(tmp_path: Path) -> None:
    table = costs([0.1, 0.25], machine={"threads": 1}, slots=2.0)
    table.save(tmp_path / "costs.json")
    loaded = Costs.load(tmp_path / "costs.json")
    for field in dataclasses.fields(Costs):
        assert np.array_equal(getattr(loaded, field.name), getattr(table, field.name)), field.name


@pytest.mark.parametrize("text", ["{}", "[1]", "costs", '{"rows": 3}'])
def test_other_files_are_no_costs(tmp_path: Path, text: str) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ValueError, match="a file that Costs.save wrote. Received: .*costs.json"):
        Costs.load(tmp_path / "costs.json")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("500 MB", 500 * 10**6), (1024, 1024), ("1.5kib", 1536), ("7", 7)],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "8 apples", "-1", "0", "GiB", "1e9e"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="Received"):
        parse_bytes(text)


# --- predictions ---


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("partitions", "microbatches"), [(1, 1), (2, 4), (4, 8), (4, 2)])
def test_equal_stages_take_the_textbook_time(
    schedule: str, partitions: int, microbatches: int
) -> None:
    """(M + P - 1) times a stage's forward and backward, P stages of one second per row."""
    problem = Problem(chain(partitions), costs([1.0] * partitions), FAST, microbatches)
    bounds = tuple(range(partitions + 1))
    found = Prediction(problem, candidate(problem.graph, bounds, microbatches, schedule))
    assert found.step_seconds == pytest.approx(3.0 * (microbatches + partitions - 1))
    expected = (partitions - 1) / (microbatches + partitions - 1)
    assert found.idle_share == pytest.approx(expected)


@pytest.mark.parametrize(("partitions", "microbatches", "each"), [(2, 4, 2), (4, 8, 2), (2, 6, 3)])
def test_interleaved_stages_take_the_textbook_time(
    partitions: int, microbatches: int, each: int
) -> None:
    """(M V + P - 1) stages' time, and no message between stages of one partition."""
    stages = partitions * each
    graph = chain(stages)
    table = make_partitioning(graph, tuple(range(stages + 1)))
    layout = Candidate(
        Grid(partitions, 1, wrapped(partitions, each)), microbatches, "interleaved", table
    )
    found = Prediction(Problem(graph, costs([1.0] * stages), FAST, microbatches), layout)
    assert found.step_seconds == pytest.approx(3.0 * (microbatches * each + partitions - 1))
    assert found.forward == pytest.approx((float(each),) * partitions)
    assert found.memory[0].gradients == each * MEGABYTE


def test_interleaving_is_chosen_where_the_pipeline_idles() -> None:
    """Eight equal operations on four ranks, four micro-batches: 19 rounds of 4 stages are less
    than 7 of 1; with slow messages they are not."""
    quick = Problem(chain(8), costs([1.0] * 8), FAST, 4)
    wishes = constrained(4, num_partitions=4, num_microbatches=4)
    best = best_of(consider(quick, wishes), None)
    chosen = best.candidate
    assert (chosen.schedule, chosen.grid.placement) == ("interleaved", wrapped(4, 2))
    slow = dataclasses.replace(
        quick, cluster=Cluster(1, 4, within=Link(5.0, 1e30), sum_bandwidth=INSTANT)
    )
    assert best_of(consider(slow, wishes), None).candidate.grid.placement == wrapped(4)


def test_the_search_tells_how_far_it_is() -> None:
    said: list[str] = []
    problem = Problem(chain(8), costs([1.0] * 8), FAST, 4)
    consider(problem, constrained(4, num_partitions=4, num_microbatches=4), said.append)
    cut = [line for line in said if line.startswith("cutting the model for layout ")]
    assert [line.split()[-3:] for line in cut] == [
        [str(number + 1), "of", str(len(cut))] for number in range(len(cut))
    ]
    assert len(cut) > 1 and any(line.startswith("simulating layout 1 of ") for line in said)


def test_messages_and_sums_take_time() -> None:
    graph = chain(2)
    overheads = dataclasses.replace(FREE, step=0.5, apply_weight=0.25)
    cluster = Cluster(1, 4, within=Link(0.1, MEGABYTE), allreduce="ring", sum_bandwidth=INSTANT)
    problem = Problem(graph, costs([1.0, 1.0], overheads), cluster, 2)
    found = Prediction(problem, candidate(graph, (0, 1, 2), 1, replicas=2))
    # Forward, message, forward and backward, message, backward; then a ring of two, the optimizer.
    expected = 1 + 1.1 + 3 + 1.1 + 2 + 2 * (0.1 + 0.5) + 0.25 + 0.5
    assert found.step_seconds == pytest.approx(expected)
    assert found.reduce == pytest.approx((1.2, 1.2))
    assert found.sent == ({1: MEGABYTE}, {0: MEGABYTE})


@pytest.mark.parametrize(
    ("ranks_per_node", "hidden"),
    [(2, 0.0), (1, 2.0)],  # on one node the cores sum; between two, while stage 0 goes backward
)
def test_sums_are_hidden_behind_the_other_stages(ranks_per_node: int, hidden: float) -> None:
    """Two stages on each of two replicas; summing one of them takes 3 s, its backward 2 s."""
    graph, link = chain(2), Link(0.0, MEGABYTE / 3)
    cluster = Cluster(
        2 // ranks_per_node, ranks_per_node, within=link, between=link, sum_bandwidth=INSTANT
    )
    table = make_partitioning(graph, (0, 1, 2))
    layout = Candidate(Grid(1, 2, wrapped(1, 2)), 1, "interleaved", table)
    found = Prediction(Problem(graph, costs([1.0, 1.0]), cluster, 2), layout)
    assert found.reduce[0] == pytest.approx(2 * 3.0 - hidden)
    assert found.step_seconds == pytest.approx(2 * 3.0 + found.reduce[0])


def test_memory_counts_what_is_in_flight() -> None:
    graph, table = chain(4), costs([1.0] * 4, slots=2.0)
    problem = Problem(graph, table, FAST, 8)
    one = Prediction(problem, candidate(graph, (0, 2, 4), 4, "1f1b")).memory
    all_ = Prediction(problem, candidate(graph, (0, 2, 4), 4, "gpipe")).memory
    # Two operations keep a megabyte per row each; micro-batches have two rows.
    assert [m.activations // MEGABYTE for m in one] == [8, 4]
    assert [m.activations // MEGABYTE for m in all_] == [16, 16]
    assert {m.weights for m in one} == {2 * MEGABYTE}
    assert {m.slots for m in one} == {4 * MEGABYTE}
    assert {m.gradients for m in one} == {2 * MEGABYTE}
    # The whole model is built, and its last weight drawn in two tensors more.
    assert {m.around for m in one} == {4 * MEGABYTE + 8 * MEGABYTE + 2 * MEGABYTE}
    assert {m.total // MEGABYTE for m in one} == {2 + 4 + 2 + 8 + 4, 2 + 4 + 2 + 4 + 4}


def test_updates_take_the_place_of_activations() -> None:
    """The new slot and weight of each of two weights are more than two rows' activations."""
    graph, table = chain(4), costs([1.0] * 4, slots=2.0)
    few = Prediction(Problem(graph, table, FAST, 1), candidate(graph, (0, 2, 4), 2, "1f1b"))
    assert {m.activations + m.updates for m in few.memory} == {2 * 2 * MEGABYTE}
    assert [m.activations for m in few.memory] == [2 * MEGABYTE, MEGABYTE]


def test_a_rank_that_never_holds_the_whole_model_needs_its_partition() -> None:
    table = costs([1.0] * 8, slots=100.0)
    problem = Problem(chain(8), table, FAST, 8)
    layout = candidate(chain(8), (0, 2, 4, 6, 8), 4)
    (whole, *_), (apart, *_) = (
        Prediction(p, layout).memory
        for p in (problem, dataclasses.replace(problem, saving=Saving(apart=True)))
    )
    assert whole.parts == apart.parts
    assert (whole.total, apart.around) == (whole.around, 0)
    assert whole.around == (8 * 101 + 2) * MEGABYTE
    assert apart.total == sum(apart.parts) < 240 * MEGABYTE


# --- files ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "unknown field `a`"),
        ("[]", "Expected `object`, got `array`"),
        ('{"within": "fast"}', "Expected `object`, got `str` - at `$.within`"),
        ('{"within": {"latency": "a", "bandwidth": 1}}', "got `str` - at `$.within.latency`"),
        ('{"nodes": "x"}', "Expected `int`, got `str` - at `$.nodes`"),
        ('{"speed": 0}', "speed=0"),
        ("{", "truncated"),
    ],
)
def test_a_file_that_is_no_cluster(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="A cluster is a file that") as raised:
        Cluster.load(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_cluster_of_something_else() -> None:
    with pytest.raises(ValueError, match="`within` must be a hyparflow.Link. Received: within='f'"):
        Cluster(within="f")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"\x89PNG\xff", b"[]", b'{"partitions": 3}', b'{"a": 1}'])
def test_a_file_that_is_no_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"A plan is a file that.*Received: {path}"):
        Plan.load(path)


# --- the choice ---


def test_a_program_in_two_parts_takes_more_memory() -> None:
    over = dataclasses.replace(
        FREE,
        program=10.0,
        program_in_two=30.0,
        program_of_keras=4.0,
        runtime=7.0,
    )
    table = costs([1.0] * 4, over, program=np.full(4, 100.0))

    def programs(boundaries: tuple[int, ...], num_microbatches: int) -> list[int]:
        layout = candidate(chain(4), boundaries, num_microbatches)
        found = Prediction(Problem(chain(4), table, FAST, 8), layout)
        return [memory.program for memory in found.memory]

    assert programs((0, 2, 4), 4) == [200 * 30 + 7, 200 * 10 + 7]
    assert programs((0, 1, 4), 4) == [100 * 30 + 7, 300 * 10 + 7]
    assert programs((0, 4), 2) == [400 * 10 + 7]
    assert programs((0, 4), 1) == [400 * (10 + 4) + 7]  # plain Keras


def test_a_program_counts_updates_sums_and_xla() -> None:
    over = dataclasses.replace(FREE, program_of_update=10.0, sums=300.0, xla=5000.0)
    table = costs([1.0] * 4, over, by_xla=np.array([0.0, 0.0, 0.0, 1.0]))

    def programs(boundaries: tuple[int, ...], replicas: int) -> list[int]:
        layout = candidate(chain(4), boundaries, 2, replicas=replicas)
        found = Prediction(Problem(chain(4), table, FAST, 8), layout)
        return [memory.program for memory in found.memory]

    assert programs((0, 3, 4), 1) == [30, 10 + 5000]  # a weight for each operation
    assert programs((0, 4), 2) == [40 + 300 + 5000]


def test_the_parts_of_a_backward_take_what_was_measured() -> None:
    table = costs([1.0] * 4, halves=(0.25, 1.0))  # of 2 x 2 s of a stage, and a row
    layout = candidate(chain(4), (0, 2, 4), 4, "zero-bubble")
    found = Prediction(Problem(chain(4), table, FAST, 4), layout)
    took: dict[tuple[int, str], set[float]] = {}
    for spans in found.timeline.spans:
        for span in spans:
            key = (span.step.stage, span.step.kind)
            took.setdefault(key, set()).add(round(span.end - span.start, 9))
    assert took[1, Kind.INPUT_BACKWARD] == {1.0}
    assert took[1, Kind.WEIGHT_BACKWARD] == {4.0}


def choose(seconds: list[float], ranks: int, batch: int, **wishes: Any) -> Any:
    problem = Problem(chain(len(seconds)), costs(seconds), FAST, batch)
    asked = constrained(ranks, **wishes)
    return best_of(consider(problem, asked), asked.memory_limit)


def test_cuts_balance_what_was_measured() -> None:
    found = choose([8, 1, 1, 1, 1, 4], 2, 64, num_partitions=2, num_microbatches=64)
    assert found.candidate.partitioning.boundaries == (0, 1, 6)


def test_cuts_avoid_large_tensors() -> None:
    graph = chain(4)
    table = costs([1.0] * 4, tensors=np.array([1.0, 1, 100, 1, 1]) * MEGABYTE)
    slow = Cluster(1, 2, within=Link(0.0, 2 * MEGABYTE), sum_bandwidth=INSTANT)
    problem = Problem(graph, table, slow, 4)
    found = best_of(consider(problem, constrained(2, num_partitions=2)), None)
    assert found.candidate.partitioning.boundaries != (0, 2, 4)


@pytest.mark.parametrize("seed", range(12))
def test_no_division_is_predicted_to_be_much_faster(seed: int) -> None:
    """The search minimises a sum; the simulated step of all divisions tells how good that is."""
    random = np.random.default_rng(seed)
    count, partitions = 7, int(random.integers(2, 4))
    graph, table = chain(count), costs((random.random(count) + 0.05).tolist())
    problem = Problem(
        graph, table, Cluster(1, 4, within=Link(0.01, 10 * MEGABYTE), sum_bandwidth=INSTANT), 16
    )
    wishes = constrained(partitions, num_partitions=partitions, num_microbatches=8, schedule="1f1b")
    found = best_of(consider(problem, wishes), None).step_seconds
    everything = [
        Prediction(problem, candidate(graph, (0, *inner, count), 8)).step_seconds
        for inner in itertools.combinations(range(1, count), partitions - 1)
    ]
    assert min(everything) <= found <= 1.03 * min(everything)


def test_a_memory_limit_chooses_a_layout_that_fits() -> None:
    free = choose([1.0] * 8, 4, 32)
    used = max(memory.total for memory in free.memory)
    limited = choose([1.0] * 8, 4, 32, memory_limit=used // 2)
    assert max(memory.total for memory in limited.memory) <= used // 2
    assert limited.step_seconds >= free.step_seconds


@pytest.mark.parametrize("seed", range(8))
def test_layouts_that_are_not_tried_are_not_better(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(seed)
    count, kept = 8, random.random(8) * 3 * MEGABYTE
    seconds = (random.random(count) + 0.05).tolist()
    network = Cluster(1, 4, within=Link(0.01, 10 * MEGABYTE), sum_bandwidth=MEGABYTE)
    problem = Problem(chain(count), costs(seconds, kept=kept), network, 16)

    def chosen(limit: int | None) -> Prediction:
        return best_of(consider(problem, constrained(4, memory_limit=limit)), limit)

    largest = max(memory.total for memory in chosen(None).memory)
    limits = [None, int(0.9 * largest), int(0.7 * largest)]
    found = [chosen(limit).step_seconds for limit in limits]
    monkeypatch.setattr(layouts, "_FAR", np.inf)
    monkeypatch.setattr(Divisions, "too_large", lambda *_: False)
    assert found == [chosen(limit).step_seconds for limit in limits]


def test_what_fits_nowhere_is_refused_with_the_bytes() -> None:
    with pytest.raises(ValueError) as caught:
        choose([1.0] * 8, 4, 32, memory_limit=MEGABYTE)
    text = str(caught.value)
    assert "memory_limit=1,048,576 bytes" in text
    assert "on partition" in text and "weights 2.0 MiB" in text


def test_wishes_that_no_layout_has_are_refused() -> None:
    with pytest.raises(ValueError, match="No layout"):
        choose([1.0] * 4, 4, 32, num_partitions=4, num_microbatches=33)
    with pytest.raises(ValueError, match="num_partitions=3 for num_ranks=4"):
        choose([1.0] * 4, 4, 32, num_partitions=3)


def test_a_batch_smaller_than_the_ranks_is_cut_into_partitions() -> None:
    assert choose([1.0] * 4, 4, 2).candidate.grid.num_replicas <= 2


def test_lpp_is_kept() -> None:
    found = choose([1.0] * 4, 2, 8, lpp=(1, 3))
    assert found.candidate.partitioning.boundaries == (0, 1, 4)


# --- plans ---


def some_plan(**wishes: Any) -> Plan:
    problem = Problem(chain(6), costs([1, 2, 3, 1, 2, 3]), Cluster(1, 4), 32)
    found = consider(problem, constrained(4, **wishes))
    single = Prediction(problem, candidate(problem.graph, (0, 6), 1))
    return make_plan("small", "hash", problem, best_of(found, None), single, found, 2**31)


def test_a_plan_is_saved_and_loaded(tmp_path: Path) -> None:
    plan = some_plan()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_another_file_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"Received: .*other\.json"):
        Plan.load(tmp_path / "other.json")


def test_a_plan_prints_its_partitions_and_alternatives() -> None:
    plan = some_plan()
    text = str(plan)
    assert "small on 4 ranks" in text
    assert f"step {plan.step_seconds * 1e3:.1f} ms" in text
    alternatives = re.findall(r"^  \d x \d, (\d+) (micro-batch(?:es)?),? ", text, re.MULTILINE)
    assert len(alternatives) == 3
    assert all((count == "1") == (word == "micro-batch") for count, word in alternatives)
    for partition in plan.partitions:
        assert f"{partition.layers[0]} to {partition.layers[-1]}" in text


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "One process takes 100.0 ms."),
        ({"all_cores_seconds": 0.06}, "100.0 ms, and 60.0 ms with the cores of all ranks."),
        ({"all_cores_seconds": 0.04}, "cores of all ranks, less than ranks do: start one, without"),
        ({"single_seconds": 0.04}, "One process takes 40.0 ms, less than ranks do: start one"),
        ({"single_seconds": 0.049}, "One process takes 49.0 ms."),  # as long, but for noise
        (
            {"single_seconds": 0.04, "single_memory": 2**31 + 1},
            "One process does not fit: it needs",
        ),
    ],
)
def test_a_plan_compares_with_one_process(known: dict[str, Any], said: str) -> None:
    usual = {"step_seconds": 0.05, "single_seconds": 0.1, "single_memory": 2**31}
    plan = dataclasses.replace(some_plan(), **(usual | known))
    assert said in str(plan)
    assert ("less than ranks do" in str(plan)) == ("less than ranks do" in said)


def test_odd_names_of_layers_do_not_break_the_table() -> None:
    plan = some_plan()
    first = dataclasses.replace(plan.partitions[0], layers=("a" * 300, "b\nc"), sent={})
    odd = dataclasses.replace(plan, partitions=(first, *plan.partitions[1:]), lpp=(2,) * 9)
    (line,) = (line for line in str(odd).split("\n") if line.startswith("0: aaa"))
    assert "... to b c" in re.sub("a{3,}", "", line) and len(line) < 250


def test_notebooks_do_not_break_the_lines_of_a_plan() -> None:
    shown = some_plan()._repr_html_()
    assert shown.startswith("<pre")
    assert "white-space: pre;" in shown
    assert html.unescape(shown.partition(">")[2]).startswith(str(some_plan()))


def test_a_picture_shows_every_rank_but_of_many() -> None:
    plan = some_plan()
    what, rows = plan.rows()
    assert what == "rank"
    grid = Grid(plan.num_partitions, plan.num_replicas)
    assert rows == [plan.work[grid.partition(rank)] for rank in range(grid.size)]
    what, rows = dataclasses.replace(plan, num_replicas=64).rows()
    assert (what, len(rows)) == ("partition", plan.num_partitions)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_plan_is_drawn(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    path = tmp_path / f"plan.{kind}"
    some_plan().plot(path)
    assert path.stat().st_size > 5000


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_plans_of_all_schedules_are_drawn(tmp_path: Path, schedule: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    path = tmp_path / "plan.png"
    some_plan(schedule=schedule, num_partitions=2).plot(path)
    assert path.stat().st_size > 5000
