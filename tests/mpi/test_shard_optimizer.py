"""Optimizer state sharded over replicas: plain Keras's numbers, and each slot in one place."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, fit_on_leader, grids, on_leader, require_none
from sharded import bytes_held, unlike

import hyparflow as hf

pytestmark = pytest.mark.usefixtures("in_float64")

RANDOM = np.random.default_rng(0)
ROWS, LABELS = RANDOM.normal(size=(24, 6)), RANDOM.normal(size=(24, 3))
TOKENS = RANDOM.integers(1, 11, size=(24, 6))


def slow(*arguments: Any) -> Any:
    """Arguments for which another test shows nearly the same."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


GRIDS = pytest.mark.parametrize("grid", [g for g in grids(WORLD.size) if g[1] > 1], ids=str)
ON_2 = pytest.mark.on_ranks(2)  # 4 ranks show no more of one optimizer, model or callback


def blocks() -> Any:
    """Blocks that repeat, whose updates are compiled once."""
    x = inputs = keras.Input([6])
    x = keras.layers.Dense(8)(x)
    for _ in range(3):
        inner = keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2")(x)
        x = keras.layers.Add()([x, keras.layers.Dense(8)(inner)])
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def build(optimizer: Any = "adam", make: Callable[[], Any] = blocks, metrics: Any = None) -> Any:
    keras.utils.set_random_seed(5)
    model = make()
    model.compile(optimizer, "mse", metrics=metrics)
    return model


def layout(grid: tuple[int, int]) -> dict[str, Any]:
    numbers = {"num_partitions": grid[0], "num_replicas": grid[1], "num_microbatches": 1}
    return numbers | {"shard_optimizer": True}


def fit(model: Any, grid: tuple[int, int], rows: Any = ROWS, **more: Any) -> Any:
    keras.utils.set_random_seed(1)
    kept = {"batch_size": 12, "verbose": 0} | layout(grid) | more
    return hf.fit(model, rows, LABELS, **kept)


def plain_fit(model: Any, rows: Any = ROWS, **more: Any) -> dict[str, list[float]]:
    keras.utils.set_random_seed(1)
    return fit_on_leader(model, rows, LABELS, **{"batch_size": 12, "verbose": 0} | more)


def state(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


class At(keras.callbacks.Callback):
    """Calls a function with the model at a hook, on the leader."""

    def __init__(self, function: Callable[[Any], Any], hook: str = "on_epoch_end") -> None:
        super().__init__()
        self.found: list[Any] = []
        setattr(self, hook, lambda *args, **kwargs: self.found.append(function(self.model)))


@GRIDS
def test_each_slot_is_in_one_place(grid: tuple[int, int]) -> None:
    plain, model = (build(metrics=["mae"]) for _ in range(2))
    memory = At(bytes_held, "on_train_batch_end")
    expected = [plain_fit(plain, epochs=2)["loss"]]
    parts = {"num_microbatches": 2, "gather": False}
    found = [fit(model, grid, epochs=2, callbacks=[memory], **parts).history["loss"]]
    held = sum(WORLD.allgather(bytes_held(model)))
    evaluated, predicted = on_leader(
        lambda: (plain.evaluate(ROWS, LABELS, verbose=0), plain.predict(ROWS, verbose=0))
    )
    expected += [np.array(evaluated), predicted]
    more = layout(grid) | parts | {"verbose": 0}
    found += [np.array(hf.evaluate(model, ROWS, LABELS, **more)), hf.predict(model, ROWS, **more)]
    expected += [plain_fit(plain)["loss"]]
    found += [fit(model, grid, num_microbatches=2).history["loss"]]
    whole = bytes_held(plain)
    faults = unlike(found, expected) + unlike(state(model), state(plain))
    if held != whole:
        faults.append(f"{held} bytes of slots on all ranks, not {whole}")
    if grid[0] == 1 and any(seen > 0.6 * whole for seen in memory.found):
        faults.append(f"{memory.found} bytes on the leader of {whole}")
    require_none(faults, "sharded")


@GRIDS
def test_the_same_bits_as_without(grid: tuple[int, int]) -> None:
    model, other = build(), build()
    fit(model, grid, epochs=2)
    fit(other, grid, epochs=2, shard_optimizer=False)
    same = [np.array_equal(a, b) for a, b in zip(state(model), state(other), strict=True)]
    close = unlike(state(model), state(other))
    require_none(close if WORLD.size > 2 else [] if all(same) else [str(same)], "bits")


def excluding() -> Any:
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


SCHEDULE = keras.optimizers.schedules.ExponentialDecay
K = keras.optimizers
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "momentum, clipnorm": lambda: K.SGD(0.1, momentum=0.9, nesterov=True, clipnorm=0.1),
    "global clipnorm": lambda: K.Adam(global_clipnorm=0.1),
    "clipvalue, schedule": lambda: K.RMSprop(SCHEDULE(0.01, 2, 0.5), clipvalue=0.01, centered=True),
    "decay with exceptions": excluding,
    "averages": lambda: K.Adam(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
    "accumulated": lambda: K.Adam(gradient_accumulation_steps=2, global_clipnorm=0.1),
    "scaled": lambda: K.LossScaleOptimizer(K.Adam(global_clipnorm=0.1), dynamic_growth_steps=2),
    "adafactor": lambda: K.Adafactor(0.01),
    "nadam": lambda: K.Nadam(0.01),
    "lamb": lambda: K.Lamb(0.01),
    "muon": lambda: K.Muon(0.01),
    "ftrl": lambda: K.Ftrl(0.01),
}


# Others differ in formulas for one weight, which Keras computes, and take 5 s each to compile.
USUAL = ("momentum, clipnorm", "decay with exceptions", "averages", "scaled")


@ON_2
@pytest.mark.parametrize(
    "name",
    [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS],
)
@GRIDS
def test_optimizers(name: str, grid: tuple[int, int]) -> None:
    plain, model = build(OPTIMIZERS[name]()), build(OPTIMIZERS[name]())
    plain_fit(plain, epochs=2)
    fit(model, grid, epochs=2)
    require_none(unlike(state(model), state(plain)), name)


def _scaled(scale: float) -> Any:
    return K.LossScaleOptimizer(K.SGD(0.1, momentum=0.9), scale, dynamic_growth_steps=2)


class Overflowing(keras.layers.Layer):
    """Its gradient is infinite while the loss is scaled by more than about 2 ** 95."""

    def call(self, x: Any) -> Any:
        return x * 1e-280 * 1e280


@GRIDS
def test_an_overflow_skips_the_step_on_all_ranks(grid: tuple[int, int]) -> None:
    def make() -> Any:
        inputs = keras.Input([6])
        x = Overflowing()(keras.layers.Dense(5)(keras.layers.Dense(4)(inputs)))
        return keras.Model(inputs, keras.layers.Dense(3)(x))

    plain, model = build(_scaled(2.0**100), make), build(_scaled(2.0**100), make)
    plain_fit(plain, epochs=4)
    fit(model, grid, epochs=4)
    faults = unlike(state(model), state(plain))
    if float(plain.optimizer.dynamic_scale) == 2.0**100 * 2**4:
        faults.append("nothing overflowed")
    require_none(faults, "overflow")


def small() -> Any:
    """Fewer weights than replicas: some update none, for what has a constraint is not divided."""
    inputs = keras.Input([6])
    dense = keras.layers.Dense(3, use_bias=False, kernel_constraint="max_norm")
    return keras.Model(inputs, dense(inputs))


@pytest.mark.parametrize("name", ["scaled", slow("global clipnorm"), slow("nadam")])
def test_replicas_without_weights(name: str) -> None:
    plain, model = build(OPTIMIZERS[name](), small), build(OPTIMIZERS[name](), small)
    plain_fit(plain, epochs=2)
    fit(model, (1, WORLD.size), epochs=2)
    require_none(unlike(state(model), state(plain)), name)


def lookups() -> Any:
    tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(11, 4, mask_zero=True)(tokens)
    x = keras.layers.LSTM(4, kernel_constraint="max_norm", activity_regularizer="l2")(x)
    return keras.Model(tokens, keras.layers.Dense(3)(x))


def common() -> Any:
    inputs = keras.Input([6])
    shared = keras.layers.Dense(6, activation="tanh", kernel_regularizer="l2")
    x = shared(inputs)
    for _ in range(4):
        x = keras.layers.Dense(6, activation="tanh")(x)
    frozen = keras.layers.Dense(6, trainable=False)
    return keras.Model(inputs, keras.layers.Dense(3)(frozen(shared(x))))


def unused() -> Any:
    """A weight without a gradient."""

    class Spare(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.spare = self.add_weight(shape=[40, 40], name="spare")

        def call(self, x: Any) -> Any:
            return x

    inputs = keras.Input([6])
    return keras.Model(inputs, keras.layers.Dense(3)(Spare()(inputs)))


@pytest.mark.parametrize("make", [lookups, common, slow(unused)])
@GRIDS
def test_models(make: Callable[[], Any], grid: tuple[int, int]) -> None:
    rows = TOKENS if make is lookups else ROWS
    optimizers = [K.Adam(0.01, global_clipnorm=0.5) for _ in range(2)]
    plain, model = build(optimizers[0], make), build(optimizers[1], make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the weight without a gradient
        plain_fit(plain, rows)
        fit(model, grid, rows)
    require_none(unlike(state(model), state(plain)), make.__name__)


@ON_2
def test_compressed_sums_are_those_without() -> None:
    model, other = build(), build()
    fit(model, (1, WORLD.size), compression="bf16")
    fit(other, (1, WORLD.size), compression="bf16", shard_optimizer=False)
    require_none(unlike(state(model), state(other)), "bf16")


def _slots(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in model.optimizer.variables]


def _halve_slots(model: Any) -> None:
    for variable in model.optimizer.variables[2:]:
        variable.assign(variable / 2)


@ON_2
@pytest.mark.parametrize("function", [slow(_slots), _halve_slots])
@GRIDS
def test_what_callbacks_read_and_write(function: Any, grid: tuple[int, int]) -> None:
    plain, model, ours, theirs = build(), build(), At(function), At(function)
    rates = [keras.callbacks.ReduceLROnPlateau("loss", 0.5, 1, min_delta=9.0) for _ in range(2)]
    plain_fit(plain, epochs=3, callbacks=[theirs, rates[0]])
    fit(model, grid, epochs=3, callbacks=[ours, rates[1]])
    found, expected = [], []
    if WORLD.rank == 0 and function is _slots:
        found, expected = keras.tree.flatten(ours.found), keras.tree.flatten(theirs.found)
    require_none(unlike(found, expected) + unlike(state(model), state(plain)), "callbacks")


@ON_2
@GRIDS
def test_saved_models_have_all_slots(grid: tuple[int, int], tmp_path_factory: Any) -> None:
    folder = on_leader(lambda: str(tmp_path_factory.mktemp("saved")))
    plain, model = build(), build()
    plain_fit(plain)
    saving = keras.callbacks.ModelCheckpoint(f"{folder}/checkpoint.keras")
    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup", delete_checkpoint=False)
    fit(model, grid, gather=False, callbacks=[saving, backup])
    hf.parallelize(model, **layout(grid)).save(f"{folder}/model.keras")
    faults = []
    for name in ("checkpoint", "model"):
        faults += unlike(state(keras.models.load_model(f"{folder}/{name}.keras")), state(plain))
    again = build()  # goes on after the first epoch
    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup")
    fit(again, grid, epochs=2, callbacks=[backup])
    faults += unlike([again.optimizer.iterations.numpy()], [4])
    plain_fit(plain, initial_epoch=1, epochs=2)
    require_none(faults + unlike(_slots(again), _slots(plain)), "saved")


class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class OwnApply(keras.optimizers.SGD):
    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        return super().apply(grads, trainable_variables)


class OwnUpdate(keras.optimizers.SGD):
    """Each weight by itself: works."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(2 * gradient, variable, learning_rate)


class OwnShared(keras.optimizers.SGD):
    """Divides by what the gradients of all weights have made."""

    def build(self, variables: Any) -> None:
        if not self.built:
            super().build(variables)
            self.total = self.add_variable((), name="total")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.assign_add(self.total, keras.ops.sum(keras.ops.square(gradient)))
        super().update_step(gradient / (1.0 + self.total), variable, learning_rate)


class OwnSchedule(keras.optimizers.SGD):
    """Writes the same for each weight."""

    def build(self, variables: Any) -> None:
        if not self.built:
            super().build(variables)
            self.factor = self.add_variable((), name="factor")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.assign(self.factor, 1.0 / (1.0 + keras.ops.cast(self.iterations, "float64")))
        super().update_step(gradient * self.factor, variable, learning_rate)


def own_step() -> Any:
    inputs = keras.Input([6])
    return OwnStep(inputs, keras.layers.Dense(3)(inputs))


@ON_2
def test_what_cannot_be_sharded_is_refused() -> None:
    more = {"num_microbatches": 1}
    with pytest.raises(ValueError, match="updates all weights on each replica"):
        fit(build(make=own_step), (1, WORLD.size), **more)
    with pytest.raises(ValueError, match="with its own `apply`, and shard_optimizer=True"):
        fit(build(OwnApply()), (1, WORLD.size))
    with pytest.raises(ValueError, match=r"whose `update_step` writes \['total'\] for more than"):
        fit(build(OwnShared()), (1, WORLD.size))
    for make in (OwnUpdate, OwnSchedule):
        plain, model = build(make(0.01, momentum=0.9)), build(make(0.01, momentum=0.9))
        plain_fit(plain, epochs=2)
        fit(model, (1, WORLD.size), epochs=2)
        require_none(unlike(state(model), state(plain)), make.__name__)


@ON_2
def test_what_partitions_cannot_update_is_refused() -> None:
    more = {"num_partitions": WORLD.size, "num_replicas": 1, "shard_optimizer": False}
    with pytest.raises(ValueError, match=f"its own `apply`, and {WORLD.size} partitions"):
        fit(build(OwnApply()), (1, 1), **more)
    with pytest.raises(ValueError, match=r"whose `update_step` writes \['total'\] for more than"):
        fit(build(OwnShared()), (1, 1), **more)
    plain, model = build(OwnSchedule(0.01, momentum=0.9)), build(OwnSchedule(0.01, momentum=0.9))
    plain_fit(plain, epochs=2)
    fit(model, (1, 1), epochs=2, **more)
    require_none(unlike(state(model), state(plain)), "the same for each weight")


@ON_2
def test_one_replica_has_nothing_to_shard(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hyparflow"):
        fit(build(), (WORLD.size, 1), verbose=2)
    said = [r.message for r in caplog.records if "gives back no memory" in r.message]
    assert len(said) == (WORLD.rank == 0)
