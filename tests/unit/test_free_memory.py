"""How much memory a process may take: cgroup files as Linux has them, and real limits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest

from hyparflow.comm.free_memory import MemoryBound, bounds_of_folder, free_memory, memory_bounds
from hyparflow.engine.weights.certain_gradients import sure_to_be_trained
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.model.variable_sizes import bytes_of, slot_sizes
from hyparflow.training.memory_check import MemoryNeed, too_little

MIB = 1 << 20

FILES = {
    2: ("memory.max", "memory.current", "inactive_file 30\nactive_file 7\nslab_reclaimable 2\n"),
    1: (
        *("memory.limit_in_bytes", "memory.usage_in_bytes"),
        "inactive_file 1\ntotal_inactive_file 30\ntotal_active_file 9\n",
    ),
}


def cgroup(folder: Path, version: int, most: str) -> Path:
    limit, usage, statistics = FILES[version]
    (folder / limit).write_text(f"{most}\n")
    (folder / usage).write_text("400\n")
    (folder / "memory.stat").write_text(statistics)
    return folder


@pytest.mark.parametrize("version", FILES)
def test_a_cgroup_leaves_what_is_not_used_or_can_be_taken_back(
    tmp_path: Path, version: int
) -> None:
    folder = cgroup(tmp_path, version, "1000")
    (found,) = bounds_of_folder(folder, "here")
    assert (found.size, found.what) == (630, "memory cgroup")
    (most,) = bounds_of_folder(folder, "here", swap=50)
    assert most.size == 689  # all files, and swap
    assert most.key == found.key


def test_a_cgroup_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    (found,) = bounds_of_folder(cgroup(tmp_path, 2, "100"), "here")
    assert found.size == 0


def test_a_cgroup_without_a_limit_is_none(tmp_path: Path) -> None:
    assert not list(bounds_of_folder(cgroup(tmp_path, 2, "max"), "here"))
    assert not list(bounds_of_folder(tmp_path / "missing", "here"))


def test_swap_of_a_cgroup_is_limited(tmp_path: Path) -> None:
    folder = cgroup(tmp_path, 2, "1000")
    (folder / "memory.swap.max").write_text("20\n")
    (folder / "memory.swap.current").write_text("5\n")
    (found,) = bounds_of_folder(folder, "here", swap=50)
    assert found.size == 639 + 15


def test_cgroups_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    keys = {b.key for f in folders for b in bounds_of_folder(cgroup(f, 2, "1000"), "here")}
    keys |= {b.key for b in bounds_of_folder(folders[0], "elsewhere")}
    assert len(keys) == 3


def test_the_machine_s_memory_is_a_bound() -> None:
    machine = memory_bounds()[0]
    assert 0 < machine.size <= psutil.virtual_memory().total
    assert free_memory({machine.key: 1 << 10}) <= psutil.virtual_memory().total >> 10


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits as Linux has them")
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_count(name: str) -> None:
    code = f"""
import json, resource, psutil
from hyparflow.comm.free_memory import free_memory, memory_bounds, reserved_by_threads
assert reserved_by_threads() == reserved_by_threads(measuring=True) == 0
used = psutil.Process().memory_info()
field = dict(RLIMIT_AS=used.vms, RLIMIT_DATA=used.data)["{name}"]
resource.setrlimit(resource.{name}, (field + (64 << 20),) * 2)
(bound,) = [b for b in memory_bounds() if b.what == "{name}"]
reserved = reserved_by_threads(), reserved_by_threads(measuring=True)
assert ("{name}" == "RLIMIT_AS") == (0 < reserved[0] < reserved[1])
print(json.dumps([bound.size, free_memory({{}}), free_memory({{bound.key: 2}})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, alone, shared = json.loads(done.stdout)
    assert 32 * MIB < size <= 64 * MIB
    assert alone <= size
    assert shared <= size // 2


@pytest.mark.parametrize(
    ("optimizer", "times"),
    [("adam", 2), (keras.optimizers.SGD(momentum=0.9), 1), ("sgd", 0), ("rmsprop", 1)],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_sizes_of_slots_are_known_before_they_are_made(
    optimizer: Any, times: int, scaled: bool
) -> None:
    weights = [keras.Variable(np.zeros(shape, np.float32)) for shape in ((3, 5), (5,), (3, 5))]
    made = keras.optimizers.get(optimizer)
    if scaled:
        made = keras.optimizers.LossScaleOptimizer(made)
    sizes = slot_sizes(made, weights)
    assert not made.built
    assert [sizes[id(v)] for v in weights] == [times * bytes_of(v) for v in weights]


def test_slots_of_optimizers_of_one_s_own_are_unknown() -> None:
    class Own(keras.optimizers.Adam):
        pass

    assert slot_sizes(Own(), [keras.Variable([1.0])]) == {}


def functional(*last: Any) -> keras.Model:
    x = keras.Input((4,))
    y = keras.layers.Dense(4)(x)
    for layer in last:
        y = layer(y)
    return keras.Model(x, y)


def sure(model: keras.Model) -> set[int]:
    return sure_to_be_trained(model, FlatGraph(model, opened_graph(model)))


def test_gradients_of_keras_s_layers_are_sure() -> None:
    model = functional(keras.layers.BatchNormalization(), lambda x: keras.ops.relu(x + x))
    assert sure(model) == {id(v) for v in model.trainable_variables}


def test_gradients_of_an_embedding_are_not() -> None:
    x = keras.Input((4,), dtype="int32")
    model = keras.Sequential([x, keras.layers.Embedding(9, 2), keras.layers.Dense(1)])
    assert sure(model) == {id(v) for v in model.layers[-1].trainable_variables}


@pytest.mark.parametrize(
    "last", [keras.ops.stop_gradient, keras.layers.Lambda(keras.ops.stop_gradient)]
)
def test_where_gradients_may_stop_none_is_sure(last: Any) -> None:
    assert sure(functional(last, keras.layers.Dense(2))) == set()


def bound(size: int, key: str) -> MemoryBound:
    return MemoryBound(size, "memory cgroup", key)


def test_ranks_of_one_cgroup_need_the_sum() -> None:
    need = MemoryNeed(weights=500 * MIB, gradients=500 * MIB)
    shared = [(need, [bound(1400 * MIB, "one")])] * 2
    assert too_little(shared) == (0, bound(1400 * MIB, "one"), 2)
    apart = [(need, [bound(1400 * MIB, str(rank))]) for rank in range(2)]
    assert too_little(apart) is None


def test_unequal_ranks_of_one_cgroup_are_not_judged_by_equal_shares() -> None:
    large, small = MemoryNeed(weights=900 * MIB), MemoryNeed(weights=50 * MIB)
    assert too_little([(n, [bound(1000 * MIB, "one")]) for n in (large, small)]) is None


def test_what_is_given_back_counts() -> None:
    room = [bound(MIB, "one")]
    need = MemoryNeed(gradients=600 * MIB, slots=600 * MIB)
    assert too_little([(need, room)]) == (0, room[0], 1)
    need = MemoryNeed(gradients=600 * MIB, slots=600 * MIB, freed=1000 * MIB)
    assert too_little([(need, room)]) is None


def test_what_tensors_can_have_again_counts() -> None:
    """In training and at the end, and for the rank that has it: others share what it leaves."""
    room = [bound(500 * MIB, "one")]
    need = MemoryNeed(weights=900 * MIB, at_end=900 * MIB)
    assert too_little([(need, room)]) == (0, room[0], 1)
    assert too_little([(replace(need, pooled=200 * MIB), room)]) is None
    small = MemoryNeed(weights=500 * MIB)
    assert too_little([(replace(need, pooled=200 * MIB), room), (small, room)]) is not None
    assert too_little([(replace(need, pooled=600 * MIB), room), (small, room)]) is None


def test_the_end_counts_alone() -> None:
    """Gradients are gone when all ranks get all weights."""
    room = [bound(600 * MIB, "one")]
    assert too_little([(MemoryNeed(weights=500 * MIB, at_end=800 * MIB), room)]) is None
    assert too_little([(MemoryNeed(weights=500 * MIB, at_end=900 * MIB), room)]) is not None
