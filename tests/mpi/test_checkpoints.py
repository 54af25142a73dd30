"""A training that is interrupted goes on from a checkpoint, and ends as if it never was."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, float_type, grids, require_none
from sharded import unlike

import hyparflow as hf
from hyparflow.formats.checkpoint.folder import CheckpointFolder

RANDOM = np.random.default_rng(0)
ROWS, LABELS = RANDOM.normal(size=(50, 8)), RANDOM.integers(0, 3, 50)
GRIDS = grids(WORLD.size)
ALONE = WORLD.size == 1


def slow(argument: Any) -> Any:
    """An argument for which another test shows nearly the same."""
    return pytest.param(argument, marks=pytest.mark.slow)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A new folder, the same on all ranks."""
    path = WORLD.bcast(str(tmp_path_factory.mktemp("run")) if WORLD.rank == 0 else None)
    yield Path(path)
    WORLD.barrier()
    if WORLD.rank == 0:
        shutil.rmtree(path, ignore_errors=True)


class Interrupted(Exception):
    """What ends a training in the middle."""


class InterruptedAt(keras.callbacks.Callback):
    """Ends the training after so many steps, in the middle of a hook."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted("the machine is gone")


def drawing() -> Any:
    """A model that draws random numbers, and normalizes."""
    x = inputs = keras.Input([8])
    x = keras.layers.BatchNormalization()(keras.layers.Dense(16, activation="relu")(x))
    x = keras.layers.Dense(16, activation="tanh")(keras.layers.Dropout(0.2)(x))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def nested() -> Any:
    """Submodels, a layer that is called twice, and frozen ones."""
    inner = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(8)])
    shared = keras.layers.Dense(8, activation="tanh")
    x = inputs = keras.Input([8])
    x = shared(inner(shared(x)))
    frozen = keras.layers.Dense(8, trainable=False)
    return keras.Model(inputs, keras.layers.Dense(3)(frozen(x)))


def adam() -> Any:
    return keras.optimizers.AdamW(1e-2, weight_decay=1e-3, use_ema=True, ema_momentum=0.9)


def build(make: Any = drawing, optimizer: Any = adam) -> Any:
    keras.utils.set_random_seed(3)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss, metrics=["accuracy"])
    return model


def fit(model: Any, grid: tuple[int, int], **more: Any) -> Any:
    layout = {"num_partitions": grid[0], "num_replicas": grid[1], "batchnorm": "deferred"}
    kept = {"batch_size": 8, "epochs": 4, "verbose": 0, "num_microbatches": 1}
    if not ALONE:
        kept |= layout
    data = {"x": ROWS, "y": LABELS}
    return hf.fit(model, **{k: v for k, v in (data | kept | more).items() if v is not None})


def callbacks() -> list[Any]:
    return [
        keras.callbacks.EarlyStopping("loss", patience=9),
        keras.callbacks.ReduceLROnPlateau("accuracy", factor=0.7, patience=1),
    ]


def interrupt(model: Any, grid: tuple[int, int], steps: int, **more: Any) -> None:
    others = more.pop("callbacks", [])
    with pytest.raises(Interrupted):
        fit(model, grid, callbacks=[*others, InterruptedAt(steps)], **more)


def state(model: Any) -> list[np.ndarray]:
    variables = [*model.weights, *model.optimizer.variables]
    return [np.asarray(keras.ops.convert_to_numpy(v), "float64") for v in variables]


def slots(model: Any) -> list[np.ndarray]:
    """The optimizer's variables, which the averages at the end of `fit` do not touch."""
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables]


def differing(model: Any, other: Any) -> list[str]:
    pairs = zip(state(model), state(other), model.weights + model.optimizer.variables, strict=True)
    return [v.path for x, y, v in pairs if not np.array_equal(x, y)]


@pytest.mark.on_ranks(1, 2)
@pytest.mark.parametrize("kind", ["float32", slow("float64")])
@pytest.mark.parametrize("steps", [5, 12, slow(1), slow(7), slow(20), slow(28)])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_bits_of_a_training_that_was_not_interrupted(
    grid: tuple[int, int], steps: int, kind: str, folder: Path
) -> None:
    with float_type(kind):
        for _ in range(WORLD.rank):
            keras.layers.Dense(1)  # so that ranks give layers other numbers
        whole, model = build(), build()
        keras.utils.set_random_seed(1)
        # In one process plain Keras trains without checkpoints, and rounds otherwise.
        others = {"checkpoint": folder / "whole"} if ALONE else {}
        expected = fit(whole, grid, callbacks=callbacks(), **others)
        settings = hf.Checkpoint(folder / "parts", every_steps=2)
        keras.utils.set_random_seed(1)
        interrupt(model, grid, steps, checkpoint=settings, callbacks=callbacks())
        again, kept = build(), callbacks()
        keras.utils.set_random_seed(1)
        found = fit(again, grid, checkpoint=settings, callbacks=kept)
        faults = differing(again, whole)
        if found.history != expected.history or found.epoch != expected.epoch:
            faults.append(f"{found.history} in place of {expected.history}")
        require_none(faults, "resumed")


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid[1] > 1], ids=str)
def test_saves_change_no_bit_of_statistics_that_replicas_have_of_their_own(
    grid: tuple[int, int], folder: Path
) -> None:
    whole, other, model, again, over = (build() for _ in range(5))
    for one, rare in ((whole, 9), (other, 2)):
        settings = hf.Checkpoint(folder / str(rare), every_steps=rare)
        keras.utils.set_random_seed(1)
        fit(one, grid, checkpoint=settings, batchnorm="local", callbacks=[InterruptedAt(-1)])
    require_none(differing(other, whole), "saved at other steps")
    settings = hf.Checkpoint(folder / "parts", every_steps=2)
    keras.utils.set_random_seed(1)
    interrupt(model, grid, 12, checkpoint=settings, batchnorm="local")
    keras.utils.set_random_seed(1)
    fit(again, grid, checkpoint=settings, batchnorm="local", callbacks=[InterruptedAt(-1)])
    require_none(differing(again, whole), "resumed")
    fit(over, grid, checkpoint=settings, batchnorm="local")
    require_none(differing(over, whole), "resumed at the end")


@pytest.mark.parametrize(("saved", "loaded"), list(itertools.permutations(GRIDS, 2)), ids=str)
@pytest.mark.parametrize("make", [nested, slow(drawing)])
@pytest.mark.parametrize("shards", [False, True])
def test_another_layout(
    saved: tuple[int, int], loaded: tuple[int, int], make: Any, shards: bool, folder: Path
) -> None:
    with float_type("float64"):
        keras.utils.set_random_seed(1)
        whole = build(make)
        fit(whole, saved, epochs=2)
        keras.utils.set_random_seed(1)
        fit(build(make), saved, checkpoint=folder, epochs=1, shard_optimizer=shards)
        plain = hf.load_checkpoint(folder, build(make))
        keras.utils.set_random_seed(1)
        over = build(make)
        fit(over, loaded, checkpoint=folder, epochs=1)
        require_none(unlike(slots(over), slots(plain)), "loaded")
        again = build(make)
        keras.utils.set_random_seed(1)
        fit(again, loaded, checkpoint=folder, epochs=2, shard_optimizer=shards)
        if make is nested:  # the other draws other numbers on each layout
            require_none(unlike(state(again), state(whole)), f"on {loaded}")


@pytest.mark.on_ranks(1, 2)
def test_a_training_that_is_over_trains_no_more(folder: Path) -> None:
    model = build()
    first = fit(model, GRIDS[-1], checkpoint=folder, epochs=2)
    again = build()
    second = fit(again, GRIDS[-1], checkpoint=folder, epochs=2)
    assert second.history == first.history
    assert second.epoch == [0, 1]
    require_none(differing(again, model), "over")
    third = fit(again, GRIDS[-1], checkpoint=folder, epochs=3)
    assert third.epoch == [0, 1, 2]
    assert third.history["loss"][:2] == first.history["loss"]


@pytest.mark.on_ranks(2)
def test_each_rank_writes_its_share(folder: Path) -> None:
    model = build()
    grid = GRIDS[-1]
    fit(model, grid, checkpoint=hf.Checkpoint(folder, keep=1), epochs=2)
    kept = CheckpointFolder(folder)
    assert kept.committed() == [14]
    path = kept.step(14)
    index = json.loads((path / "index.json").read_text())
    shares = [f"rank-{r:05d}.safetensors" for r in range(WORLD.size)]
    assert sorted(index["files"]) == [*shares, "state-model.json"]
    assert sorted(p.name for p in path.iterdir()) == ["index.json", *sorted(index["files"])]
    named = [name for name in index["tensors"] if name.startswith(("model/", "optimizer/"))]
    assert len(named) == len(model.weights) + len(model.optimizer.variables)
    written = [0] * WORLD.size
    for entry in index["tensors"].values():
        for shard in entry["shards"]:
            sizes = np.subtract(shard["stop"], shard["start"])
            written[int(shard["file"][5:10])] += int(np.prod(sizes))
    variables = [*model.weights, *model.optimizer.variables]
    total = int(sum(np.prod(v.shape) for v in variables))
    assert total <= sum(written) < 1.05 * total
    assert max(written) < 0.75 * total or ALONE


@pytest.mark.on_ranks(2)
def test_another_model_is_refused_with_all_that_differs(folder: Path) -> None:
    fit(build(), GRIDS[-1], checkpoint=folder, epochs=1)
    keras.utils.set_random_seed(3)
    inputs = keras.Input([8])
    x = keras.layers.Dense(9, name="other")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile(adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="weights and the optimizer's variables") as caught:
        fit(model, GRIDS[-1], checkpoint=folder, epochs=1)
    assert "model/other/kernel" in str(caught.value)
    assert "is not in the model" in str(caught.value)


@pytest.mark.on_ranks(1, 2)
def test_a_place_where_nothing_can_be_written(folder: Path) -> None:
    if WORLD.rank == 0:
        (folder / "file").write_text("mine")
    with pytest.raises(ValueError, match="a folder into which rank 0 can write"):
        fit(build(), GRIDS[-1], checkpoint=folder / "file" / "run")


@pytest.mark.on_ranks(1, 2)
def test_a_checkpoint_that_cannot_be_begun_ends_nothing(folder: Path) -> None:
    """The folder goes away, and a file is in its place, while a training runs."""

    def spoil(*args: Any) -> None:
        shutil.rmtree(folder / "run")
        (folder / "run").write_text("full")

    spoiler = keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, logs: e == 1 and spoil())
    kept = hf.Checkpoint(folder / "run", asynchronous=False)
    assert fit(build(), GRIDS[-1], checkpoint=kept, callbacks=[spoiler], epochs=3).epoch == [
        0,
        1,
        2,
    ]


@pytest.mark.on_ranks(2)
def test_ranks_must_ask_for_the_same(folder: Path) -> None:
    asked = {} if WORLD.rank else {"checkpoint": folder}
    with pytest.raises(ValueError, match="the same argument `checkpoint`"):
        fit(build(), GRIDS[-1], **asked)


@pytest.mark.on_ranks(2)
def test_the_best_is_kept_by_those_that_go_on(folder: Path) -> None:
    settings = hf.Checkpoint(folder, keep=1, keep_best="val_loss")
    more = {"checkpoint": settings, "validation_data": (ROWS[:8], LABELS[:8]), "initial_epoch": 1}
    rates = [1e-2, 1e-2, 9.0, 9.0, 9.0]
    for epochs in (3, 5):
        rising = [keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])]
        history = fit(build(), GRIDS[-1], callbacks=rising, epochs=epochs, **more)
    assert history.epoch == [1, 2, 3, 4]
    assert int(np.argmin(history.history["val_loss"])) == 0
    assert CheckpointFolder(folder).committed() == [7, 28]


@pytest.mark.on_ranks(2)
def test_what_is_kept(folder: Path) -> None:
    settings = hf.Checkpoint(folder, every_steps=3, keep=2, keep_best="loss", asynchronous=False)
    rising = [keras.callbacks.LearningRateScheduler(lambda epoch: 1e-2 if epoch < 2 else 3.0)]
    history = fit(build(), GRIDS[-1], checkpoint=settings, callbacks=rising, epochs=4).history
    best = int(np.argmin(history["loss"]))
    assert best < 3
    steps = CheckpointFolder(folder).committed()
    assert steps == sorted({7 * (best + 1), 27, 28} | ({24, 28} - {24}))


class Shuffled(keras.utils.PyDataset):
    """Batches in an order that is drawn anew after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.order = np.random.permutation(len(ROWS))

    def __len__(self) -> int:
        return 7

    def __getitem__(self, number: int) -> Any:
        rows = self.order[8 * number : 8 * number + 8]
        return ROWS[rows] + np.random.normal(size=(len(rows), 8)) / 100, LABELS[rows]

    def on_epoch_end(self) -> None:
        np.random.shuffle(self.order)


def dataset() -> Any:
    pairs = tf.data.Dataset.from_tensor_slices((ROWS, LABELS))
    return pairs.shuffle(50, seed=4).batch(8)


def endless() -> Any:
    return dataset().repeat()


def generated() -> Any:
    for step in range(1000):
        rows = np.arange(8 * step, 8 * step + 8) % 50
        yield ROWS[rows], LABELS[rows]


READ = {
    "PyDataset": (Shuffled, {}),
    "dataset": (dataset, {}),
    "endless": (endless, {"steps_per_epoch": 5}),
}


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("kind", ["PyDataset", "dataset", slow("endless")])
def test_streams_go_on_where_they_were(kind: str, folder: Path) -> None:
    make, more = READ[kind]
    runs = []
    for interrupted_at in (None, 12):
        model, again = build(), build()
        settings = hf.Checkpoint(folder / str(interrupted_at), every_steps=2)
        more = more | {"checkpoint": settings, "y": None, "batch_size": None}
        if interrupted_at is not None:
            keras.utils.set_random_seed(1)
            interrupt(model, GRIDS[0], interrupted_at, x=make(), **more)
        keras.utils.set_random_seed(1)
        history = fit(again, GRIDS[0], x=make(), **more)
        runs.append((again, history.history))
    require_none(differing(runs[0][0], runs[1][0]), kind)
    assert runs[0][1] == runs[1][1]


@pytest.mark.on_ranks(2)
def test_a_generator_is_saved_between_epochs_only(folder: Path) -> None:
    settings = hf.Checkpoint(folder, every_steps=2)
    more = {"x": generated(), "y": None, "batch_size": None, "steps_per_epoch": 5}
    fit(build(), GRIDS[0], checkpoint=settings, epochs=2, **more)
    assert CheckpointFolder(folder).committed() == [5, 10]


@pytest.mark.on_ranks(2)
def test_samples_without_a_seed_are_each_met_once(folder: Path) -> None:
    """Their order is drawn from a seed that the checkpoint has."""
    numbers = np.arange(48)[:, None]

    def train(**more: Any) -> Any:
        keras.utils.set_random_seed(9)
        tf.random.set_seed(None)
        table = keras.layers.Embedding(48, 1, embeddings_initializer="zeros")
        model = keras.Sequential([keras.Input([1]), table, keras.layers.Flatten()])
        model.compile(keras.optimizers.SGD(8.0), Nearer())
        settings = hf.Checkpoint(folder, every_steps=1)
        kept = {"checkpoint": settings, "verbose": 0, "batch_size": 8, "num_partitions": 1}
        hf.fit(model, numbers, numbers, epochs=2, **kept | more)
        return np.ravel(table.embeddings)

    with pytest.raises(Interrupted):
        train(callbacks=[InterruptedAt(9)])
    assert np.array_equal(train(), np.full(48, 2.0)), "each row of the table grows by 1 an epoch"


class Nearer(keras.losses.Loss):
    """Less, the larger what is predicted."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return -y_pred[:, 0]


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("shards", [True, slow(False)])
def test_a_loss_scale_goes_on(shards: bool, folder: Path) -> None:
    """Half precision: the scale of the loss, which grows and falls, is the optimizer's."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:

        def scaled() -> Any:
            inner = keras.optimizers.Adam(1e-2)
            return keras.optimizers.LossScaleOptimizer(inner, 2.0**20, dynamic_growth_steps=5)

        whole, model, again = (build(optimizer=scaled) for _ in range(3))
        settings = hf.Checkpoint(folder, every_steps=2)
        more = {"shard_optimizer": shards}
        keras.utils.set_random_seed(1)
        fit(whole, GRIDS[0], **more)
        keras.utils.set_random_seed(1)
        interrupt(model, GRIDS[0], 12, checkpoint=settings, **more)
        keras.utils.set_random_seed(1)
        fit(again, GRIDS[0], checkpoint=settings, **more)
        require_none(differing(again, whole), "half precision")
        assert float(again.optimizer.dynamic_scale) != 2.0**20
    finally:
        keras.config.set_dtype_policy(before)


class Adversaries(keras.Model):
    """A generator and a discriminator, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.Input([8]), keras.layers.Dense(8)])
        self.discriminator = keras.Sequential([keras.Input([8]), keras.layers.Dense(1)])
        self.optimizers = [keras.optimizers.Adam(1e-2), keras.optimizers.Adam(2e-2)]
        self.strength = tf.Variable(1.0, trainable=False)
        self.mean = keras.metrics.Mean("real")

    def call(self, x: Any) -> Any:
        return self.generator(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        real, _ = data
        rows = real.shape[0] or tf.shape(real)[0]
        noise = tf.random.stateless_normal([rows, 8], [1, 2], dtype=real.dtype)
        with tf.GradientTape(persistent=True) as tape:
            made = self.discriminator(self.generator(noise))
            seen = tf.reduce_mean(tf.nn.softplus(-self.discriminator(real)))
            judged = (seen + tf.reduce_mean(tf.nn.softplus(made))) * tf.cast(
                self.strength, real.dtype
            )
            fooled = tf.reduce_mean(tf.nn.softplus(-made))
        for part, loss, optimizer in zip(
            (self.discriminator, self.generator), (judged, fooled), self.optimizers, strict=True
        ):
            weights = part.trainable_weights
            optimizer.apply(tape.gradient(loss, weights), weights)
        self.strength.assign(self.strength * 0.99)
        self.mean.update_state(seen)
        return {"real": self.mean.result()}

    @property
    def metrics(self) -> list[Any]:
        return [self.mean]


def adversaries(eager: bool = False) -> Any:
    keras.utils.set_random_seed(3)
    model = Adversaries()
    model.build([None, 8])
    model.compile(run_eagerly=eager)
    return model


def own_state(model: Any) -> list[np.ndarray]:
    slots = [v for optimizer in model.optimizers for v in optimizer.variables]
    return [np.asarray(v) for v in (*model.weights, *slots, model.strength)]


@pytest.mark.on_ranks(1, 2)
@pytest.mark.parametrize("steps", [7, slow(12)])
def test_optimizers_of_a_step_of_ones_own(steps: int, folder: Path, capsys: Any) -> None:
    """Their slots go on, and so do variables that are attributes."""
    models = [adversaries() for _ in range(3)]
    settings = hf.Checkpoint(folder / "parts", every_steps=2)
    grid = (1, WORLD.size)
    expected = fit(models[0], grid, checkpoint=folder / "whole")
    interrupt(models[1], grid, steps, checkpoint=settings)
    found = fit(models[2], grid, checkpoint=settings)
    pairs = zip(own_state(models[2]), own_state(models[0]), strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)
    assert found.history == expected.history
    assert "do not go on" not in "".join(capsys.readouterr())
    plain = hf.load_checkpoint(folder / "parts", adversaries())
    assert float(plain.strength) == float(models[2].strength)
    assert "do not go on: own-optimizers/" in "".join(capsys.readouterr())


@pytest.mark.on_ranks(1)
def test_an_optimizer_that_is_not_built_is_refused(folder: Path) -> None:
    """Eager steps build theirs when they first run, which is too late."""
    grid = (1, WORLD.size)
    fit(adversaries(eager=True), grid, checkpoint=folder, epochs=1)
    with pytest.raises(ValueError, match="Build the optimizers of your own steps before `fit`"):
        fit(adversaries(eager=True), grid, checkpoint=folder, epochs=2)
    model = adversaries(eager=True)
    for part, optimizer in zip(
        (model.discriminator, model.generator), model.optimizers, strict=True
    ):
        optimizer.build(part.trainable_weights)
    assert fit(model, grid, checkpoint=folder, epochs=2).epoch == [0, 1]
    assert int(model.optimizers[0].iterations) == 14


def halved(epoch: int, rate: float) -> float:
    return rate / 2


def rescheduled() -> Any:
    return keras.callbacks.LearningRateScheduler(halved)


def swapped() -> Any:
    return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)


@pytest.mark.on_ranks(1, 2)
@pytest.mark.parametrize("steps", [8, slow(10)])  # an epoch has 7
@pytest.mark.parametrize("make", [rescheduled, swapped])
def test_callbacks_that_change_variables_when_an_epoch_begins(
    make: Any, steps: int, folder: Path
) -> None:
    """They do so once, whether the epoch began before the save or not."""
    models = [build() for _ in range(3)]
    settings = hf.Checkpoint(folder / "parts", every_steps=1 if steps == 10 else 50)
    keras.utils.set_random_seed(1)
    expected = fit(models[0], GRIDS[-1], checkpoint=folder / "whole", callbacks=[make()])
    keras.utils.set_random_seed(1)
    interrupt(models[1], GRIDS[-1], steps, checkpoint=settings, callbacks=[make()])
    keras.utils.set_random_seed(1)
    found = fit(models[2], GRIDS[-1], checkpoint=settings, callbacks=[make()])
    faults = differing(models[2], models[0])
    if found.history != expected.history:
        faults.append(f"{found.history} in place of {expected.history}")
    require_none(faults, "resumed")


@pytest.mark.on_ranks(1, 2)
def test_an_epoch_goes_on_as_it_began(folder: Path) -> None:
    settings = hf.Checkpoint(folder, every_steps=2)
    interrupt(build(), GRIDS[-1], 10, checkpoint=settings)
    for more in ({"batch_size": 16}, {"x": ROWS[:40], "y": LABELS[:40]}):
        with pytest.raises(ValueError, match="An epoch goes on with the samples, batches and"):
            fit(build(), GRIDS[-1], checkpoint=settings, **more)
    other = build()
    other.compile(adam(), other.loss, metrics=["sparse_categorical_crossentropy"])
    with pytest.raises(ValueError, match="metrics that it began with"):
        fit(other, GRIDS[-1], checkpoint=settings)
    fit(build(), GRIDS[-1], checkpoint=settings)
    found = fit(build(), GRIDS[-1], checkpoint=settings, batch_size=16, epochs=5)
    assert found.epoch == [0, 1, 2, 3, 4]


@pytest.mark.on_ranks(2)
def test_one_thing_lets_a_training_go_on(folder: Path) -> None:
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    with pytest.raises(ValueError, match="Training goes on from one place"):
        fit(build(), GRIDS[-1], checkpoint=folder / "run", callbacks=[backup])


@pytest.mark.on_ranks(1)
def test_the_folder_of_a_step_is_no_place(folder: Path) -> None:
    fit(build(), GRIDS[-1], checkpoint=folder, epochs=1)
    with pytest.raises(ValueError, match="named as that of one step"):
        fit(build(), GRIDS[-1], checkpoint=folder / "step-0000000007")


@pytest.mark.on_ranks(1)
def test_a_log_has_one_header(folder: Path) -> None:
    def log() -> Any:
        return keras.callbacks.CSVLogger(folder / "log.csv", append=True)

    settings = hf.Checkpoint(folder / "run", every_steps=2)
    interrupt(build(), GRIDS[-1], 10, checkpoint=settings, callbacks=[log()])
    fit(build(), GRIDS[-1], checkpoint=settings, callbacks=[log()])
    lines = (folder / "log.csv").read_text().split()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1", "2", "3"]


def named_layers(*names: str) -> Any:
    keras.utils.set_random_seed(len(names[0]))
    inputs = keras.Input([4])
    x = keras.layers.Dense(4, name=names[0])(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name=names[1])(x))
    model.compile("sgd", "mse")
    return model


@pytest.mark.on_ranks(1)
def test_names_of_layers_count(folder: Path) -> None:
    model = named_layers("first", "second")
    rows = np.ones((8, 4))
    hf.fit(model, rows, rows, verbose=0, checkpoint=folder)
    other = hf.load_checkpoint(folder, named_layers("second", "first"))
    for mine in other.layers[1:]:
        theirs = model.get_layer(mine.name)
        assert all(map(np.array_equal, mine.get_weights(), theirs.get_weights()))
    with pytest.raises(ValueError, match="encoder/kernel"):
        hf.load_checkpoint(folder, named_layers("encoder", "decoder"))
    with pytest.raises(ValueError, match="has none. Pass the folder"):
        hf.load_checkpoint(folder / "none", model)


@pytest.mark.on_ranks(1)
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_damaged_file_changes_nothing(is_cut: bool, folder: Path) -> None:
    fit(build(), GRIDS[-1], checkpoint=folder, epochs=1)
    file = folder / "step-0000000007" / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data[:-8] if is_cut else data)
    model = build()
    before = model.get_weights()
    with pytest.raises(ValueError, match="rank-00000"):
        hf.load_checkpoint(folder, model)
    assert all(map(np.array_equal, model.get_weights(), before))


@pytest.mark.on_ranks(1)
def test_another_learning_rate_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is saved counts, as with Keras's own files; that must not go unnoticed."""
    for rate, epochs in ((0.25, 1), (0.25, 2), (0.5, 3)):
        model = keras.Sequential([keras.Input([8]), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate), "mse")
        kept = {"checkpoint": str(folder), "verbose": 0}
        caplog.clear()
        hf.fit(model, ROWS, LABELS, epochs=epochs, **kept)
        assert float(model.optimizer.learning_rate) == 0.25
        said = "as it was saved, 0.25, and not as compiled, 0.5" in caplog.text
        assert said == (rate == 0.5)


@pytest.mark.on_ranks(1)
def test_what_cannot_be_loaded_is_named(folder: Path) -> None:
    """A model without weights yet, one with another optimizer, and a link in place of a file."""
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    hf.fit(model, ROWS, LABELS, verbose=0, checkpoint=str(folder))
    with pytest.raises(ValueError, match="a model that is built"):
        hf.load_checkpoint(folder, keras.Sequential([keras.layers.Dense(1)]))
    other = keras.models.clone_model(model)
    other.compile("sgd", "mse")
    with pytest.raises(ValueError, match="into a model that is not compiled"):
        hf.load_checkpoint(folder, other)
    alone = hf.load_checkpoint(folder, keras.models.clone_model(model))
    assert np.array_equal(alone.layers[0].kernel, model.layers[0].kernel)
    (shard,) = folder.glob("step-*/*.safetensors")
    shard.rename(folder / "elsewhere")
    shard.symlink_to(folder / "elsewhere")
    with pytest.raises(ValueError, match="it is a link"):
        hf.load_checkpoint(folder, keras.models.clone_model(model))
