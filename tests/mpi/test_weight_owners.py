"""Ranks have memory for the weights of their own partition, and the numbers stay plain Keras's."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, fit_on_leader, grids, on_leader, require_none

import hyparflow as hf
from hyparflow.model.keras_internals.deferred_variables import is_absent

pytestmark = pytest.mark.usefixtures("in_float64")

RANDOM = np.random.default_rng(0)
ROWS, LABELS = RANDOM.normal(size=(24, 6)), RANDOM.normal(size=(24, 3))
PARTED = [(p, r) for p, r in grids(WORLD.size) if p > 1]


def slow(*arguments: Any) -> Any:
    """Arguments for which another test shows nearly the same."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


GRIDS = pytest.mark.parametrize("grid", PARTED, ids=str)
LAYERS = 8  # with two weights each


def dense_layers() -> Any:
    x = inputs = keras.Input([6])
    for width in (8, 7, 9, 8, 6, 7, 5):
        x = keras.layers.Dense(width, activation="tanh", kernel_regularizer="l2")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def build(
    deferred: bool, optimizer: Any = "adam", make: Any = dense_layers, metrics: Any = None
) -> Any:
    keras.utils.set_random_seed(5)
    if deferred:
        with hf.deferred():
            model = make()
    else:
        model = make()
    model.compile(optimizer, "mse", metrics=metrics)
    return model


def fit(model: Any, grid: tuple[int, int], rows: Any = ROWS, **more: Any) -> Any:
    keras.utils.set_random_seed(1)
    kept = {"batch_size": 12, "verbose": 0} | more
    return hf.fit(model, rows, LABELS, **kept, **layout(grid))


def layout(grid: tuple[int, int]) -> dict[str, Any]:
    return {"num_partitions": grid[0], "num_replicas": grid[1], "num_microbatches": 2}


def plain_fit(model: Any, rows: Any = ROWS, **more: Any) -> dict[str, list[float]]:
    keras.utils.set_random_seed(1)
    return fit_on_leader(model, rows, LABELS, **{"batch_size": 12, "verbose": 0} | more)


def state(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def absent(model: Any) -> int:
    return sum(is_absent(v) for v in model.weights)


def unlike(found: Any, expected: Any) -> list[str]:
    pairs = list(zip(found, expected, strict=True))
    odd = [n for n, (a, b) in enumerate(pairs) if not np.allclose(a, b, rtol=1e-10, atol=1e-12)]
    return [f"{n}: {pairs[n][0]} not {pairs[n][1]}" for n in odd]


class At(keras.callbacks.Callback):
    """Calls a function with the model at some hooks, on the leader."""

    def __init__(self, function: Callable[[Any], Any], hook: str = "on_train_batch_end") -> None:
        super().__init__()
        self.found: list[Any] = []
        setattr(self, hook, lambda *args, **kwargs: self.found.append(function(self.model)))


@pytest.mark.parametrize(
    ("deferred", "optimizer"),
    [(True, "adam"), (False, "adafactor"), slow(True, "adafactor"), slow(False, "adam")],
)
@GRIDS
def test_numbers_and_memory(deferred: bool, optimizer: str, grid: tuple[int, int]) -> None:
    plain = build(False, optimizer, metrics=["mae"])
    expected = plain_fit(plain, epochs=2)
    model, memory = build(deferred, optimizer, metrics=["mae"]), At(absent)
    history = fit(model, grid, epochs=2, callbacks=[memory]).history
    faults = unlike(history.values(), expected.values()) + unlike(state(model), state(plain))
    least = LAYERS * 2 * (grid[0] - 1) // grid[0] - 4
    if WORLD.rank == 0 and not (memory.found and min(memory.found) >= least):
        faults.append(f"absent on the leader: {memory.found}")
    require_none(faults, "after fit")


@pytest.mark.parametrize("deferred", [True, slow(False)])
@GRIDS
def test_weights_stay_at_their_owners(
    deferred: bool, grid: tuple[int, int], tmp_path_factory: Any
) -> None:
    plain, model = build(False, metrics=["mae"]), build(deferred, metrics=["mae"])
    expected = [plain_fit(plain)["loss"], on_leader(lambda: plain.predict(ROWS, verbose=0))]
    evaluated = on_leader(lambda: plain.evaluate(ROWS, LABELS, verbose=0, batch_size=12))
    expected += [np.array(evaluated), plain_fit(plain)["loss"]]
    more = layout(grid)
    found = [fit(model, grid, gather=False).history["loss"]]
    left = [absent(model)]
    found += [hf.predict(model, ROWS, verbose=0, **more)]
    left.append(absent(model))
    found += [np.array(hf.evaluate(model, ROWS, LABELS, verbose=0, batch_size=12, **more))]
    left.append(absent(model))
    found += [fit(model, grid, gather=False).history["loss"]]
    left.append(absent(model))
    path = on_leader(lambda: str(tmp_path_factory.mktemp("saved") / "m.keras"))
    hf.parallelize(model, **layout(grid)).save(path)
    left.append(absent(model))
    loaded = keras.models.load_model(path)
    hf.parallelize(model, **layout(grid)).export(path.removesuffix(".keras"), verbose=False)
    left.append(absent(model))
    saved = tf.saved_model.load(path.removesuffix(".keras"))
    faults = unlike(
        [np.array(saved.serve(ROWS))], [on_leader(lambda: plain.predict(ROWS, verbose=0))]
    )
    faults += unlike(found, expected) + unlike(state(loaded), state(plain))
    least = LAYERS * 2 * (grid[0] - 1) // grid[0] - 4
    if min(left) < least:
        faults.append(f"absent: {left}, not {least}")
    with pytest.raises(RuntimeError, match="A rank has memory only for the weights of its own"):
        model.get_weights()
    fit(model, grid)
    plain_fit(plain)
    require_none(faults + unlike(state(model), state(plain)), "at their owners")


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("second", [(1, 4), (2, 2), (4, 1)], ids=str)
def test_another_layout_afterwards(second: tuple[int, int]) -> None:
    plain, model = build(False), build(True)
    first = (4, 1) if second != (4, 1) else (2, 2)
    fit(model, first, gather=False)
    fit(model, second, gather=False)
    fit(model, second)
    for _ in range(3):
        plain_fit(plain)
    require_none(unlike(state(model), state(plain)), "after three calls")


def _all_values(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in model.weights]


READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "one by one": ("on_train_batch_end", _all_values),
    "get_weights": ("on_train_batch_end", lambda model: model.get_weights()),
    "a call": ("on_train_batch_end", lambda model: np.asarray(model(ROWS[:2]))),
    "slots": ("on_epoch_end", lambda model: [v.numpy() for v in model.optimizer.variables]),
}


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("name", ["get_weights", slow("one by one"), slow("a call"), slow("slots")])
@GRIDS
def test_what_callbacks_read(name: str, grid: tuple[int, int]) -> None:
    hook, read = READERS[name]
    plain, model, ours, theirs = build(False), build(True), At(read, hook), At(read, hook)
    plain_fit(plain, epochs=2, callbacks=[theirs])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, grid, epochs=2, callbacks=[ours], gather=False)
    found = keras.tree.flatten(ours.found) if WORLD.rank == 0 else []
    expected = keras.tree.flatten(theirs.found) if WORLD.rank == 0 else []
    faults = unlike(found, expected)
    if absent(model) < 4:
        faults.append(f"absent: {absent(model)}")
    require_none(faults, name)


def _set_half(model: Any) -> None:
    model.set_weights([value / 2 for value in model.get_weights()])


def _assign_half(model: Any) -> None:
    for variable in model.weights:
        variable.assign(variable / 2)


def _load(model: Any) -> None:
    model.layers[-1].set_weights([np.ones([5, 3]), np.ones(3)])


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("write", [_set_half, _assign_half, slow(_load)])
@GRIDS
def test_what_callbacks_write(write: Callable[[Any], None], grid: tuple[int, int]) -> None:
    plain, model = build(False), build(True)
    plain_fit(plain, epochs=3, callbacks=[At(write, "on_epoch_end")])
    fit(model, grid, epochs=3, callbacks=[At(write, "on_epoch_end")])
    require_none(unlike(state(model), state(plain)), write.__name__)


class Watching(keras.layers.Dense):
    """Notes, when it is saved, how many weights have memory."""

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        self.watch()


def _wide() -> Any:
    x = inputs = keras.Input([6])
    for _ in range(4):
        x = keras.layers.Dense(1000)(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def _watching(present: list[int]) -> Any:
    x = inputs = keras.Input([6])
    for _ in range(6):
        x = Watching(1000)(x)
    model = keras.Model(inputs, Watching(3)(x))
    for layer in model.layers[1:]:
        layer.watch = lambda: present.append(sum(not is_absent(v) for v in model.weights))
    return model


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("name", ["m.keras", slow("m.weights.h5")])
def test_saving_takes_few_weights_at_once(name: str, tmp_path_factory: Any) -> None:
    folder = on_leader(lambda: tmp_path_factory.mktemp("saved"))
    present: list[int] = []
    model, plain = (
        build(True, "sgd", functools.partial(_watching, noted)) for noted in (present, [])
    )
    more = {"save_weights_only": name != "m.keras"}
    in_fit, expected = folder / f"fit_{name}", folder / f"plain_{name}"
    saves = [keras.callbacks.ModelCheckpoint(path, **more) for path in (in_fit, expected)]
    fit(model, (2, 1), callbacks=saves[:1], gather=False)
    plain_fit(plain, callbacks=saves[1:])
    parallel, after = hf.parallelize(model, **layout((2, 1))), folder / f"after_{name}"
    (parallel.save if name == "m.keras" else parallel.save_weights)(after)
    faults = []
    if WORLD.rank == 0:
        # Four layers of 8 MB are this rank's or one is lent; the others have no memory.
        if not present or max(present) > 10:
            faults.append(f"with memory: {present} of 14")
        models = [build(False, "sgd", lambda: _watching([])) for _ in range(3)]
        for one, path in zip(models, [expected, in_fit, after], strict=True):
            one.load_weights(path)
        faults += unlike(models[1].get_weights(), models[0].get_weights())
        faults += unlike(models[2].get_weights(), models[0].get_weights())
    require_none(faults, name)


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("name", ["m.keras", slow("m.weights.h5")])
def test_each_rank_reads_its_part_of_a_file(name: str, tmp_path_factory: Any) -> None:
    folder = on_leader(lambda: tmp_path_factory.mktemp("stored"))
    plain, model = build(False), build(True)
    plain_fit(plain)
    if WORLD.rank == 0:
        plain.save(folder / "m.keras")
        plain.save_weights(folder / "m.weights.h5")
    on_leader(lambda: None)
    hf.load_weights(model, folder / name)
    predicted = hf.predict(model, ROWS, verbose=0, gather=False, **layout((2, 1)))
    faults = unlike([predicted], [on_leader(lambda: plain.predict(ROWS, verbose=0))])
    if absent(model) < LAYERS - 4:
        faults.append(f"absent: {absent(model)}")
    fit(model, (2, 1))
    plain.compile("adam", "mse")
    plain_fit(plain)
    require_none(faults + unlike(model.get_weights(), plain.get_weights()), name)


@pytest.mark.on_ranks(2)
def test_a_callback_that_reads_everything_is_told_once() -> None:
    model = build(True, "sgd", _wide)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, (2, 1), epochs=2, callbacks=[At(_all_values)])
    said = [str(w.message) for w in caught if "ask their owners" in str(w.message)]
    assert len(said) == (WORLD.rank == 0)
    assert not said or "MiB of model" in said[0]


@pytest.mark.on_ranks(2)
def test_weights_that_are_read_in_vain_are_told_of_once() -> None:
    def wide() -> Any:
        layers = [keras.layers.Dense(2000) for _ in range(6)]
        return keras.Sequential([keras.Input([6]), *layers, keras.layers.Dense(3)])

    model = build(True, "sgd", wide)
    if WORLD.rank == 1:
        model.get_weights()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, (2, 1), lpp=[5, 2])
        fit(model, (2, 1), lpp=[5, 2])
    said = [str(w.message) for w in caught if "weights that are read" in str(w.message)]
    assert len(said) == (WORLD.rank == 1), said
    assert not said or "read on rank 1 before the call" in said[0]


def submodel(model: Any) -> Any:
    return keras.Model(model.inputs, model.layers[4].output)


def larger_model(model: Any) -> Any:
    keras.utils.set_random_seed(2)
    larger = keras.Sequential([keras.Input([6]), model, keras.layers.Dense(3)])
    larger.compile("adam", "mse")
    return larger


@pytest.mark.on_ranks(2)
@GRIDS
def test_weights_left_at_their_owners_serve_other_models(grid: tuple[int, int]) -> None:
    plain, model = build(False), build(True)
    plain_fit(plain)
    fit(model, grid, gather=False)
    expected = on_leader(lambda: submodel(plain).predict(ROWS, verbose=0))
    found = hf.predict(submodel(model), ROWS, verbose=0, **layout(grid))  # not compiled
    faults = unlike([found], [expected])
    larger, larger_plain = larger_model(model), larger_model(plain)
    losses = fit(larger, grid, gather=False).history["loss"]
    faults += unlike(losses, plain_fit(larger_plain)["loss"])
    losses = fit(model, grid).history["loss"]
    faults += unlike(losses, plain_fit(plain)["loss"]) + unlike(state(model), state(plain))
    hf.evaluate(larger, ROWS, LABELS, verbose=0, gather=True, **layout(grid))
    require_none(faults + unlike(state(larger), state(larger_plain)), "models that share weights")


class Averaging(keras.optimizers.SGD):
    """An optimizer of the user's own, with a slot that no list holds."""

    def build(self, variables: Any) -> None:
        super().build(variables)
        self.means = {
            n: self.add_variable_from_reference(v, "mean") for n, v in enumerate(variables)
        }

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        mean = self.means[self._get_variable_index(variable)]
        self.assign(mean, 0.5 * mean + gradient)
        super().update_step(mean, variable, learning_rate)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "own": lambda: Averaging(0.1),
    "average": lambda: keras.optimizers.Adam(use_ema=True, ema_momentum=0.5),
    "clipped": lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    "accumulated": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.RMSprop()),
    "decayed": lambda: keras.optimizers.AdamW(weight_decay=0.1),
    "muon": lambda: keras.optimizers.Muon(0.01),
}


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "name", ["own", *map(slow, ["average", "clipped", "accumulated", "scaled", "decayed", "muon"])]
)
@GRIDS
def test_optimizers(name: str, grid: tuple[int, int]) -> None:
    plain, model = build(False, OPTIMIZERS[name]()), build(True, OPTIMIZERS[name]())
    plain_fit(plain, epochs=2)
    fit(model, grid, epochs=2, gather=False)
    plain_fit(plain)
    fit(model, grid)
    require_none(unlike(state(model), state(plain)), name)


def _masked() -> Any:
    x = tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(11, 4, mask_zero=True)(x)
    for width in (5, 4, 5):
        x = keras.layers.LSTM(width, return_sequences=True)(x)
    x = keras.layers.BatchNormalization()(keras.layers.LSTM(4)(x))
    return keras.Model(tokens, keras.layers.Dense(3)(x))


def _masked_to_the_end() -> Any:
    x = tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(11, 4, mask_zero=True)(x)
    for width in (5, 4):
        x = keras.layers.LSTM(width, return_sequences=True)(x)
    x = keras.layers.TimeDistributed(keras.layers.Dense(1))(x)
    return keras.Model(tokens, x)


def _looked_up() -> Any:
    x = tokens = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(11, 4)(x) + keras.layers.Embedding(6, 4)(keras.ops.arange(6))
    for width in (5, 4, 5):
        x = keras.layers.Dense(width, activation="tanh")(keras.layers.LayerNormalization()(x))
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dropout(0.0)(x))
    return keras.Model(tokens, keras.layers.Dense(3)(x))


def _shared() -> Any:
    inputs = keras.Input([6])
    shared = keras.layers.Dense(6, activation="tanh")
    x = shared(inputs)
    for _ in range(4):
        x = keras.layers.Dense(6, activation="tanh")(x)
    frozen = keras.layers.Dense(6, trainable=False)
    return keras.Model(inputs, keras.layers.Dense(3)(frozen(shared(x))))


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "make", [slow(_masked), slow(_masked_to_the_end), slow(_looked_up), _shared]
)
@GRIDS
def test_models(make: Callable[[], Any], grid: tuple[int, int]) -> None:
    """Masks; weights that two partitions share; frozen ones."""
    global LABELS
    rows: Any = ROWS
    before = LABELS
    if make is not _shared:
        rows = np.random.default_rng(2).integers(0, 11, size=(24, 6))
        rows[:, 0] = 3  # no row is masked whole
    if make is _masked_to_the_end:
        LABELS = np.random.default_rng(3).normal(size=(24, 6, 1))
    try:
        plain, model = build(False, make=make), build(True, make=make)
        more = {"gather": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of BatchNormalization
            if make is _masked:
                model.layers[-2].trainable = plain.layers[-2].trainable = False
                model.compile("adam", "mse")
                plain.compile("adam", "mse")
            plain_fit(plain, rows)
            fit(model, grid, rows, **more)
            plain_fit(plain, rows)
            fit(model, grid, rows)
        require_none(unlike(state(model), state(plain)), make.__name__)
    finally:
        LABELS = before


class _Tied(keras.layers.Layer):
    """Multiplies by a weight of another layer, which it does not hold as its own."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.read = lambda: other.kernel

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.read())


def _reading(kind: str) -> Any:
    first = keras.layers.Dense(6, trainable=False)
    x = inputs = keras.Input([6])
    x = first(x)
    for width in (7, 5, 6, 6):
        x = keras.layers.Dense(width, activation="tanh")(x)
    if kind == "lambda":
        x = keras.layers.Lambda(lambda x: x @ first.kernel)(x)
    if kind == "layer":
        x = _Tied(first)(x)
    norm = lambda w: 0.1 * keras.ops.sum(w * first.kernel[:, :3])  # noqa: E731
    more = {"kernel_regularizer": norm} if kind == "regularizer" else {}
    model = keras.Model(inputs, keras.layers.Dense(3, **more)(x))
    loss: Any = "mse"
    if kind == "loss":
        loss = lambda y, p: keras.ops.sum((y - p @ first.kernel[:3, :3]) ** 2, -1)  # noqa: E731
    model.compile("adam", loss)
    return model


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("kind", ["lambda", "loss", slow("layer"), slow("regularizer")])
@GRIDS
def test_frozen_weights_that_another_partition_reads(kind: str, grid: tuple[int, int]) -> None:
    keras.utils.set_random_seed(5)
    plain = _reading(kind)
    keras.utils.set_random_seed(5)
    with hf.deferred():
        model = _reading(kind)
    plain_fit(plain)
    fit(model, grid, gather=False)
    plain_fit(plain)
    fit(model, grid)
    require_none(unlike(state(model), state(plain)), kind)


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("deferred", [True, slow(False)])
def test_replicas_alone(deferred: bool) -> None:
    """Without partitions every rank holds everything, and `gather` changes nothing."""
    plain, model = build(False), build(deferred)
    plain_fit(plain)
    fit(model, (1, WORLD.size), gather=False)
    assert absent(model) == 0
    require_none(unlike(state(model), state(plain)), "replicas")
