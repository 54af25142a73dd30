"""Plans that divide sequences, and costs of long ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import pytest
from keras import layers
from plans_on_paper import FAST, FREE, INSTANT, MEGABYTE, chain, costs

import hyparflow as hf
from hyparflow.engine.compiled.section_sizes import SectionSizes
from hyparflow.engine.sequence.chunks import ChunkCosts, least_chunks
from hyparflow.engine.sequence.position_trial import find_cores
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.partition import make_partitioning
from hyparflow.pipeline.token_layout import TokenLayout
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.cluster import Cluster, Link
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs.lengths import costs_at_length
from hyparflow.planning.costs.measure_attention import attention_of
from hyparflow.planning.costs.measure_sections import sections_of
from hyparflow.planning.costs.overheads import Overheads
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.predict_memory import Memory
from hyparflow.planning.search.problem import Candidate, Problem, Saving, constrained
from hyparflow.planning.search.saving import rungs as rungs_of
from hyparflow.planning.search.saving import sequence_layouts
from hyparflow.planning.search.sequence_layout import SequenceLayout, costs_divided
from hyparflow.planning.search.sequence_memory import (
    chunk_costs,
    compiled_operations,
    compiled_strips,
)

HEADS, SIZE, WIDTH = 4, 8, 32
NO_TIME = Link(0.0, INSTANT)
# Two heads of one number each, whose queries see all keys: a second for each pair, forward.
PLAIN = Attention(
    operation=1,
    heads=2,
    key_heads=2,
    key_size=1,
    value_size=1,
    number_size=4,
    causal=False,
    window=None,
    forward=0.5,
    backward=1.5,
)


def transformer(blocks: int = 1, length: int | None = None) -> Any:
    tokens = keras.Input((length,), dtype="int32")
    x = layers.Embedding(50, WIDTH)(tokens)
    for _ in range(blocks):
        attention = layers.MultiHeadAttention(HEADS, SIZE)
        x = layers.Add()([x, attention(x, x, use_causal_mask=True)])
        x = layers.Add()([x, layers.Dense(WIDTH, "relu")(x)])
    model = keras.Model(tokens, layers.Dense(50)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def estimated(length: int, blocks: int = 1, **wanted: Any) -> hf.Plan:
    given = {"batch_size": 1, "num_ranks": 4, "costs": "estimate"} | wanted
    return hf.plan(transformer(blocks), sequence_length=length, **given)


# --- costs ---


def test_costs_at_two_lengths_tell_those_at_a_third() -> None:
    model = transformer()
    graph = FlatGraph(model, opened_graph(model))
    asked = []

    def found(sized: FlatGraph) -> Costs:
        length = int(sized.tensors[0].shape[1])
        asked.append(length)
        each = np.full(len(graph.calls), 2.0 * length + 3.0 * length**2)
        times = each[:, None]
        known = costs([0.0] * len(graph.calls), kept=each, working=each)
        return dataclasses.replace(known, forward=times, backward=times, fused=times)

    made = costs_at_length(graph, 8192, found)
    assert asked == [512, 1024]
    assert made.length == 8192
    assert made.forward == pytest.approx(2.0 * 8192 + 3.0 * 8192**2)
    assert made.kept == pytest.approx(2.0 * 8192 + 3.0 * 8192**2)
    assert made.linear == pytest.approx(2.0 / (2.0 + 3.0 * 8192))
    assert made.tensors[0] == 8192 * 4  # of tokens
    asked.clear()
    assert costs_at_length(graph, 300, found).length == 300
    assert asked == [300]


def test_attention_layers_are_found_with_their_sizes() -> None:
    model = transformer(blocks=2)
    graph = FlatGraph(model, opened_graph(model))
    found = attention_of(graph, find_cores(graph, 2048), measured=False)
    assert [graph.calls[layer.operation].operation.__class__ for layer in found] == [
        layers.MultiHeadAttention
    ] * 2
    (first, _) = found
    assert (first.heads, first.key_heads, first.key_size, first.value_size) == (4, 4, 8, 8)
    assert (first.causal, first.window, first.number_size) == (True, None, 4)


@pytest.mark.parametrize(("chunks", "blocks"), [(1, 10), (2, 10), (4, 10), (8, 36)])
def test_blocks_of_causal_attention(chunks: int, blocks: int) -> None:
    """Of 256 queries and keys, or of one chunk where chunks are shorter."""
    causal = dataclasses.replace(PLAIN, causal=True)
    layout = TokenLayout(1024, chunks)
    assert causal.pattern.pairs(layout) == blocks * min(256, 1024 // chunks) ** 2
    assert PLAIN.pattern.pairs(layout) == 1024**2


# An embedding before the attention of `PLAIN`, and the loss behind it.
BEFORE = SectionSizes(
    made=MEGABYTE // 2, kept=MEGABYTE, working=MEGABYTE, rows=MEGABYTE, tables=MEGABYTE,
    forward=100, backward=200, again=250,
)  # fmt: skip
LOSS = SectionSizes(working=MEGABYTE, again=1000)


def divided(shards: int = 1, chunks: int = 1, store: str = "memory", keeps: bool = False) -> Costs:
    """Three operations, of which the second is attention; sequences have eight positions."""
    known = costs([1.0] * 3, length=8, attention=(PLAIN,), sections=(BEFORE, LOSS))
    layout = SequenceLayout(shards, chunks, store)
    return costs_divided(known, chain(3), layout, NO_TIME, keeps)


def test_forwards_are_computed_again_and_attention_by_its_blocks() -> None:
    for shards in (1, 2):
        known = divided(shards, 2)
        # Each forward takes a second; attention one more for each of 8 x 8 pairs.
        assert known.forward[:, 0] == pytest.approx(np.array([1, 65, 1]) / shards)
        # What comes after the last attention runs forward and backward at once.
        assert known.backward[:, 0] == pytest.approx(np.array([3, 3 + 3 * 64, 2]) / shards)
        assert known.fused == pytest.approx(known.forward + known.backward)


def test_what_waits_lies_in_memory_or_not() -> None:
    # Queries, keys, values and means of eight positions and two heads, and logarithms.
    own, beside = 8 * 2 * (4 + 1) * 4, MEGABYTE
    assert divided(chunks=2).kept == pytest.approx([0, own + beside, 0])
    assert divided(2, 2).kept == pytest.approx([0, (own + beside) / 2, 0])
    assert divided(2, 2, "bf16").kept == pytest.approx([0, (own + beside) / 4, 0])
    assert divided(2, 2, "disk").kept == pytest.approx([0, 0, 0])


def test_chunks_keep_what_their_backward_needs_up_to_what_a_chunk_needs() -> None:
    parts = []
    for chunks in (1, 2, 8):
        kept, again = divided(chunks=chunks, keeps=True), divided(chunks=chunks)
        more = (kept.kept - again.kept).tolist()
        assert more == pytest.approx([max(0, min(8, 2 * 8 / chunks - 8)) * MEGABYTE, 0, 0])
        parts.append(more[0] / (8 * MEGABYTE))
        assert kept.backward[0, 0] == pytest.approx(2 + 1 - parts[-1])
    assert parts == [1, 0, 0]


def test_shorter_chunks_need_less_memory() -> None:
    needed = [divided(chunks=chunks).working[0] for chunks in (1, 2, 4)]
    assert needed == [8 * MEGABYTE, 4 * MEGABYTE, 2 * MEGABYTE]


def test_what_is_compiled_follows_from_what_forwards_keep() -> None:
    known = costs([1.0] * 3, length=8, attention=(PLAIN,), sections=(BEFORE, LOSS))
    assert compiled_operations(known, kept=1.0).tolist() == [100 + 200, 1000, 0]
    assert compiled_operations(known, kept=0.0).tolist() == [100 + 250, 1000, 0]
    assert compiled_operations(known, kept=0.5).tolist() == [100 + 200 + 100 + 250, 1000, 0]


def test_the_last_sections_keep_first() -> None:
    attention = PLAIN, dataclasses.replace(PLAIN, operation=2)
    known = costs([1.0] * 3, length=8, attention=attention, sections=(BEFORE, BEFORE, LOSS))
    keeps, again = 100 + 200, 100 + 250
    for kept, expected in {
        0.0: [again, again],
        0.3: [again, keeps + again],
        0.5: [again, keeps],
        0.7: [keeps + again, keeps],
        1.0: [keeps, keeps],
    }.items():
        assert compiled_operations(known, kept).tolist() == [*expected, 1000]


def test_strips_of_blocks_are_compiled_once() -> None:
    """Forward and backward, for the first block of a chunk and for others."""
    causal = AttentionPattern(causal=True)
    assert compiled_strips(causal, TokenLayout(4096, 1)) == 2 * 4
    assert compiled_strips(causal, TokenLayout(4096, 4)) == 2 * (4 + 4)
    assert compiled_strips(causal, TokenLayout(4096, 8)) == 2 * (2 + 2)
    assert compiled_strips(AttentionPattern(causal=False), TokenLayout(4096, 4)) == 0


def step_memory(shards: int = 1, overheads: Overheads = FREE, rows: int = 1, **how: Any) -> Memory:
    """Of a rank that trains with `divided`'s costs, on a row of eight positions."""
    known = costs([1.0] * 3, overheads, length=8, attention=(PLAIN,), sections=(BEFORE, LOSS))
    saving = Saving(sequences=SequenceLayout(shards, **how))
    problem = Problem(chain(3), known, FAST, rows, saving)
    table = make_partitioning(chain(3), (0, 3))
    grid = Grid(num_partitions=1, num_replicas=1, num_shards=shards)
    (memory,) = Prediction(problem, Candidate(grid, 1, "1f1b", table)).memory
    return memory


def test_gradients_of_embeddings_have_a_row_for_each_token() -> None:
    # Own rows, and those that the optimizer makes of them; in the place of activations.
    alone = step_memory(store="disk", num_chunks=8)
    weights, pool = 3 * MEGABYTE, MEGABYTE
    assert alone.updates == pytest.approx(2 * weights + 2 * 8 * MEGABYTE - pool, rel=1e-3)
    assert alone.gradients == weights - MEGABYTE  # none of the table is summed
    # With two shards each has all rows besides its own half, outside of the pool.
    both = step_memory(2, store="disk", num_chunks=4)
    assert both.updates == pytest.approx(
        2 * weights + (4 + 8) * MEGABYTE - pool + 8 * MEGABYTE, rel=1e-3
    )


def test_what_a_store_had_in_memory_serves_for_gathered_rows() -> None:
    there, away = (step_memory(2, store=store, num_chunks=4) for store in ("memory", "disk"))
    saved = away.updates - there.updates
    assert 0 < saved <= there.activations - away.activations


def test_a_program_counts_sections_and_blocks() -> None:
    over = dataclasses.replace(FREE, program_in_two=1.0, strip=10.0, trial=1000.0)
    causal = dataclasses.replace(PLAIN, causal=True)
    known = costs([1.0] * 3, over, length=1024, attention=(causal,), sections=(BEFORE, LOSS))
    problem = Problem(chain(3), known, FAST, 1, Saving(sequences=SequenceLayout(1, 2)))
    single = Candidate(Grid(1, 1), 1, "1f1b", make_partitioning(chain(3), (0, 3)))
    (memory,) = Prediction(problem, single).memory
    assert memory.program == 100 + 250 + 1000 + 10 * 8 + 1000


def test_blocks_count_once_for_layers_that_compute_the_same() -> None:
    over = dataclasses.replace(FREE, strip=10.0)
    causal = dataclasses.replace(PLAIN, causal=True)
    again = dataclasses.replace(causal, operation=2)
    programs = []
    for attention in [(causal,), (causal, again), (causal, dataclasses.replace(again, heads=4))]:
        sections = (BEFORE,) * len(attention) + (LOSS,)
        known = costs([1.0] * 3, over, length=1024, attention=attention, sections=sections)
        problem = Problem(chain(3), known, FAST, 1, Saving(sequences=SequenceLayout(1, 2)))
        single = Candidate(Grid(1, 1), 1, "1f1b", make_partitioning(chain(3), (0, 3)))
        programs.append(Prediction(problem, single).memory[0].program)
    assert programs[1] == programs[0] == programs[2] - 10 * 8


def test_sections_of_a_model_are_traced() -> None:
    model = transformer(blocks=2)
    graph = FlatGraph(model, opened_graph(model))
    found = find_cores(graph, 2048)
    first, second, last = sections_of(graph, found.cores, faster_kernels=True)
    assert (first.rows, first.tables) == (WIDTH * 4 + 8, 50 * WIDTH * 4)
    assert (second.rows, last.rows) == (0, 0)
    assert last.largest == 50 * 4  # logits
    for section in (second, last):
        assert 0 < section.kept < section.made
        assert section.largest < section.working
        assert 0 < section.forward < section.again
        assert 0 < section.backward < section.again
    assert (first.weight, last.weight) == (WIDTH * HEADS * SIZE * 4, 50 * WIDTH * 4)


def test_a_table_that_is_also_multiplied_by_has_a_dense_gradient() -> None:
    tokens = keras.Input((None,), dtype="int32")
    embedding = keras_hub.layers.ReversibleEmbedding(50, WIDTH)
    x = embedding(tokens)
    x = layers.Add()([x, layers.MultiHeadAttention(HEADS, SIZE)(x, x, use_causal_mask=True)])
    model = keras.Model(tokens, embedding(x, reverse=True))
    graph = FlatGraph(model, opened_graph(model))
    for section in sections_of(graph, find_cores(graph, 2048).cores, faster_kernels=True):
        assert (section.rows, section.tables) == (0, 0)


def test_automatic_chunks_reckon_with_the_figures_of_a_plan(monkeypatch: Any) -> None:
    seen = []

    def noted(costs: ChunkCosts, *given: Any) -> int:
        seen.append(costs)
        return least_chunks(costs, *given)

    monkeypatch.setattr("hyparflow.training.automatic_chunks.least_chunks", noted)
    tokens = np.zeros((1, 1040), "int32")
    hf.fit(transformer(), tokens, tokens, num_sequence_chunks="auto", batch_size=1, verbose=0)
    (costs,), planned = seen, chunk_costs(costs_of(4096), 1, keeps=True)
    for one, other in zip(costs.sections, planned.sections, strict=True):
        assert one.working == pytest.approx(other.working, rel=0.02)
        assert (one.kept, one.largest) == (other.kept, other.largest)
    assert (costs.of_pair, costs.of_token) == (planned.of_pair, planned.of_token)
    needed = [each.working_set(1, 4096, 4, 1) for each in (costs, planned)]
    assert needed[0] == pytest.approx(needed[1], rel=0.02)


def test_exchanges_take_time() -> None:
    known = costs([0.0] * 3, length=8, attention=(PLAIN,))
    slow = costs_divided(known, chain(3), SequenceLayout(2, 2), Link(0.5, 16.0))
    fast = costs_divided(known, chain(3), SequenceLayout(2, 2), NO_TIME)
    # Of eight numbers of each of a shard's four positions half goes to the other, at 16 bytes a
    # second, in two messages for each of two chunks; and ten numbers for gradients.
    assert (slow.forward - fast.forward)[1, 0] == pytest.approx(4 * 0.5 + 8 * 4 * 4 / 2 / 16)
    assert (slow.backward - fast.backward)[1, 0] == pytest.approx(4 * 0.5 + 10 * 4 * 4 / 2 / 16)


def test_costs_of_sequences_are_kept_in_files(tmp_path: Path) -> None:
    linear, sections = np.full((5, 3), 0.25), (BEFORE, LOSS)
    known = costs([1.0] * 3, length=8, attention=(PLAIN,), sections=sections, linear=linear)
    known.save(tmp_path / "costs.json")
    again = Costs.load(tmp_path / "costs.json")
    assert (again.attention, again.sections) == ((PLAIN,), sections)
    assert again.length == 8
    assert again.linear == pytest.approx(linear)
    wrong = dataclasses.replace(known, attention=(dataclasses.replace(PLAIN, operation=3),))
    wrong.save(tmp_path / "costs.json")
    with pytest.raises(ValueError, match=r"Expected `int` < 3 - at `\$.attention\[0\].operation"):
        Costs.load(tmp_path / "costs.json")


# --- the search ---


def ways(num_ranks: int = 4, heads: int = 4, **decided: Any) -> list[list[SequenceLayout]]:
    layer = dataclasses.replace(PLAIN, heads=heads)
    known = costs([1.0] * 3, FREE, length=4096, attention=(layer,))
    return sequence_layouts(known, constrained(num_ranks, **decided))


def test_ways_to_divide_sequences() -> None:
    first, *others = ways()
    assert first == [SequenceLayout(shards, 4, "memory") for shards in (1, 2, 4)]
    assert [(rung[0].num_chunks, rung[0].store) for rung in others] == [
        (8, "memory"),
        (4, "disk"),
        (8, "disk"),
    ]
    assert {way.num_shards for rung in ways(heads=6) for way in rung} == {1, 2}
    assert {way.num_shards for rung in ways(num_partitions=2) for way in rung} == {1, 2}
    given = ways(num_sequence_shards=2, num_sequence_chunks=16, sequence_store="bf16")
    assert given == [[SequenceLayout(2, 16, "bf16")]]


def test_sequences_are_divided_where_nothing_else_fits_or_where_it_is_asked_for() -> None:
    options = constrained(4).options
    rungs = rungs_of(options, ways(), has_peers=True)
    first = [saving.sequences for saving in rungs[0]]
    assert first == [None, SequenceLayout(2, 4), SequenceLayout(4, 4)]
    last = Saving(sequences=SequenceLayout(1, 4))
    alone = next(n for n, rung in enumerate(rungs) if last in rung)
    assert all(saving.sequences is None for rung in rungs[1:alone] for saving in rung)
    asked = constrained(4, num_sequence_shards=2).options
    assert all(s.sequences for rung in rungs_of(asked, ways(), True) for s in rung)


def test_a_plan_of_long_sequences_shares_them() -> None:
    plan = estimated(16384, memory_limit="1GiB")
    assert plan.num_ranks == 4
    assert plan.divides_sequences
    assert plan.sequence_length == 16384
    assert plan.arguments["num_sequence_chunks"] == plan.num_sequence_chunks > 1
    assert f"{plan.grid.in_words}" in str(plan)
    assert "Sequences of 16384 positions are computed in" in str(plan)
    assert hf.Plan.from_values(plan.to_values()) == plan


def test_a_plan_that_needs_less_memory_waits_on_a_disk() -> None:
    roomy = estimated(65536, blocks=4, num_sequence_shards=4)
    assert (roomy.num_sequence_shards, roomy.sequence_store) == (4, "memory")
    shortest = {"num_sequence_shards": 4, "num_sequence_chunks": 128}
    least = estimated(65536, blocks=4, **shortest).partitions[0].memory.total
    tight = estimated(65536, blocks=4, num_sequence_shards=4, memory_limit=int(0.99 * least))
    assert tight.sequence_store == "disk"
    with pytest.raises(ValueError, match=r"No layout fits .*num_sequence_chunks=.*sequence_store"):
        estimated(65536, memory_limit="20MiB")


def test_a_plan_keeps_to_what_was_given() -> None:
    plan = estimated(4096, num_sequence_shards=2, num_partitions=2, num_sequence_chunks=3)
    assert (plan.num_replicas, plan.num_sequence_shards, plan.num_partitions) == (1, 2, 2)
    assert plan.num_sequence_chunks == 3
    assert plan.grid.in_words == "1 x 2 x 2 (replicas x sequence shards x partitions)"


def test_short_sequences_are_left_whole() -> None:
    plan = estimated(256, batch_size=8)
    assert not plan.divides_sequences


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_sequence_shards": 3}, "num_sequence_shards=3 for num_ranks=4"),
        ({"sequence_length": None, "num_sequence_chunks": 2}, "Received: no `sequence_length`"),
        ({"sequence_length": 0}, "`sequence_length` of a plan must be a positive integer"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: dict[str, Any], message: str) -> None:
    given = {"sequence_length": 4096, "batch_size": 1, "num_ranks": 4, "costs": "estimate"}
    with pytest.raises(ValueError, match=message):
        hf.plan(transformer(), **(given | arguments))


def test_a_model_that_mixes_positions_is_refused_only_if_it_is_to_be_divided() -> None:
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Conv1D(WIDTH, 3, padding="same")(layers.Embedding(50, WIDTH)(tokens))
    x = layers.MultiHeadAttention(HEADS, SIZE)(x, x)
    model = keras.Model(tokens, layers.Dense(50)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    given = {"batch_size": 2, "num_ranks": 2, "costs": "estimate", "sequence_length": 4096}
    assert not hf.plan(model, **given).divides_sequences
    with pytest.raises(ValueError, match="'conv1d"):
        hf.plan(model, num_sequence_shards=2, **given)


def test_costs_of_another_length_are_refused() -> None:
    known = costs_of(4096)
    with pytest.raises(ValueError, match=r"sequence_length=2048, and costs of sequences of 4096"):
        hf.plan(transformer(), batch_size=1, num_ranks=2, costs=known, sequence_length=2048)


def costs_of(length: int) -> Costs:
    from hyparflow.planning.costs_of_model import costs_of_model

    return costs_of_model(transformer(), "estimate", 1, Cluster(1, 2), length=length)


def test_fast_machines_share_sequences_of_one_row() -> None:
    plan = hf.plan(transformer(), batch_size=1, cluster=dataclasses.replace(FAST, ranks_per_node=2),
                   costs="estimate", sequence_length=8192)  # fmt: skip
    assert plan.num_sequence_shards == 2
