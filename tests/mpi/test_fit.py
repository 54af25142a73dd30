"""What users of Keras expect around `fit`, on every number of ranks."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, Outcome, State, differences, grids, on_leader, require_none
from keras import layers

import hyparflow as hf

ROWS = 45
PARTITIONS, REPLICAS = grids(WORLD.size)[len(grids(WORLD.size)) // 2]
LAYOUT = {
    "strategy": "hybrid",
    "num_partitions": PARTITIONS,
    "num_replicas": REPLICAS,
    "num_microbatches": 2,
}


pytestmark = pytest.mark.usefixtures("in_float64")


def build() -> Any:
    """Four small layers, the same on every rank and every time."""
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, activation="tanh"),
            layers.Dense(8, activation="tanh"),
            layers.Dense(6, activation="tanh"),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def data(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 5)), rng.integers(0, 3, rows)


def compare(arguments: Callable[[], dict[str, Any]]) -> tuple[Any, Any]:
    """Fit twins with plain Keras (on the leader) and with hyparflow, and compare.

    Args:
        arguments: makes the arguments of `fit` anew for each.

    Returns:
        Both models; the plain one is trained on the leader only.
    """
    plain, parallel = build(), build()

    def fit_plain() -> Outcome:
        keras.utils.set_random_seed(4)
        history = plain.fit(**({"verbose": 0} | arguments()))
        return Outcome(history.history, State.of(plain))

    expected = on_leader(fit_plain)
    keras.utils.set_random_seed(4)
    history = hf.fit(parallel, **({"verbose": 0} | arguments()), **LAYOUT)
    require_none(Outcome(history.history, State.of(parallel)).compare(expected), "fit")
    return plain, parallel


# --- data ---


@pytest.mark.parametrize(
    "arguments",
    [
        {"validation_split": 0.3, "epochs": 3},
        {"shuffle": False, "batch_size": 10, "initial_epoch": 2, "epochs": 4},
        {"class_weight": {0: 0.2, 1: 1.0, 2: 3.0}, "validation_freq": 2, "epochs": 4},
        {"batch_size": 10, "steps_per_epoch": 3, "epochs": 4},
        {"sample_weight": np.linspace(0, 2, ROWS), "batch_size": 16},
        {"batch_size": 44, "epochs": 2},
        {"class_weight": {0: 0.2, 1: 1.0, 2: 3.0}, "validation_split": 0.3, "epochs": 2},
    ],
    ids=lambda a: "-".join(a),
)
def test_arguments_of_fit(arguments: dict[str, Any]) -> None:
    """Arguments that decide which samples are seen, when and with which weight."""
    x, y = data()
    if "validation_freq" in arguments:
        arguments = arguments | {"validation_data": (x[:9], y[:9], np.arange(9.0))}
    compare(lambda: {"x": x, "y": y} | arguments)


def test_weights_of_some_calls_only() -> None:
    """A model of two outputs trains with sample weights, then without, and validates so."""
    x, y = data()
    targets = {"b": y[:, None] + 1.0, "a": x[:, :1]}
    weights = {name: np.linspace(0, 2, ROWS) for name in targets}
    calls = [
        {"sample_weight": weights, "validation_data": (x, targets)},
        {"validation_data": (x, targets, weights)},
        {"sample_weight": weights},
    ]

    def train(fit: Callable[..., Any], **layout: Any) -> Outcome:
        keras.utils.set_random_seed(5)
        inputs = keras.Input((5,))
        hidden = layers.Dense(4, activation="tanh")(layers.Dense(6, activation="tanh")(inputs))
        outputs = {name: layers.Dense(1, name=name)(hidden) for name in targets}
        model = keras.Model(inputs, outputs)
        model.compile("adam", {"a": "mse", "b": "mae"})
        history: dict[str, list[float]] = {}
        for number, call in enumerate(calls):
            seen = fit(model, x, targets, batch_size=16, shuffle=False, verbose=0, **call, **layout)
            history |= {f"{number} {name}": values for name, values in seen.history.items()}
        return Outcome(history, State.of(model))

    expected = on_leader(lambda: train(keras.Model.fit))
    result = train(hf.fit, **LAYOUT, schedule="gpipe")
    require_none(result.compare(expected), "fits")


class Batches(keras.utils.PyDataset):
    """The data in batches of ten."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        x, y = data()
        rows = slice(10 * index, 10 * index + 10)
        return x[rows], y[rows], np.ones(len(x[rows]))


def stream(kind: str) -> dict[str, Any]:
    """Arguments of `fit` that read the data as a stream."""
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(20, seed=3).batch(10)
    if kind == "dataset":
        return {"x": dataset, "validation_data": dataset, "epochs": 2}
    if kind == "endless dataset":
        return {"x": dataset.repeat(), "steps_per_epoch": 3, "epochs": 3}
    if kind == "PyDataset":
        return {"x": Batches(), "epochs": 2, "validation_data": (x, y)}
    batches = ((x[i : i + 7], y[i : i + 7]) for _ in range(2) for i in range(0, 42, 7))
    return {"x": batches, "steps_per_epoch": 6, "epochs": 2}


@pytest.mark.parametrize("kind", ["dataset", "endless dataset", "PyDataset", "generator"])
def test_streams(kind: str) -> None:
    """The samples of each step are those of plain Keras."""
    compare(lambda: stream(kind))


def test_stream_shuffled_without_seed_loses_nothing() -> None:
    """Every sample is seen once, though each rank's own shuffle would differ."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(4), layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[SumOfLabels()])
    x = np.arange(40.0)[:, None]
    dataset = tf.data.Dataset.from_tensor_slices((x, x)).shuffle(40).batch(8)
    history = hf.fit(model, dataset, verbose=0, **LAYOUT)
    assert history.history["labels"] == [x.sum()]


class SumOfLabels(keras.metrics.Metric):
    """Adds the labels up."""

    def __init__(self) -> None:
        super().__init__(name="labels")
        self.total = self.add_variable((), initializer="zeros", name="total")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(keras.ops.sum(keras.ops.cast(y_true, self.dtype)))

    def result(self) -> Any:
        return self.total.value


# --- results ---


def test_evaluate_and_predict() -> None:
    """The same values as plain Keras's, on every rank."""
    x, y = data()
    model = build()
    expected = on_leader(lambda: model.evaluate(x, y, batch_size=13, verbose=0, return_dict=True))
    actual = hf.evaluate(model, x, y, 13, verbose=0, return_dict=True, **LAYOUT)
    faults = differences("evaluate", list(actual.values()), list(expected.values()), 1e-12)
    predicted = hf.predict(model, x, 13, verbose=0, **LAYOUT)
    expected_outputs = on_leader(lambda: model.predict(x, verbose=0))
    faults += differences("predict", predicted, expected_outputs, 1e-12)
    require_none(faults, "results")
    assert list(actual) == list(expected)


def test_predict_of_a_model_that_is_not_compiled() -> None:
    """Predictions need no loss; training the same object afterwards finds its own."""
    x, y = data()
    model = build()
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    predicted = hf.predict(twin, x, verbose=0, **LAYOUT)
    expected = on_leader(lambda: model.predict(x, verbose=0))
    twin.compile("sgd", "mse")
    history = hf.fit(twin, x, np.eye(3)[y], verbose=0, **LAYOUT)
    require_none(differences("predict", predicted, expected, 1e-12), "predictions")
    assert len(history.history["loss"]) == 1


def test_state_continues_over_fits() -> None:
    """A second fit goes on with the optimizer's state, and after it plain Keras can."""
    x, y = data()
    plain, parallel = compare(lambda: {"x": x, "y": y, "epochs": 2})
    hf.fit(parallel, x, y, shuffle=False, verbose=0, **LAYOUT)
    faults: list[str] = []
    if hf.is_leader():
        parallel.fit(x, y, shuffle=False, verbose=0)
        plain.fit(x, y, shuffle=False, verbose=0, epochs=2)
        faults = Outcome({}, State.of(parallel)).compare(Outcome({}, State.of(plain)))
    require_none(faults, "fits")


def test_layers_per_partition() -> None:
    """`lpp` decides the cuts, and changes no number."""
    x, y = data()
    lpp = [4 - (WORLD.size - 1), *[1] * (WORLD.size - 1)]
    model = build()
    pm = hf.parallelize(model, strategy="model", lpp=lpp, num_microbatches=3)
    keras.utils.set_random_seed(3)
    history = pm.fit(x, y, verbose=0)

    def fit_plain() -> Outcome:
        twin = build()
        keras.utils.set_random_seed(3)
        return Outcome(twin.fit(x, y, verbose=0).history, State.of(twin))

    expected = on_leader(fit_plain)
    require_none(Outcome(history.history, State.of(model)).compare(expected), "lpp")
    if WORLD.size > 1:
        counts = [line.split(":")[1].split()[0] for line in str(pm).splitlines()[1:]]
        assert [int(count) for count in counts] == lpp


def test_compiling_again_and_freezing() -> None:
    """What was built for the model before is not used for what it is now."""
    x, y = data()

    def train(fit: Callable[..., Any], **layout: Any) -> Outcome:
        model = build()
        for trainable, optimizer in ((True, "adam"), (False, "sgd")):
            model.layers[1].trainable = trainable
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            keras.utils.set_random_seed(1)
            fit(model, x, y, verbose=0, **layout)
        return Outcome({}, State.of(model))

    expected = on_leader(lambda: train(keras.Model.fit))
    require_none(train(hf.fit, **LAYOUT).compare(expected), "frozen")


def test_leader_weights_win() -> None:
    """Ranks that built their model from different seeds train the leader's."""
    x, y = data()
    keras.utils.set_random_seed(WORLD.rank)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(3)])
    model.compile("sgd", "mse")
    first = WORLD.bcast(model.get_weights())
    hf.fit(model, x, np.eye(3)[y], verbose=0, shuffle=False, batch_size=ROWS, **LAYOUT)
    twin = keras.models.clone_model(model)
    twin.set_weights(first)
    twin.compile("sgd", "mse")
    twin.fit(x, np.eye(3)[y], verbose=0, shuffle=False, batch_size=ROWS)
    pairs = zip(model.get_weights(), twin.get_weights(), strict=True)
    require_none([f for a, b in pairs for f in differences("weight", a, b, 1e-10)], "weights")


def test_saved_file_loads_in_plain_keras() -> None:
    """Every rank saves under one name at once; the file is whole and has the weights."""
    x, y = data()
    model = build()
    folder = pathlib.Path(WORLD.bcast(tempfile.mkdtemp() if hf.is_leader() else None))
    kept = folder / "first.keras"

    class Saver(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.save(folder / "epoch.keras")
            if epoch == 0:  # stays what it is only if the next file is not written into this one
                (shutil.copy if WORLD.size == 1 else os.link)(folder / "epoch.keras", kept)

    hf.fit(model, x, y, epochs=2, verbose=0, callbacks=[Saver()], **LAYOUT)
    model.save(folder / "m.keras")
    model.export(folder / "exported", verbose=False)
    loaded = keras.models.load_model(folder / "m.keras")
    predicted = model.predict(x, verbose=0)
    WORLD.Barrier()  # another rank may put its own there while this one reads
    exported = tf.saved_model.load(folder / "exported")
    faults = differences("predictions", loaded.predict(x, verbose=0), predicted, 0)
    faults += differences("exported", exported.serve(x).numpy(), predicted, 1e-12)
    steps = int(model.optimizer.iterations)
    for file, count in (("m", steps), ("epoch", steps), ("first", steps // 2)):
        saved = keras.models.load_model(folder / f"{file}.keras").optimizer.iterations
        faults += differences(f"iterations in {file}", saved, count, 0)
    WORLD.Barrier()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["epoch.keras", "exported", "first.keras", "m.keras"]
    require_none(faults, "saved model")


def test_subclassed_model_trains_data_parallel() -> None:
    """A model without a graph, not even built, with strategy="data"."""

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = layers.Dense(6, activation="tanh")
            self.out = layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.out(self.hidden(x))

    x, y = data()

    def train(fit: Callable[..., Any], **layout: Any) -> Outcome:
        keras.utils.set_random_seed(6)
        model = Net()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = fit(model, x, y, 15, verbose=0, **layout)
        return Outcome(history.history, State.of(model))

    expected = on_leader(lambda: train(keras.Model.fit))
    actual = train(hf.fit, strategy="data", num_microbatches=2)
    require_none(actual.compare(expected), "subclassed model")


# --- random numbers and statistics ---


def noisy() -> Any:
    keras.utils.set_random_seed(8)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(16),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(8),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )
    model.compile("adam", "mse")
    return model


def test_random_layers_repeat() -> None:
    """The same seed gives the same bits in two runs."""
    x, y = data()
    states = []
    for _ in range(2):
        model = noisy()
        hf.fit(model, x, np.eye(3)[y], verbose=0, epochs=2, **LAYOUT)
        states.append(State.of(model))
    require_none(Outcome({}, states[0]).compare(Outcome({}, states[1]), 0.0), "two runs")


class Witness(layers.Layer):
    """Remembers, outside of TensorFlow, what Dropout left of rows of ones."""

    seen: list[bytes] = []  # noqa: RUF012 (read by the test)

    def call(self, x: Any) -> Any:
        def note(value: np.ndarray) -> np.ndarray:
            Witness.seen += [row.tobytes() for row in value if np.isin(row, (0, 2)).all()]
            return value

        shape = x.shape
        x = tf.numpy_function(note, [x], x.dtype)
        x.set_shape(shape)
        return x


def test_dropout_masks_differ() -> None:
    """Micro-batches and replicas do not drop the same units."""
    Witness.seen.clear()
    keras.utils.set_random_seed(8)
    model = keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), Witness(), layers.Dense(1)])
    # XLA, which GPUs are given, cannot compile a function of NumPy.
    model.compile("sgd", "mse", jit_compile=False)
    rows = 2 * WORLD.size
    hf.fit(
        model,
        np.ones((rows, 64)),
        np.ones((rows, 1)),
        rows,
        verbose=0,
        strategy="data",
        num_microbatches=2,
    )
    seen = [mask for part in WORLD.allgather(Witness.seen) for mask in part]
    assert len(seen) == rows
    assert len(set(seen)) == rows


def test_moving_statistics_are_averaged() -> None:
    """After a step over R replicas: the mean of what each replica saw."""
    x, _ = data(12)
    model = keras.Sequential([keras.Input((5,)), layers.BatchNormalization(momentum=0.5)])
    model.compile("sgd", "mse")
    hf.fit(model, x, x, 12, shuffle=False, verbose=0, strategy="data", num_microbatches=1)
    parts = np.split(x, WORLD.size)
    mean = np.mean([0.5 * part.mean(0) for part in parts], 0)
    variance = np.mean([0.5 + 0.5 * part.var(0) for part in parts], 0)
    layer = model.layers[0]
    faults = differences("mean", layer.moving_mean.numpy(), mean, 1e-10)
    require_none(faults + differences("var", layer.moving_variance.numpy(), variance, 1e-10), "BN")


# --- callbacks ---


def test_callbacks_work_as_in_one_process() -> None:
    """Learning rate, early stop with the best weights, files: all by the leader, for all."""
    x, y = data()
    folder = pathlib.Path(WORLD.bcast(tempfile.mkdtemp() if hf.is_leader() else None))
    calls: list[int] = []

    def arguments() -> dict[str, Any]:
        def halve(epoch: int, rate: float) -> float:
            return rate / 2 if epoch else rate

        return {
            "x": x,
            "y": y,
            "validation_data": (x[:11], y[:11]),
            "epochs": 9,
            "callbacks": [
                keras.callbacks.LearningRateScheduler(halve),
                keras.callbacks.EarlyStopping(
                    "loss", patience=1, min_delta=0.02, restore_best_weights=True
                ),
                keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
                keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: calls.append(e)),
            ],
        }

    _, parallel = compare(arguments)
    epochs = len(parallel.history.epoch)
    assert len(calls) == (2 * epochs if hf.is_leader() else 0)  # plain Keras, then hyparflow
    assert 1 < epochs < 9
    WORLD.Barrier()
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{epoch + 1}.keras" for epoch in range(epochs)}


def test_callback_sees_current_weights() -> None:
    """At the end of each epoch, by method and by variable; and predicts with them."""
    x, y = data()
    seen: list[list[Any]] = [[], []]

    class Reader(keras.callbacks.Callback):
        def __init__(self, into: list[Any]) -> None:
            super().__init__()
            self.into = into

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.into.append(self.model.layers[-1].kernel.numpy())
            self.into.append(self.model.get_weights()[0])
            self.into.append(self.model.predict(x[:7], verbose=0))
            self.into.append(np.array(self.model.evaluate(x, y, verbose=0)))

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                self.into.append(self.model.get_weights()[-1])

    turns = iter(seen if hf.is_leader() else seen[1:])
    compare(lambda: {"x": x, "y": y, "epochs": 2, "callbacks": [Reader(next(turns))]})
    faults = []
    if hf.is_leader():
        assert len(seen[0]) == len(seen[1]) == 10
        for a, b in zip(*seen, strict=True):
            faults += differences("seen", b, a, 1e-10)
    else:
        assert not seen[1]
    require_none(faults, "weights in callbacks")


def test_callback_predicts_with_a_masked_model() -> None:
    """Whose losses need the whole batch, though predictions do not."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(4, activation="tanh")(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 7, (22, 4)).astype("int32"), rng.integers(0, 3, (22, 4))
    seen: list[Any] = []

    def look(epoch: int, logs: Any) -> None:
        seen.append(model.predict(tokens, batch_size=11, verbose=0))
        seen.append(model.evaluate(tokens, labels, batch_size=11, verbose=0))

    callback = keras.callbacks.LambdaCallback(on_epoch_end=look)
    arguments = {"strategy": "data", "num_microbatches": 2, "callbacks": [callback]}
    hf.fit(model, tokens, labels, 11, verbose=0, **arguments)
    faults: list[str] = []
    if hf.is_leader():
        faults += differences("predict", seen[0], model.predict(tokens, verbose=0), 1e-12)
        expected = model.evaluate(tokens, labels, batch_size=11, verbose=0)
        faults += differences("evaluate", seen[1], expected, 1e-12)
    require_none(faults, "masked model in a callback")


def test_callback_that_writes_variables() -> None:
    """Averages of weights swapped in for the validation, by Keras's own callback."""
    x, y = data()

    def train(fit: Callable[..., Any], **layout: Any) -> Outcome:
        model = build()
        optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        keras.utils.set_random_seed(4)
        callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
        given = {"validation_data": (x[:9], y[:9]), "epochs": 2, "callbacks": callbacks}
        history = fit(model, x, y, verbose=0, **given, **layout)
        return Outcome(history.history, State.of(model))

    expected = on_leader(lambda: train(keras.Model.fit))
    require_none(train(hf.fit, **LAYOUT).compare(expected), "SwapEMAWeights")


def test_sizes_that_depend_on_values() -> None:
    """A tensor with as many rows as were selected crosses a cut."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5,))
    x = layers.Dense(5, activation="tanh")(inputs)
    chosen = layers.Lambda(lambda t: tf.boolean_mask(t, t[:, 0] > 0), output_shape=(5,))(x)
    y = layers.Dense(5, activation="tanh")(layers.Dense(5, activation="tanh")(chosen))
    mean = layers.Lambda(
        lambda t: t[0] + keras.ops.mean(t[1], axis=0, keepdims=True), output_shape=(5,)
    )([x, y])
    model = keras.Model(inputs, layers.Dense(3)(mean))
    model.compile(
        keras.optimizers.SGD(0.1, loss_scale_factor=8.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    start = model.get_weights()
    features, labels = data()

    def train(fit: Callable[..., Any], **layout: Any) -> list[np.ndarray]:
        model.set_weights(start)
        keras.utils.set_random_seed(4)
        fit(model, features, labels, 15, verbose=0, epochs=2, **layout)
        return model.get_weights()

    expected = on_leader(lambda: train(keras.Model.fit))
    actual = train(hf.fit, strategy="model", num_microbatches=1)
    pairs = zip(actual, expected, strict=True)
    require_none([f for a, b in pairs for f in differences("weight", a, b, 1e-10)], "sizes")


def test_sequential_that_is_not_built() -> None:
    """Its input is known from the data only."""
    x, y = data()

    def train(fit: Callable[..., Any], **layout: Any) -> Outcome:
        keras.utils.set_random_seed(2)
        hidden = [layers.Dense(6, activation="tanh") for _ in range(3)]
        model = keras.Sequential([*hidden, layers.Dense(1)])
        model.compile("adam", "mse")
        history = fit(model, x, y, verbose=0, **layout)
        return Outcome(history.history, State.of(model))

    expected = on_leader(lambda: train(keras.Model.fit))
    require_none(train(hf.fit, strategy="model").compare(expected), "Sequential")


@pytest.mark.parametrize(
    "shape", [(45, 4), (45, 5, 2), (45,)], ids=["width", "more dimensions", "one dimension"]
)
@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_data_that_do_not_fit_are_refused_as_by_keras(shape: tuple[int, ...], kind: str) -> None:
    """With Keras's class of error, on every rank alike, and the job goes on."""
    x, y = np.ones(shape), np.zeros(45, int)

    def arguments() -> dict[str, Any]:
        if kind == "arrays":
            return {"x": x, "y": y, "verbose": 0}
        return {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(20), "verbose": 0}

    def error_of(fit: Callable[[], Any]) -> str:
        keras.utils.clear_session(free_memory=False)  # names are counted anew
        with pytest.raises(ValueError) as caught:
            fit()
        return str(caught.value)

    if WORLD.size == 1:
        pytest.skip("one process is plain Keras")
    texts = WORLD.allgather(error_of(lambda: hf.fit(build(), **arguments(), **LAYOUT)))
    assert len(set(texts)) == 1
    plain = on_leader(lambda: error_of(lambda: build().fit(**arguments())))
    assert plain is None or plain.splitlines()[0] == texts[0].splitlines()[0]
    if len(shape) == 2:  # once for each kind of data
        compare(lambda: {"x": data()[0], "y": data()[1]})


def test_no_rows_to_validate_with() -> None:
    x, y = data()
    compare(lambda: {"x": x, "y": y, "validation_data": (x[:0], y[:0])})


class Counting(layers.Layer):
    """Counts its calls in training and takes the mean of the batch away."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign_add(1.0)
        return x - keras.ops.mean(x, axis=0)


@pytest.mark.skipif(WORLD.size == 1, reason="one process is plain Keras")
def test_layers_that_need_the_whole_batch_are_named() -> None:
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4), Counting(name="counter"), layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [np.array(v) for v in model.variables]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hf.predict(model, data()[0], verbose=0, **LAYOUT)
    texts = " ".join(str(warning.message) for warning in caught)
    if hf.is_leader():
        assert "mix the rows of a batch ('counter')" in texts
        assert "counter/calls'" in texts
    else:
        assert "counter" not in texts
    for variable, value in zip(model.variables, before, strict=True):
        assert np.array_equal(variable, value)  # trying it out left no trace


def test_callback_error_of_a_local_class_is_the_same_on_every_rank() -> None:
    class Local(Exception):
        pass

    class Raise(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise Local("on purpose")

    x, y = data()
    with pytest.raises(Exception, match="on purpose") as caught:
        hf.fit(build(), x, y, verbose=0, callbacks=[Raise()], **LAYOUT)
    kinds = WORLD.allgather(type(caught.value).__name__)
    assert kinds == [kinds[0]] * WORLD.size


def test_callback_error_reaches_every_rank() -> None:
    """The same exception everywhere, after which the model can be trained on."""

    def fail(epoch: int, logs: Any) -> None:
        raise LookupError("no such epoch")

    x, y = data()
    model = build()
    callback = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(LookupError, match="no such epoch"):
        hf.fit(model, x, y, verbose=0, callbacks=[callback], **LAYOUT)
    history = hf.fit(model, x, y, verbose=0, **LAYOUT)
    assert len(history.history["loss"]) == 1


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("kind", ["dropout", "recurrent_dropout"])
def test_masks_take_no_random_numbers(kind: str) -> None:
    """The whole model is called for the masks of its losses; Keras's RNNs draw in any call."""

    def build_one() -> Any:
        keras.utils.set_random_seed(3)
        inputs = keras.Input([5, 4])
        x = layers.LSTM(4, **{kind: 0.3})(
            layers.GRU(4, return_sequences=True)(layers.Masking()(inputs))
        )
        model = keras.Model(inputs, layers.Dense(2)(x))
        model.compile("sgd", "mse")
        return model

    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 5, 4)), random.normal(size=(8, 2))
    plain, model = build_one(), build_one()
    keras.utils.set_random_seed(5)
    expected = plain.fit(x, y, batch_size=4, epochs=2, verbose=0)
    keras.utils.set_random_seed(5)
    more = {"batch_size": 4, "epochs": 2, "verbose": 0}
    found = hf.fit(model, x, y, strategy="model", num_microbatches=1, **more)
    faults = Outcome(found.history, State.of(model)).compare(
        Outcome(expected.history, State.of(plain))
    )
    require_none(faults, kind)
