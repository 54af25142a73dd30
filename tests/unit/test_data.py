"""Rows of a global batch: complete, in order and fair; batches sliced as numpy slices them."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from hyparflow.engine.batch import Batch, microbatch_rows, replica_rows, slice_rows, split  # noqa: E402
from hyparflow.pipeline.grid import Grid  # noqa: E402
from hyparflow.training.data.array_source import ArraySource, Spec, peek, specs  # noqa: E402


def covers(parts: list[tuple[int, int]], start: int, stop: int) -> bool:
    """Whether `parts` follow each other from `start` to `stop`."""
    bounds = [start, *(end for _, end in parts)]
    return parts == list(itertools.pairwise(bounds)) and bounds[-1] == stop


@pytest.mark.parametrize("start", [0, 5])
def test_split_is_complete_and_fair(start: int) -> None:
    for rows, parts in itertools.product(range(40), range(1, 12)):
        found = split(start, start + rows, parts)
        sizes = [stop - first for first, stop in found]
        assert len(found) == parts
        assert covers(found, start, start + rows)
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)


def test_replicas_share_the_batch() -> None:
    for rows, replicas in itertools.product(range(30), range(1, 7)):
        grid = Grid(2, replicas)
        parts = [replica_rows(rows, grid, replica) for replica in range(replicas)]
        assert covers(parts, 0, rows)


def test_fewer_rows_than_replicas() -> None:
    assert [replica_rows(2, Grid(1, 4), replica) for replica in range(4)] == [
        (0, 1), (1, 2), (2, 2), (2, 2),
    ]  # fmt: skip


def test_microbatches_are_never_empty_and_as_many_in_all_replicas() -> None:
    for rows, replicas, count in itertools.product(range(1, 20), range(1, 5), range(1, 9)):
        grid, counts = Grid(1, replicas), set()
        for replica in range(replicas):
            start, stop = replica_rows(rows, grid, replica)
            parts = microbatch_rows(rows, grid, replica, count)
            assert all(last > first for first, last in parts)
            assert covers(parts, start, stop) if stop > start else parts == []
            counts.update([len(parts)] if parts else [])
        assert counts == {min(count, max(1, rows // replicas))}


def test_fewer_rows_than_microbatches() -> None:
    assert microbatch_rows(5, Grid(1, 2), 1, 5) == [(3, 4), (4, 5)]
    assert microbatch_rows(2, Grid(1, 4), 3, 5) == []


def test_slice_rows_keeps_the_structure() -> None:
    a, b = np.arange(12).reshape(6, 2), np.arange(6.0)
    sliced = slice_rows({"a": a, "rest": (b, None)}, 1, 4)
    assert np.array_equal(sliced["a"], a[1:4])
    assert np.array_equal(sliced["rest"][0], b[1:4])
    assert sliced["rest"][1] is None
    assert slice_rows(None, 1, 4) is None


@pytest.mark.parametrize("x_is_global", [False, True])
def test_batch_against_numpy(x_is_global: bool) -> None:
    """Together the micro-batches of all replicas are the global batch, in order."""
    x, y, weights = np.arange(22).reshape(11, 2), np.arange(11) * 10, np.arange(11) / 7
    grid = Grid(num_partitions=1, num_replicas=3)
    seen: list[Any] = []
    for replica in range(grid.num_replicas):
        start, stop = replica_rows(11, grid, replica)
        own_x = x if x_is_global else x[start:stop]
        rows = microbatch_rows(11, grid, replica, 3)
        batch = Batch(11, rows, {"x": own_x}, [y], weights, x_is_global)
        assert batch.start == start
        for m, (first, last) in enumerate(rows):
            inputs, (labels, sample_weight) = batch.inputs(m), batch.labels(m)
            assert np.array_equal(inputs["x"], x[first:last])
            assert np.array_equal(labels[0], y[first:last])
            assert np.array_equal(sample_weight, weights[first:last])
            assert batch.size(m) == batch.weight(m) == last - first
            assert batch.share(m) == (last - first) / 11
            seen.append(inputs["x"])
    assert np.array_equal(np.concatenate(seen), x)


def test_empty_batch() -> None:
    batch = Batch(2, [])
    assert batch.start == batch.stop == 0


def test_stand_in_computes_a_row_without_weight() -> None:
    batch = Batch(2, [(0, 1)], np.arange(4).reshape(2, 2), is_stand_in=True)
    assert batch.inputs(0).tolist() == [[0, 1]]
    assert (batch.size(0), batch.weight(0), batch.share(0)) == (1, 0, 0.0)


def test_batch_without_weights() -> None:
    batch = Batch(4, [(0, 2), (2, 4)], np.zeros((4, 1)), np.arange(4))
    labels, sample_weight = batch.labels(1)
    assert labels.tolist() == [2, 3]
    assert sample_weight is None


# --- arrays as Keras reads them ---


def test_array_source_takes_rows() -> None:
    x = {"a": np.arange(12.0).reshape(6, 2), "b": np.arange(6)}
    y = [np.arange(6) * 2, np.arange(6) * 3]
    source = ArraySource(x, y, np.arange(6) / 3)
    rows = np.array([4, 0, 4])
    assert source.num_samples == 6
    assert np.array_equal(source.x(rows)["a"], x["a"][rows])
    assert np.array_equal(source.x(rows)["b"], x["b"][rows])
    assert [part.tolist() for part in source.y(rows)] == [[8, 0, 8], [12, 0, 12]]
    assert np.allclose(source.sample_weight(rows), rows / 3)


@pytest.mark.parametrize("kind", ["memory-mapped", "in memory"])
def test_arrays_are_never_copied_whole(kind: str, tmp_path: Path) -> None:
    """Though Keras computes in float32 and they are in float64."""
    values = np.arange(4e6).reshape(40000, 100)
    np.save(tmp_path / "x.npy", values)
    x = np.load(tmp_path / "x.npy", mmap_mode="r") if kind == "memory-mapped" else values
    tracemalloc.start()
    try:
        source = ArraySource(x, np.zeros(40000, int))
        source.fingerprint()
        rows = np.array([39999, 5])
        taken = source.x(rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(taken, values[rows].astype("float32"))
    assert taken.dtype == "float32"
    # x takes 32 MB. Rows are compared in pieces of 2 MB, and of a mapped file only some.
    assert peak < (4e6 if kind == "memory-mapped" else 16e6)


def test_array_source_of_inputs_only() -> None:
    source = ArraySource(np.zeros((3, 2)))
    rows = np.array([1])
    assert source.y(rows) is None
    assert source.sample_weight(rows) is None


def test_class_weights_become_sample_weights() -> None:
    source = ArraySource(np.zeros((4, 1)), np.array([0, 1, 1, 0]), class_weight={0: 0.5, 1: 3.0})
    assert source.sample_weight(np.arange(4)).tolist() == [0.5, 3.0, 3.0, 0.5]


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="same number of samples|cardinality"):
        ArraySource(np.zeros((3, 1)), np.zeros((4, 1)))


def test_fingerprint_notices_other_data() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=50)
    same = ArraySource(x, y).fingerprint()
    assert ArraySource(x.copy(), y).fingerprint() == same
    assert ArraySource(x[::-1], y).fingerprint() != same
    assert ArraySource(x, y, np.ones(50)).fingerprint() != same
    assert ArraySource(x[:49], y[:49]).fingerprint() != same


# --- streams ---


def test_specs() -> None:
    found = specs((np.zeros((5, 3), "float32"), None, {"n": np.zeros(5, "int64")}))
    assert found == (Spec((None, 3), "float32"), None, {"n": Spec((None,), "int64")})
    assert Spec((None, None, 3), "int32").zeros().shape == (1, 1, 3)
    assert Spec((None, 2), "int32").zeros().dtype == np.int32


EXPECTED = (Spec((None, 3), "float32"), Spec((None,), "int64"), None)


def batches() -> list[Any]:
    return [(np.full((2, 3), i, "float32"), np.full(2, i, "int64")) for i in range(3)]


def read_by_keras(stream: Any) -> list[Any]:
    """The labels of an epoch, as Keras's loops read them."""
    return [batch[1].numpy().tolist() for batch in datasets_of(stream)]


LABELS = [[0, 0], [1, 1], [2, 2]]


def test_peek_puts_the_first_batch_back() -> None:
    stream, found, rows = peek(element for element in batches())
    assert (found, rows) == (EXPECTED, 2)
    assert read_by_keras(stream) == LABELS


def test_peek_at_a_dataset_begins_it_once() -> None:
    tf = pytest.importorskip("tensorflow")
    begun = []

    def elements() -> Any:
        begun.append(1)
        yield from batches()

    types = tf.nest.map_structure(tf.type_spec_from_value, batches()[0])
    dataset = tf.data.Dataset.from_generator(elements, output_signature=types)
    stream, found, rows = peek(dataset.unbatch().batch(2))
    assert (found, rows) == (EXPECTED, 2)
    assert read_by_keras(stream) == LABELS
    assert len(begun) == 1
    assert read_by_keras(stream) == LABELS  # anew
    full = dataset.unbatch().batch(2, drop_remainder=True)
    assert peek(full)[1:] == (EXPECTED, 2)
    assert len(begun) == 2


def test_peek_at_a_dataset_without_batches() -> None:
    tf = pytest.importorskip("tensorflow")
    stream, _, rows = peek(tf.data.Dataset.from_tensor_slices(batches()[0]).take(0).batch(2))
    assert rows is None
    assert read_by_keras(stream) == []


def test_peek_at_a_py_dataset_reads_what_keras_reads() -> None:
    read = []

    class Data(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return batches()[index]

    stream, found, rows = peek(Data())
    assert (found, rows) == (EXPECTED, 2)
    assert read == [0, 1]  # for their types
    assert read_by_keras(stream) == LABELS
    assert read == [0, 1, 0, 1, 2]


def test_peek_refuses_what_keras_cannot_read() -> None:
    with pytest.raises(ValueError, match="Unrecognized data type"):
        peek(iter(batches()))


def datasets_of(x: Any) -> Any:
    from keras.src.backend.tensorflow.trainer import TFEpochIterator

    tf = pytest.importorskip("tensorflow")
    strategy = tf.distribute.get_strategy()
    return TFEpochIterator(x=x, distribute_strategy=strategy)._get_iterator()


def test_only_datasets_that_ask_for_it_are_tuned() -> None:
    tf = pytest.importorskip("tensorflow")
    from hyparflow.model.keras_internals.data import untuned_datasets

    asking = tf.data.Options()
    asking.autotune.enabled = True
    dataset = tf.data.Dataset.range(4).map(lambda x: 2 * x, tf.data.AUTOTUNE).batch(2)
    cases = [(np.arange(4), False), (dataset, False), (dataset.with_options(asking), True)]
    with untuned_datasets():
        for data, is_tuned in cases:
            found = datasets_of(data)
            assert found.options().autotune.enabled is is_tuned
    assert [batch.tolist() for batch in found.as_numpy_iterator()] == [[0, 2], [4, 6]]
    assert datasets_of(dataset).options().autotune.enabled is None  # Keras's own again
    assert dataset.options().autotune.enabled is None


def test_a_shard_is_not_tuned() -> None:
    tf = pytest.importorskip("tensorflow")
    from hyparflow.model.keras_internals.data import open_stream

    adapter = open_stream(tf.data.Dataset.range(4).batch(2))
    adapter.take_begun()
    assert adapter.get_tf_dataset().options().autotune.enabled is False
