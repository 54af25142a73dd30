"""What is measured of a model: alike parts once, memory exactly, and nothing of it changes."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from plans_on_paper import FREE

import hyparflow as hf
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.planning import costs_of_model
from hyparflow.planning.costs.contention import Companions, companions_possible
from hyparflow.planning.costs.estimate import estimate
from hyparflow.planning.costs.measure import measure
from hyparflow.planning.costs.measure_overheads import measure_overheads
from hyparflow.planning.costs.measurement_keys import has_kernel, operation_kinds, tensor_types
from hyparflow.planning.costs.sample import Sample
from hyparflow.planning.costs.segments import alike, segments


@pytest.fixture(autouse=True)
def _measured_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `hf.plan` measure for a moment: no test asks how exact its seconds are."""
    monkeypatch.setattr(costs_of_model, "measure", functools.partial(measure, budget=0.01))


def flat(model: Any) -> FlatGraph:
    return FlatGraph(model, opened_graph(model))


def blocks(count: int, width: int = 8) -> Any:
    """Residual blocks, all alike but for their names."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(width, 3, padding="same")(inputs)
    for _ in range(count):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(x)))
        x = layers.Add()([x, layers.Dropout(0.1)(y)])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)), name="blocks")


def groups_of(model: Any) -> list[list[Any]]:
    graph = flat(model)
    operations = graph.operation_graph(model.trainable_variables)
    found = segments(operations, has_kernel(graph))
    covered = [index for segment in found for index in segment.operations]
    assert covered == list(range(len(graph.calls)))  # each operation once, in order
    return list(alike(operations, found, operation_kinds(graph), tensor_types(graph)).values())


def test_repeated_blocks_are_one_kind() -> None:
    few, many = groups_of(blocks(3)), groups_of(blocks(30))
    assert len(many) == len(few) <= 5
    assert max(map(len, many)) >= 28


@pytest.mark.parametrize(
    "change",
    [
        {"filters": 9},
        {"kernel_size": 1},
        {"strides": 2},
        {"activation": "relu"},
        {"use_bias": False},
    ],
    ids=str,
)
def test_what_changes_the_time_makes_another_kind(change: dict[str, Any]) -> None:
    inputs = keras.Input((8, 8, 8))
    same = {"filters": 8, "kernel_size": 3, "padding": "same"}
    x = layers.Conv2D(**same)(layers.Conv2D(**same)(layers.Conv2D(**same)(inputs)))
    alone = groups_of(keras.Model(inputs, x))
    x = layers.Conv2D(**same)(layers.Conv2D(**(same | change))(layers.Conv2D(**same)(inputs)))
    assert len(groups_of(keras.Model(inputs, x))) > len(alone)


def test_arguments_make_another_kind() -> None:
    inputs = keras.Input((8,))
    x = layers.Dense(8)(ops.multiply(layers.Dense(8)(inputs), 2.0))
    y = ops.sum(layers.Dense(8)(layers.Dense(8)(x)), axis=-1, keepdims=True)
    model = keras.Model(inputs, layers.Dense(8)(ops.concatenate([y] * 8, axis=-1)))
    kinds = operation_kinds(flat(model))
    assert len(set(kinds)) >= 4


def test_memory_of_dense_layers_is_what_one_counts() -> None:
    """The backward needs the input of each layer and, for ReLU, its output."""
    model = keras.Sequential([keras.Input((4,))])
    for width in (16, 8, 12):
        model.add(layers.Dense(width, activation="relu"))
    model.add(layers.Dense(2))
    costs = measure(flat(model), (8,), budget=0.0)
    assert costs.kept.sum() == 4 * (16 + 8 + 12)
    assert costs.tensors.tolist() == [16, 64, 32, 48, 8]


def test_memory_of_a_residual_block_counts_shared_tensors_once() -> None:
    inputs = keras.Input((6,))
    x = layers.Dense(10)(inputs)
    y = layers.Dense(10, activation="tanh")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Add()([x, y])))
    costs = measure(flat(model), (8,), budget=0.0)
    # x for the second layer, its tanh, and the sum for the third.
    assert costs.kept.sum() == 4 * 30


def test_layers_are_measured_with_the_kernels_that_train_them() -> None:
    """Of GELU in one pass x alone is kept, as Keras writes it several tensors."""
    wide = layers.Dense(4096, activation="gelu")
    model = keras.Sequential([keras.Input((4,)), wide, layers.Dense(2)])
    kept = [
        measure(flat(model), (8,), budget=0.0, faster_kernels=faster).kept.sum()
        for faster in (True, False)
    ]
    assert kept[0] == 2 * 4 * 4096  # x, and what goes into the second layer
    assert kept[1] > 1.5 * kept[0]


def test_a_backward_is_measured_in_two_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def medians(self: Any, what: str, rows: int, run: Any, budget: float) -> list[float]:
        return [float(2**n) for n in range(len(run()))]  # runs it, and takes known seconds for it

    monkeypatch.setattr(Sample, "_medians", medians)
    costs = measure(flat(blocks(12)), (8,), budget=0.02)
    assert costs.halves == (2.0, 4.0)  # the second and the third, over the first
    costs.save(tmp_path / "costs.json")
    assert hf.Costs.load(tmp_path / "costs.json").halves == costs.halves


class Own(layers.Layer):
    """An operation that no estimate knows."""

    def call(self, x: Any) -> Any:
        return ops.tanh(x)


def test_what_takes_little_is_counted_at_the_rate_of_the_rest() -> None:
    x = inputs = keras.Input((64,))
    for number in range(12):
        x = layers.Dense(512, activation="relu", name=f"wide{number}")(x)
    outputs = layers.Dense(3)(Own()(layers.Dense(4, name="narrow")(x)))
    model = keras.Model(inputs, outputs)
    said: list[str] = []
    costs = measure(flat(model), (2, 4), budget=0.0, say=said.append)
    measured = {text.partition(": ")[2] for text in said if text.startswith("measuring 1 of")}
    measured |= {text.partition(": ")[2] for text in said if ", round 1 of" in text}
    # The first layer and the last take little; what no estimate knows may take any time.
    assert measured == {"wide1, 11 times", "narrow, 1 times", "a longer piece"}
    assert (costs.forward > 0).all() and (costs.backward > 0).all()
    assert costs.kept[0] == 4 * 512


def test_measuring_changes_nothing() -> None:
    model = blocks(2)
    model.compile("adam", "mse")
    before = [np.array(v) for v in model.variables]
    losses = model.losses
    costs = measure(flat(model), (2, 4), model.optimizer, budget=0.01)
    for variable, value in zip(model.variables, before, strict=True):
        assert np.array_equal(variable, value), variable.path
    assert model.losses == losses
    assert not model.optimizer.built
    assert costs.slots == pytest.approx(2.0, rel=0.05)
    for times in (costs.forward, costs.backward, costs.fused):
        assert times.shape == (len(costs.operations), 2)
        assert np.isfinite(times).all() and (times > 0).any()


@pytest.mark.skipif(companions_possible(2) < 1, reason="needs two cores")
@pytest.mark.parametrize(
    "kind", [pytest.param("layers", marks=pytest.mark.slow), "kernels", "tokens"]
)
def test_ranks_of_a_node_are_tried_together(kind: str) -> None:
    if kind == "layers":
        model = blocks(2)
    elif kind == "kernels":  # functions that XLA compiles
        inputs = keras.Input((64, 64))
        x = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(inputs))
        model = keras.Model(inputs, layers.Dense(4)(x))
    else:  # whole numbers, a random seed, a weight that is read by row
        inputs = keras.Input((None,), dtype="int32")
        x = layers.Dropout(0.5)(layers.Embedding(9, 4, mask_zero=True)(inputs))
        model = keras.Model(inputs, layers.LSTM(4)(x))
    said: list[str] = []
    costs = measure(flat(model), (2, 4), budget=0.01, ranks_per_node=2, say=said.append)
    assert costs.crowd == 2, said
    assert costs.crowded is not None and costs.crowded.shape == (3, 2)
    assert (costs.crowded >= 1).all() and (costs.crowded < 20).all()
    assert costs.gain_of_all_cores is not None and 0.05 < costs.gain_of_all_cores < 20
    plan = hf.plan(model, batch_size=4, num_ranks=2, costs=costs)
    assert plan.all_cores_seconds is not None and plan.all_cores_seconds > 0
    assert hf.plan(model, batch_size=4, num_ranks=4, costs=costs).all_cores_seconds is None


def test_what_other_processes_cannot_load_is_measured_alone() -> None:
    inputs = keras.Input((4,))
    secret = tf.Variable(1.0)  # in no layer, so not among the model's
    x = layers.Lambda(lambda x: x * secret)(layers.Dense(4)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    said: list[str] = []
    costs = measure(flat(model), (2,), budget=0.01, ranks_per_node=2, say=said.append)
    assert costs.crowd == 1
    assert costs.times(2, 2).forward.sum() > 0


@pytest.mark.parametrize(
    "kind", [pytest.param("sequences", marks=pytest.mark.slow), "two inputs", "shared", "nested"]
)
def test_all_kinds_of_graphs_are_measured(kind: str) -> None:
    if kind == "sequences":
        inputs = keras.Input((None,), dtype="int32")
        x = layers.LSTM(4)(layers.Embedding(9, 4, mask_zero=True)(inputs))
    elif kind == "two inputs":
        inputs = [keras.Input((4,)), keras.Input((3,), dtype="int32")]
        x = layers.Concatenate()([inputs[0], layers.Flatten()(layers.Embedding(5, 2)(inputs[1]))])
    elif kind == "shared":
        inputs = keras.Input((4,))
        dense = layers.Dense(4)
        x = dense(dense(inputs))
    else:
        inputs = keras.Input((4,))
        inner = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(4)])
        x = inner(layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("sgd", "mse")
    plan = hf.plan(model, batch_size=8, cluster=hf.Cluster(nodes=2))
    assert plan.step_seconds > 0
    assert sum(plan.lpp) == len(flat(model).calls)


def test_costs_of_another_model_are_refused(tmp_path: Path) -> None:
    estimate(flat(blocks(1))).save(tmp_path / "costs.json")
    with pytest.raises(ValueError, match="Costs must be of the model that is planned"):
        hf.plan(blocks(2), batch_size=8, num_ranks=2, costs=tmp_path / "costs.json")
    plan = hf.plan(blocks(1), batch_size=8, num_ranks=2, costs=tmp_path / "costs.json")
    assert plan.costs == "estimated, of a model without an optimizer"


def test_estimates_follow_the_size_of_the_work() -> None:
    small, large = (estimate(flat(blocks(1, width))) for width in (8, 32))
    assert large.forward.sum() > 4 * small.forward.sum()
    assert large.kept.sum() > 3 * small.kept.sum()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "num_ranks"),
        ({"num_ranks": 2, "cluster": hf.Cluster(2, 2)}, "a cluster of 4 ranks"),
        ({"num_ranks": 2, "memory_limit": "much"}, "A size is"),
        ({"num_ranks": 2, "memory_limit": "1KiB"}, "No layout fits"),
        ({"num_ranks": 67}, "No layout has"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        hf.plan(blocks(1), batch_size=8, costs="estimate", **arguments)


def test_a_model_without_a_graph_is_refused() -> None:
    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(ValueError, match="Own"):
        hf.plan(Own(), batch_size=8, num_ranks=2)


def test_a_process_beside_this_one_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPARFLOW_TIMEOUT", "0.5")
    pipe = subprocess.PIPE
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen(silent, stdin=pipe, stdout=pipe, text=True)
    try:
        with pytest.raises(RuntimeError, match=r"has not answered within 0.5 s"):
            Companions([process]).run(4)
        with pytest.raises(RuntimeError, match=r"has not answered within 0.5 s"):
            Companions([process], process).gain_of_all_cores(4, 0.1)
        process.kill()
        with pytest.raises(RuntimeError, match="has ended"):
            Companions([process]).run(4)
    finally:
        process.kill()
        process.communicate()


def _large(width: int = 256, depth: int = 12) -> Any:
    with hf.deferred():
        x = inputs = keras.Input([width])
        for _ in range(depth):
            x = layers.Dense(width, activation="relu")(layers.BatchNormalization()(x))
        model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile("adam", "mse")
    return model


def _has_memory(model: Any) -> list[str]:
    return [v.path for v in model.variables if not is_absent(v)]


@pytest.mark.parametrize("source", ["measure", "estimate"])
def test_a_deferred_model_is_planned_without_its_weights(source: str) -> None:
    model = _large(depth=4 if source == "measure" else 12)
    plan = hf.plan(model, batch_size=8, num_ranks=4, costs=source)
    assert _has_memory(model) == []
    assert plan.gather and "gather" not in plan.arguments
    keras.utils.set_random_seed(1)
    drawn = [v.numpy() for v in _large().variables]
    keras.utils.set_random_seed(1)
    planned = _large()
    hf.plan(planned, batch_size=8, num_ranks=4, costs="estimate")
    assert all(np.array_equal(v, w) for v, w in zip(planned.variables, drawn, strict=True))


def test_what_no_rank_can_hold_whole_is_planned_in_parts() -> None:
    model = _large(width=512)
    whole = 3 * sum(int(np.prod(v.shape)) * 4 for v in model.trainable_variables)
    costs = estimate(flat(model), model.optimizer)
    costs = dataclasses.replace(costs, overheads=FREE)
    more = {"batch_size": 8, "num_ranks": 8, "costs": costs}
    plan = hf.plan(model, memory_limit=int(whole * 0.9), **more)
    assert not plan.gather and plan.arguments["gather"] is False
    assert "build it with hyparflow.deferred()" in str(plan)
    assert max(part.memory.total for part in plan.partitions) < whole * 0.9
    assert hf.plan(model, memory_limit=int(whole * 1.1), **more).gather
    with pytest.raises(ValueError, match="No layout fits in the memory limit"):
        hf.plan(model, memory_limit=int(whole * 0.05), **more)


@pytest.mark.parametrize("gain", [100.0, 0.5, None])
def test_one_process_with_all_cores_is_compared(gain: float | None, tmp_path: Path) -> None:
    model = blocks(2)
    model.compile("sgd", "mse")
    costs = dataclasses.replace(
        estimate(flat(model), model.optimizer), crowd=2, gain_of_all_cores=gain
    )
    costs.save(tmp_path / "costs.json")
    plan = hf.plan(model, batch_size=4096, num_ranks=2, costs=tmp_path / "costs.json")
    plan.save(tmp_path / "plan.json")
    text = " ".join(str(hf.Plan.load(tmp_path / "plan.json")).split())
    assert ("with the cores of all ranks" in text) == (gain is not None)
    assert ("less than ranks do: start one" in text) == (gain == 100.0)
    if gain is not None:
        sizes, over = costs.trained_sizes(range(len(costs.used))), costs.overheads
        rest = over.step + over.apply * sum(sizes) + over.apply_weight * len(sizes)
        expected = (plan.single_seconds - rest) / gain + rest  # the optimizer waits for memory
        assert plan.all_cores_seconds == pytest.approx(expected, rel=1e-6)


def test_an_update_of_more_operations_takes_more_memory() -> None:
    weights = [keras.Variable(np.ones((3, 4), np.float32)) for _ in range(4)]

    def program(optimizer: Any) -> float:
        return measure_overheads(weights, optimizer, call=0.0).program_of_update

    assert program(None) == 0.0
    assert program(keras.optimizers.Adam()) > 2 * program(keras.optimizers.SGD()) > 0.0
