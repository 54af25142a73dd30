"""Deep models in one process: hyparflow's engine compiles their blocks once; no MPI is started."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

import hyparflow as hf
from hyparflow.comm.one_process import OneProcess
from hyparflow.training import auto
from hyparflow.training.parallel_model import ParallelModel
from hyparflow.training.plain_model import PlainModel

RANDOM = np.random.default_rng(0)
ROWS, LABELS = RANDOM.normal(size=(22, 6)), RANDOM.normal(size=(22, 3))


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HYPARFLOW_UNITS", "all")  # as if the small models here were deep
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def build(optimizer: Any = "adam", loss: Any = "mse", **more: Any) -> Any:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input([6])
    for _ in range(3):
        y = keras.layers.BatchNormalization()(x)
        y = keras.layers.Dense(6, activation="relu", kernel_regularizer="l2")(y)
        x = keras.layers.Add()([x, keras.layers.Dropout(0.2)(y)])
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile(optimizer, loss, metrics=["mae"], **more)
    return model


def run(fit: Callable[..., Any], **more: Any) -> dict[str, Any]:
    keras.utils.set_random_seed(4)
    kept = {"batch_size": 8, "epochs": 2, "verbose": 0, "validation_split": 0.2} | more
    history: dict[str, Any] = fit(ROWS, LABELS, **kept).history
    return history


def require_equal(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-10, atol=1e-12)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": keras.optimizers.Adam,
    "clipped": lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    "averaged": lambda: keras.optimizers.AdamW(use_ema=True, ema_momentum=0.5),
}


# What is clipped is tested on ranks, too.
@pytest.mark.parametrize(
    "name", ["adam", "averaged", pytest.param("clipped", marks=pytest.mark.slow)]
)
def test_numbers_are_those_of_plain_keras(name: str) -> None:
    plain, model = build(OPTIMIZERS[name]()), build(OPTIMIZERS[name]())
    assert isinstance(hf.parallelize(model), ParallelModel)
    expected = run(plain.fit)
    found = run(lambda *args, **kwargs: hf.fit(model, *args, **kwargs))
    assert found.keys() == expected.keys()
    require_equal(found.values(), expected.values())
    require_equal(model.get_weights(), plain.get_weights())
    require_equal(model.optimizer.variables, plain.optimizer.variables)
    require_equal([hf.predict(model, ROWS, verbose=0)], [plain.predict(ROWS, verbose=0)])
    mine = hf.evaluate(model, ROWS, LABELS, verbose=0)
    require_equal(mine, plain.evaluate(ROWS, LABELS, verbose=0))


def test_callbacks() -> None:
    def callbacks() -> list[Any]:
        return [
            keras.callbacks.EarlyStopping("loss", patience=1, restore_best_weights=True),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (epoch + 1)),
        ]

    plain, model = build(), build()
    expected = run(plain.fit, epochs=4, callbacks=callbacks())
    more = {"epochs": 4, "callbacks": callbacks()}
    found = run(lambda *args, **kwargs: hf.fit(model, *args, **kwargs), **more)
    require_equal(found.values(), expected.values())
    require_equal(model.get_weights(), plain.get_weights())


def _joins_rows(y: Any, p: Any) -> Any:
    """A loss that no two ranks could share."""
    return keras.ops.mean(keras.ops.abs(y - p)) / keras.ops.max(keras.ops.abs(p))


def test_what_joins_rows_is_right_and_no_reason_for_a_warning() -> None:
    plain, model = build(loss=_joins_rows), build(loss=_joins_rows)
    expected = run(plain.fit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(lambda *args, **kwargs: hf.fit(model, *args, **kwargs))
    require_equal(found.values(), expected.values())


@pytest.mark.parametrize("given", [{"kernels": "keras"}, {"recompute": "block"}])
def test_what_one_process_follows_asks_for_no_ranks(given: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lambda *args, **kwargs: hf.fit(build(), *args, **given, **kwargs))


class OwnStep(keras.Model):
    """A model with a step of its own."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def _own_step() -> Any:
    model = build()
    own = OwnStep(model.inputs, model.outputs)
    own.compile("adam", "mse")
    return own


LEFT_TO_KERAS: dict[str, Callable[[], Any]] = {
    "eager": lambda: build(run_eagerly=True),
    "several steps": lambda: build(steps_per_execution=2),
    "own step": _own_step,
    "a model without a graph": lambda: keras.Sequential([keras.layers.Dense(3)]),
}


@pytest.mark.parametrize("name", LEFT_TO_KERAS)
def test_other_models_are_left_to_keras(name: str) -> None:
    assert isinstance(hf.parallelize(LEFT_TO_KERAS[name]()), PlainModel)


def test_models_that_are_not_deep_are_left_to_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPARFLOW_UNITS")
    assert isinstance(hf.parallelize(build()), PlainModel)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, marks=pytest.mark.slow),  # the other asks for more, and gets the same
        {"num_partitions": 4, "num_microbatches": 3},
    ],
)
def test_auto_plans_for_this_process(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    real, planned = auto.plan, []

    def short_of_memory(*args: Any, **kwargs: Any) -> Any:
        block = real(*args, **kwargs | {"recompute": "block", "memory_limit": None})
        most = max(part.memory.total for part in block.partitions)
        planned.append(real(*args, **kwargs | {"memory_limit": most}))
        return planned[-1]

    monkeypatch.setattr(auto, "plan", short_of_memory)
    monkeypatch.setattr(auto, "costs_of_model", lambda *args: "estimate")
    plain, model = build(), build()
    expected = run(plain.fit)
    found = run(lambda *args, **kwargs: hf.fit(model, *args, recompute="auto", **more, **kwargs))
    assert [plan.recompute for plan in planned] == ["block"]
    require_equal(found.values(), expected.values())
    require_equal(model.get_weights(), plain.get_weights())
    said = [str(w.message) for w in recwarn if "ranks asked for" in str(w.message)]
    assert bool(said) == bool(more)


def test_errors_come_as_they_are() -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("boom")

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
    with pytest.raises(ZeroDivisionError, match="boom"):
        hf.fit(build(), ROWS, LABELS, verbose=0, callbacks=[callback])


SCRIPT = """
import sys, keras, numpy as np, hyparflow as hf
layers = [keras.layers.Dense(4, activation="relu") for _ in range(80)]
model = keras.Sequential([keras.Input([4]), *layers])
model.compile("sgd", "mse")
hf.fit(model, np.ones([8, 4]), np.ones([8, 4]), verbose=0)
print(type(hf.parallelize(model)).__name__, "mpi4py.MPI" in sys.modules)
"""


def test_deep_models_need_no_mpi() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["ParallelModel", "False"], done.stderr


def test_collectives_of_one_rank() -> None:
    world = OneProcess()
    array = np.arange(3.0)
    world.sum(array, "nothing", np.ones(3))
    assert array.tolist() == [1, 1, 1]
    world.sum(array, "nothing")
    world.sum_to(array, 0, "nothing")
    world.broadcast(array, 0, "nothing")
    assert array.tolist() == [1, 1, 1]
    assert world.all_gather_objects("x", "nothing") == ["x"]
    assert world.broadcast_object("x", 0, "nothing") == "x"
    assert world.all_gather_rows(array, "nothing").tolist() == [1, 1, 1]
    assert (world.group(3).size, world.group(3).rank) == (1, 0)
