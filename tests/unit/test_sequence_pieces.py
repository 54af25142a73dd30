"""The parts of sequence parallelism, each alone: dropout, stores, chunks, what may count."""

from __future__ import annotations

import dataclasses
import resource

import numpy as np
import pytest
import tensorflow as tf

from hyparflow.engine.compiled.section_sizes import SectionSizes
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.chunks import ChunkCosts, least_chunks
from hyparflow.engine.sequence.disk_store import DiskStore
from hyparflow.engine.sequence.random_bits import dropped, dropped_scores
from hyparflow.engine.sequence.seen_positions import may_count, require_right
from hyparflow.engine.sequence.store import DeviceStore, MemoryStore, RoundedStore, Store
from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.training.predictions import in_order

SEED = tf.constant([3, 7], tf.int64)


@pytest.mark.parametrize("noise_shape", [None, (None, 1, None), (None, None, 1)])
def test_parts_of_a_sequence_drop_what_the_whole_drops(
    noise_shape: tuple[int | None] | None,
) -> None:
    x = tf.ones((3, 40, 8))
    whole = dropped(x, 0.3, noise_shape, SEED, 0)
    parts = [dropped(x[:, a:b], 0.3, noise_shape, SEED, a) for a, b in ((0, 7), (7, 32), (32, 40))]
    assert np.array_equal(whole, tf.concat(parts, 1))
    assert set(np.unique(whole)) == {np.float32(0), np.float32(1 / 0.7)}


def test_dropout_drops_its_rate() -> None:
    kept = np.asarray(dropped(tf.ones((4, 500, 64)), 0.25, None, SEED, 0)) > 0
    assert abs(kept.mean() - 0.75) < 0.005
    # Neither rows, positions nor features are dropped together.
    for axis in range(3):
        means = kept.mean(tuple(n for n in range(3) if n != axis))
        assert means.std() < 3 * (0.25 * 0.75 / (kept.size / kept.shape[axis])) ** 0.5
    other = np.asarray(dropped(tf.ones((4, 500, 64)), 0.25, None, SEED + 1, 0)) > 0
    assert abs((kept == other).mean() - (0.75**2 + 0.25**2)) < 0.01


def test_blocks_of_scores_drop_what_the_whole_drops() -> None:
    positions, heads = tf.range(30), tf.range(4)
    whole = dropped_scores(0.5, SEED, positions, positions, heads, 2)
    block = dropped_scores(0.5, SEED, positions[7:20], positions[3:11], heads[2:], 2)
    assert np.array_equal(whole[:, 2:, 7:20, 3:11], block)
    assert abs(float(tf.reduce_mean(whole)) - 1) < 0.05


@pytest.mark.parametrize("kind", ["memory", "copied", "device", "disk"])
def test_stores_give_back_what_they_got(
    kind: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "copied":
        monkeypatch.setattr("hyparflow.engine.sequence.store._FEW", 0)
    makers = {"memory": MemoryStore, "copied": MemoryStore, "device": DeviceStore}
    store: Store = makers[kind]() if kind in makers else DiskStore(str(tmp_path))
    tensors = {
        ("a", n): [tf.random.normal((n + 1, 3)), tf.constant([True, False]), tf.zeros((0,))]
        for n in range(9)
    }
    for _ in range(2):  # places in the file are used again
        for key, value in tensors.items():
            store.put(key, value)
        store.prefetch(("a", 3), ("a", 4))
        for key, value in tensors.items():
            for mine, theirs in zip(store.take(key), value, strict=True):
                assert mine.dtype == theirs.dtype
                assert np.array_equal(mine, theirs)
            assert not store.has(key)
    size = sum(x.numpy().nbytes for value in tensors.values() for x in value)
    assert (store.counts.bytes_in, store.counts.bytes_out) == (2 * size, 2 * size)
    assert (store.counts.now, store.counts.peak) == (0, size)
    store.close()


def test_a_full_disk_is_an_error(tmp_path: object) -> None:
    with pytest.raises(OSError, match="No such file"):
        DiskStore(f"{tmp_path}/missing")


def test_a_full_disk_names_the_argument(tmp_path: object) -> None:
    store = DiskStore(str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        store.put("a", [tf.zeros((1 << 12,))])
        with pytest.raises(OSError, match=r"`sequence_store`.*File too large, in the folder.*room"):
            store.get("a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_rounded_store_rounds() -> None:
    store = RoundedStore()
    x = tf.constant([1 / 3, 2.0])
    store.put("a", [x, tf.constant([7])])
    rounded, whole = store.take("a")
    assert np.array_equal(rounded, tf.cast(tf.cast(x, tf.bfloat16), tf.float32))
    assert store.counts.bytes_in == 2 * 2 + 4
    assert whole.numpy() == [7]


def test_as_few_chunks_as_fit() -> None:
    inner, loss = SectionSizes(made=400, kept=300, working=1000), SectionSizes(working=500)
    costs = ChunkCosts([inner, loss], of_pair=4, of_token=8)
    assert least_chunks(costs, 1, 4096, 1, 1 << 40) == 1
    limit = costs.working_set(1, 4096, 4, 1)
    assert least_chunks(costs, 1, 4096, 1, limit) == 4
    assert least_chunks(costs, 1, 4096, 1, limit - 1) == 5
    assert least_chunks(costs, 1, 4096, 1, 0) == 8  # of 512 positions
    assert least_chunks(costs, 1, 400, 2, 0) == 1


def test_sections_and_blocks_take_turns() -> None:
    inner = SectionSizes(made=400, kept=300, working=1 << 20)
    costs = ChunkCosts([inner, SectionSizes()], of_pair=4, of_token=8, keeps=False)
    assert costs.working_set(2, 4000, 4, 4) == 2 * 250 * (1 << 20)
    costs = ChunkCosts([SectionSizes()], of_pair=4, of_token=8)
    assert costs.working_set(2, 4000, 4, 4) == 2 * (4 * 1000**2 * 4 + 1000 * 8)


def test_of_a_loss_there_is_a_tile_at_a_time() -> None:
    sizes = [SectionSizes(largest=1 << 20, working=3 << 20)]
    assert ChunkCosts(sizes).of_sections(1, 1024) == 32 * (3 << 20)
    assert ChunkCosts(sizes, is_loss=False).of_sections(1, 1024) == 1024 * (3 << 20)


def test_a_gradient_of_a_weight_is_there_until_it_is_added_up() -> None:
    sizes = [SectionSizes(working=1000, weight=1 << 20), SectionSizes(working=1001)]
    assert ChunkCosts(sizes).of_sections(2, 10) == 2 * 10 * 1000 + (1 << 20)


def test_forwards_keep_up_to_what_a_chunk_needs() -> None:
    costs = ChunkCosts([SectionSizes(made=400, kept=300), SectionSizes(kept=100)])
    assert costs.kept(1, 1024, 1, 1) == 300 * 1024  # none of the loss
    assert costs.kept(1, 1024, 2, 1) == 300 * 1024
    assert 2 * 2 * 400 * 256 - 300 * 1024 == 102400  # which leaves room for one chunk
    assert costs.kept(1, 1024, 4, 1) == 300 * 256
    assert costs.kept(1, 1024, 8, 1) == 0
    assert dataclasses.replace(costs, keeps=False).kept(1, 1024, 1, 1) == 0


def core(pattern: AttentionPattern) -> AttentionCore:
    return AttentionCore("a", 4, 4, 1, 1.0, pattern, is_padded=True)


def test_positions_that_see_nothing_may_not_count() -> None:
    there = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], bool)
    causal = may_count(there, [core(AttentionPattern(True))], True)
    assert causal.astype(int).tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    window = may_count(there, [core(AttentionPattern(True, 2))], True)
    assert window.astype(int).tolist() == [[0, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    full = may_count(there, [core(AttentionPattern(False))], False)
    assert full.tolist() == there.tolist()
    require_right(tf.constant(causal[:, 1:3]), causal, (1, 3))
    with pytest.raises(ValueError, match="position 2 of row 1"):
        require_right(tf.constant(causal[:, 2:4]), window, (2, 4))


def test_heads_of_keys_for_shards() -> None:
    def sent(heads: int, keys: int, shards: int) -> int:
        return AttentionCore("a", heads, keys, 1, 1.0, AttentionPattern(True)).sent_key_heads(
            shards
        )

    assert [sent(8, 4, n) for n in (1, 2, 4, 8)] == [4, 4, 4, 8]
    assert sent(6, 3, 2) == 6  # shards share no head evenly
    with pytest.raises(ValueError, match=r"divide the 12 heads of 'a'.*Use one of \[1, 2, 3, 4"):
        AttentionCore("a", 12, 4, 1, 1.0, AttentionPattern(True)).require_shards(8)


def test_outputs_of_shards_in_order() -> None:
    whole = np.arange(2 * 11 * 3).reshape(2, 11, 3)
    pieces = {0: [(0, 3), (6, 9)], 1: [(3, 6), (9, 11)]}
    shards = [np.concatenate([whole[:, a:b] for a, b in own], 1) for own in pieces.values()]
    assert np.array_equal(in_order(shards, 2), whole)
