"""Optimizer state of weights that are divided: plain Keras's numbers, and even shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, grids, on_leader, require_none
from sharded import bytes_held, unlike

import hyparflow as hf

pytestmark = pytest.mark.usefixtures("in_float64")

K = keras.optimizers
RANDOM = np.random.default_rng(0)
ROWS, LABELS = RANDOM.normal(size=(24, 6)), RANDOM.normal(size=(24, 3))
TOKENS = RANDOM.integers(0, 9, size=(24, 6))  # the first rows alone: some replica looks up none
PICTURES = RANDOM.normal(size=(24, 6, 6, 5))

GRIDS = pytest.mark.parametrize("grid", [g for g in grids(WORLD.size) if g[1] > 1], ids=str)
ON_2 = pytest.mark.on_ranks(2)  # 4 ranks show no more of one optimizer or model


def slow(*arguments: Any) -> Any:
    """Arguments for which another test shows nearly the same."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


def one_large() -> Any:
    """A table with most of all weights, beside blocks that repeat."""
    tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(200, 8, name="table")(tokens)
    for _ in range(2):
        x = keras.layers.Add()([x, keras.layers.Dense(8, activation="tanh")(x)])
    return keras.Model(tokens, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


def three_alike() -> Any:
    x = inputs = keras.Input([6])
    x = keras.layers.Dense(30, use_bias=False)(x)
    for _ in range(3):
        x = keras.layers.Dense(30, activation="tanh", kernel_regularizer="l2")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def few_rows() -> Any:
    """Weights with few rows along their first axis, which are divided flat."""
    inputs = keras.Input([6, 6, 5])
    both = keras.regularizers.L1L2(0.01, 0.02)
    x = keras.layers.Conv2D(17, 3, use_bias=False, kernel_regularizer=both)(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling2D()(x)))


def short_table() -> Any:
    """A table with few rows, which has sparse gradients and is divided flat."""
    tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(9, 40)(tokens)
    return keras.Model(tokens, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling1D()(x)))


def tied() -> Any:
    """A table at both ends of the model: with partitions, two of them hold it."""
    tokens = keras.Input([6], dtype="int32")
    table = keras.layers.ReversibleEmbedding(150, 8)
    x = keras.layers.Dense(8, activation="tanh")(table(tokens))
    for _ in range(2):
        x = keras.layers.Dense(8, activation="tanh")(x)
    x = table(x, reverse=True)
    return keras.Model(tokens, keras.layers.GlobalAveragePooling1D()(x)[:, :3])


def positions() -> Any:
    """A table that all samples look up alike."""

    class Positions(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.table = keras.layers.Embedding(80, 8)
            self.table.build((None,))

        def call(self, x: Any) -> Any:
            return x + self.table(keras.ops.arange(keras.ops.shape(x)[1]))[None]

    tokens = keras.Input([6], dtype="int32")
    x = Positions()(keras.layers.Embedding(9, 8)(tokens))
    return keras.Model(tokens, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


INPUTS: dict[Any, Any] = {
    three_alike: ROWS,
    few_rows: PICTURES,
    one_large: TOKENS,
    short_table: TOKENS,
    tied: TOKENS,
    positions: TOKENS,
}
MODELS = list(INPUTS)


def build(make: Callable[[], Any], optimizer: Any = "adam") -> Any:
    keras.utils.set_random_seed(5)
    model = make()
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def layout(grid: tuple[int, int]) -> dict[str, Any]:
    numbers = {"num_partitions": grid[0], "num_replicas": grid[1], "num_microbatches": 1}
    return numbers | {"shard_optimizer": True}


def fit(model: Any, grid: tuple[int, int], make: Any, **more: Any) -> Any:
    keras.utils.set_random_seed(1)
    kept = {"batch_size": 12, "verbose": 0} | layout(grid) | more
    return hf.fit(model, INPUTS[make], LABELS, **kept)


def state(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def plain(make: Any, *calls: dict[str, Any], optimizer: Callable[[], Any] = K.Adam) -> list[Any]:
    """The loss and the state after each of several calls of plain `fit`, of one model."""

    def train() -> list[Any]:
        model, found = build(make, optimizer()), []
        for more in calls:
            keras.utils.set_random_seed(1)
            kept = {"batch_size": 12, "verbose": 0} | more
            loss = model.fit(INPUTS[make], LABELS, **kept).history["loss"]
            found.append([np.array(loss), *state(model)])
        return found

    return list(on_leader(train))


def uneven(model: Any, replicas: int) -> list[str]:
    """The ranks that hold more than their share of the slots of a model without partitions."""
    whole = sum(int(np.prod(v.shape)) * 8 for v in model.optimizer.variables if len(v.shape))
    held = WORLD.allgather(bytes_held(model))
    fair = 1.1 * whole / replicas
    return [] if sum(held) == whole and max(held) <= fair else [f"{held} bytes of {whole}"]


@pytest.mark.parametrize("make", MODELS)
@GRIDS
def test_models(make: Any, grid: tuple[int, int]) -> None:
    """Twice: the second call begins where the first has left the slots."""
    first, second = plain(make, {"epochs": 2}, {})
    model = build(make)
    found = [fit(model, grid, make, epochs=2, gather=False, num_microbatches=2).history["loss"]]
    faults = uneven(model, grid[1]) if grid[0] == 1 else []
    found += [fit(model, grid, make, num_microbatches=2).history["loss"]]
    faults += unlike(found, [first[0], second[0]]) + unlike(state(model), second[1:])
    require_none(faults, make.__name__)


@GRIDS
def test_partitions_have_even_shares(grid: tuple[int, int]) -> None:
    model = build(one_large)
    fit(model, grid, one_large, gather=False)
    held = WORLD.allgather(bytes_held(model))
    columns = [held[partition :: grid[0]] for partition in range(grid[0])]
    require_none([str(c) for c in columns if max(c) > 1.1 * sum(c) / grid[1]], "shares")


@ON_2
@pytest.mark.parametrize("make", [three_alike, slow(few_rows), one_large])
def test_the_same_bits_as_without(make: Any) -> None:
    model, other = build(make), build(make)
    fit(model, (1, 2), make, epochs=2)
    fit(other, (1, 2), make, epochs=2, shard_optimizer=False)
    same = [np.array_equal(a, b) for a, b in zip(state(model), state(other), strict=True)]
    require_none([] if all(same) else [str(same)], "bits")


def excluding() -> Any:
    optimizer = K.AdamW(0.01, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["embeddings", "kernel"])
    return optimizer


SCHEDULE = K.schedules.ExponentialDecay
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: K.SGD(0.1),
    "nesterov": lambda: K.SGD(0.1, momentum=0.9, nesterov=True),
    "global clipnorm": lambda: K.Adam(0.01, amsgrad=True, global_clipnorm=0.1),
    "decay": lambda: K.AdamW(0.01, weight_decay=0.1),
    "decay with exceptions": excluding,
    "adamax": lambda: K.Adamax(0.01),
    "nadam": lambda: K.Nadam(0.01),
    "clipvalue, schedule": lambda: K.RMSprop(
        SCHEDULE(0.01, 2, 0.5), momentum=0.5, clipvalue=0.01, centered=True
    ),
    "adagrad": lambda: K.Adagrad(0.1),
    "adadelta": lambda: K.Adadelta(0.1),
    "ftrl": lambda: K.Ftrl(0.1, l1_regularization_strength=0.01),
    "lion": lambda: K.Lion(0.01),
    "accumulated": lambda: K.Adam(0.01, gradient_accumulation_steps=2, global_clipnorm=0.1),
    "scaled": lambda: K.LossScaleOptimizer(K.Adam(0.01, global_clipnorm=0.1), 2.0**8, 2),
}
# The others differ in formulas of Keras's, and take 5 s each to compile.
USUAL = ("nesterov", "decay with exceptions", "accumulated", "scaled")


@ON_2
@pytest.mark.parametrize("make", [one_large, three_alike])
@pytest.mark.parametrize("name", [n if n in USUAL else slow(n) for n in OPTIMIZERS])
def test_optimizers(name: str, make: Any) -> None:
    _, expected = plain(make, {"epochs": 2}, {}, optimizer=OPTIMIZERS[name])
    model = build(make, OPTIMIZERS[name]())
    fit(model, (1, 2), make, epochs=2, gather=False)
    faults = uneven(model, 2)
    fit(model, (1, 2), make)
    require_none(faults + unlike(state(model), expected[1:]), name)


class At(keras.callbacks.Callback):
    """Calls a function with the model at a hook, on the leader."""

    def __init__(self, function: Callable[[Any], Any], hook: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        setattr(self, hook, lambda *args, **kwargs: self.found.append(function(self.model)))


class OwnUpdate(K.SGD):
    """By the whole gradient of a weight."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        largest = keras.ops.max(keras.ops.abs(gradient))
        super().update_step(gradient / (1 + largest), variable, learning_rate)


class Largest(keras.regularizers.Regularizer):
    def __call__(self, x: Any) -> Any:
        return 0.1 * keras.ops.max(keras.ops.abs(x))


def constrained() -> Any:
    inputs = keras.Input([6])
    x = keras.layers.Dense(50, kernel_constraint="unit_norm")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, kernel_regularizer=Largest())(x))


INPUTS[constrained] = ROWS
WHOLE: dict[str, Callable[[], Any]] = {
    "clipnorm": lambda: K.Adam(0.01, clipnorm=0.1),
    "lamb": lambda: K.Lamb(0.01),
    "muon": lambda: K.Muon(0.01),
    "adafactor": lambda: K.Adafactor(0.01),
    "averages": lambda: K.Adam(0.01, use_ema=True),
    "own": lambda: OwnUpdate(0.1, momentum=0.9),
    "constraint": lambda: K.Adam(0.01),
}


@ON_2
@pytest.mark.parametrize("name", [n if n in ("clipnorm", "own") else slow(n) for n in WHOLE])
def test_what_needs_whole_weights_has_them(name: str) -> None:
    make = constrained if name == "constraint" else three_alike
    (expected,) = plain(make, {"epochs": 2}, optimizer=WHOLE[name])
    model = build(make, WHOLE[name]())
    fit(model, (1, 2), make, epochs=2)
    require_none(unlike(state(model), expected[1:]), name)


@ON_2
def test_what_needs_whole_weights_is_refused_when_they_are_divided() -> None:
    def clip(model: Any) -> None:
        model.optimizer.clipnorm = 0.1

    with pytest.raises(ValueError, match="shard_optimizer=True has divided take no `clipnorm`"):
        fit(build(three_alike), (1, 2), three_alike, callbacks=[At(clip, "on_train_begin")])


class Overflowing(keras.layers.Layer):
    """Its gradient is infinite while the loss is scaled by more than about 2 ** 95."""

    def call(self, x: Any) -> Any:
        return x * 1e-280 * 1e280


def overflowing() -> Any:
    inputs = keras.Input([6])
    x = Overflowing()(keras.layers.Dense(80)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


INPUTS[overflowing] = ROWS


@GRIDS
def test_an_overflow_skips_the_step_on_all_ranks(grid: tuple[int, int]) -> None:
    def scaled() -> Any:
        return K.LossScaleOptimizer(K.SGD(0.1, momentum=0.9), 2.0**100, dynamic_growth_steps=2)

    (expected,) = plain(overflowing, {"epochs": 4}, optimizer=scaled)
    model = build(overflowing, scaled())
    fit(model, grid, overflowing, epochs=4)
    faults = unlike(state(model), expected[1:])
    if float(model.optimizer.dynamic_scale) == 2.0**100 * 2**4:
        faults.append("nothing overflowed")
    require_none(faults, "overflow")


@ON_2
@pytest.mark.parametrize("make", [one_large, slow(three_alike)])
def test_compressed_sums_are_those_without(make: Any) -> None:
    model, other = build(make), build(make)
    fit(model, (1, 2), make, compression="bf16")
    fit(other, (1, 2), make, compression="bf16", shard_optimizer=False)
    require_none(unlike(state(model), state(other)), "bf16")


def _halve_slots(model: Any) -> None:
    model.get_weights()
    for variable in model.optimizer.variables[2:]:
        variable.assign(variable / 2)


def _slots(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in model.optimizer.variables]


@pytest.mark.parametrize("hook", ["on_epoch_end", slow("on_train_batch_end"), slow("on_train_end")])
@pytest.mark.parametrize("function", [slow(_slots), _halve_slots])
@GRIDS
def test_what_callbacks_read_and_write(function: Any, hook: str, grid: tuple[int, int]) -> None:
    theirs, ours = At(function, hook), At(function, hook)
    (expected,) = plain(one_large, {"epochs": 2, "callbacks": [theirs]})
    model = build(one_large)
    fit(model, grid, one_large, epochs=2, callbacks=[ours])
    faults = unlike(state(model), expected[1:])
    if WORLD.rank == 0 and function is _slots:
        faults += unlike(keras.tree.flatten(ours.found), keras.tree.flatten(theirs.found))
    require_none(faults, "callbacks")


@GRIDS
def test_saved_models_have_all_slots(grid: tuple[int, int], tmp_path_factory: Any) -> None:
    """The job goes on, with as many replicas and with others."""
    folder = on_leader(lambda: str(tmp_path_factory.mktemp("saved")))
    second = {"initial_epoch": 1, "epochs": 2}
    once, twice = plain(one_large, {}, second)
    model = build(one_large)
    saving = keras.callbacks.ModelCheckpoint(f"{folder}/checkpoint.keras")
    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup", delete_checkpoint=False)
    fit(model, grid, one_large, gather=False, callbacks=[saving, backup])
    hf.parallelize(model, **layout(grid)).save(f"{folder}/model.keras")
    faults = []
    for name in ("checkpoint", "model"):
        faults += unlike(state(keras.models.load_model(f"{folder}/{name}.keras")), once[1:])
    again, loaded = build(one_large), keras.models.load_model(f"{folder}/model.keras")
    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup", delete_checkpoint=False)
    fit(again, grid, one_large, epochs=2, callbacks=[backup])
    fit(loaded, (1, WORLD.size), one_large, **second)
    fit(model, (WORLD.size, 1), one_large, **second, shard_optimizer=False)
    for one in (again, loaded, model):
        faults += unlike(state(one), twice[1:])
    require_none(faults, "saved")


@GRIDS
def test_slots_that_were_left_go_on_in_another_layout(grid: tuple[int, int]) -> None:
    order = [grid, *(g for g in grids(WORLD.size) if g != grid), grid]
    *_, expected = plain(three_alike, *({} for _ in range(len(order) + 1)))
    model = build(three_alike)
    for one in order:
        fit(model, one, three_alike, gather=False)
    fit(model, grid, three_alike)
    require_none(unlike(state(model), expected[1:]), "layouts")


@GRIDS
def test_deferred_weights(grid: tuple[int, int]) -> None:
    _, expected = plain(tied, {}, {})
    with hf.deferred():
        model = build(tied)
    fit(model, grid, tied, gather=False)
    hf.evaluate(model, TOKENS, LABELS, verbose=0, gather=False, **layout(grid))
    fit(model, grid, tied)
    require_none(unlike(state(model), expected[1:]), "deferred")
