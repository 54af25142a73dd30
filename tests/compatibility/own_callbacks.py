"""What callbacks of users do: read and write weights, predict, save, steer, stop, raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import hyparflow as hf
from compatibility.callbacks import fit, from_leader, states
from compatibility.rows import refused, works
from compatibility.runs import Runs, arrays, classifier

DO = "What callbacks do"


def doing(**hooks: Callable[..., Any]) -> Any:
    """A callback whose hooks take the callback, the number of the epoch or batch, and logs."""

    def hook(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, number=None, logs=None: function(self, number, logs)

    return type("Own", (keras.callbacks.Callback,), {k: hook(f) for k, f in hooks.items()})()


def comparing(**hooks: Callable[..., Any]) -> Callable[[Runs], None]:
    """A check of a callback that leaves its traces in History and weights."""
    return lambda runs: runs.compare(lambda run: fit(run, [doing(**hooks)]))


def seeing(**hooks: Callable[..., Any]) -> Callable[[Runs], None]:
    """A check of a callback whose hooks return what they see."""

    def train(run: Any) -> Any:
        seen: list[Any] = []

        def noted(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: seen.append(function(*args))

        model = fit(run, [doing(**{name: noted(hook) for name, hook in hooks.items()})])
        assert seen or not (run.is_plain or hf.is_leader())
        return model, from_leader(run, seen)

    return lambda runs: runs.compare(train)


def variables(callback: Any, *_: Any) -> Any:
    """All weights and, as soon as there are any, slots, read from the variables."""
    optimizer = callback.model.optimizer
    slots = optimizer.variables if optimizer.iterations > 0 else []
    return [np.array(variable.numpy()) for variable in [*callback.model.weights, *slots]]


def after_gathering(callback: Any, *_: Any) -> Any:
    callback.model.get_weights()
    return variables(callback)


works(DO, "read weights by get_weights", note="in any hook: they are gathered then")(
    seeing(
        on_train_batch_end=lambda callback, *_: callback.model.get_weights(),
        on_test_begin=lambda callback, *_: callback.model.get_weights(),
    )
)
works(DO, "read variables at the begin or end of epochs, evaluations and training")(
    seeing(
        **{
            f"on_{when}": variables
            for when in ("epoch_begin", "epoch_end", "test_begin", "test_end", "train_end")
        }
    )
)
works(
    DO,
    "read variables at the begin or end of batches",
    note="after a `model.get_weights()`, which brings those of all partitions up to date",
)(seeing(on_train_batch_end=after_gathering, on_test_batch_end=after_gathering))


def halve_by_method(callback: Any, *_: Any) -> None:
    callback.model.set_weights([weight / 2 for weight in callback.model.get_weights()])


def halve_variables(callback: Any, *_: Any) -> None:
    for variable in callback.model.weights:
        variable.assign(variable / 2)


works(DO, "set weights by set_weights", note="in any hook")(
    comparing(
        on_epoch_begin=halve_by_method,
        on_train_batch_end=lambda callback, batch, _: batch == 1 and halve_by_method(callback),
    )
)
works(DO, "assign to variables at the begin or end of epochs, evaluations and training")(
    comparing(on_train_begin=halve_variables, on_epoch_end=halve_variables)
)


def halve_and_use(callback: Any, *_: Any) -> Any:
    halve_variables(callback)
    x, y = held()
    predicted = callback.model.predict(x, verbose=0)
    callback.model.layers[-1].bias.assign_add([0.1, 0.2, 0.3])
    evaluated = callback.model.evaluate(x, y, verbose=0)
    halve_variables(callback)
    return [predicted, evaluated, callback.model.get_weights()]


works(DO, "assign to variables, then predict, evaluate or save in the same hook")(
    seeing(on_epoch_end=halve_and_use, on_train_begin=halve_and_use)
)


def halve_layers(callback: Any, *_: Any) -> Any:
    weights = [layer.get_weights() for layer in callback.model.layers]
    for layer, values in zip(callback.model.layers, weights, strict=True):
        layer.set_weights([value / 2 for value in values])
    return weights


works(DO, "read and set weights of layers by get_weights and set_weights", note="in any hook")(
    seeing(on_train_batch_end=halve_layers, on_epoch_begin=halve_layers)
)


def halve_after_gathering(callback: Any, *_: Any) -> None:
    callback.model.get_weights()
    halve_variables(callback)


works(
    DO,
    "assign to variables at the begin or end of batches",
    note="on a cut model after a `model.get_weights()`, and refused without it",
)(comparing(on_train_batch_begin=halve_after_gathering))


def half_stale(callback: Any, batch: int, _: Any) -> None:
    if batch == 1:
        halve_variables(callback)


@refused(DO, "assign to outdated variables of a cut model", note="`model.get_weights()` before")
def check_outdated(runs: Runs) -> None:
    if runs.options["strategy"] != "data":
        callback = doing(on_train_batch_end=half_stale)
        runs.refuse(lambda run: fit(run, [callback]), "written between two steps only after")


class Annealed:
    """A loss with two weights, of which a callback changes one of each kind."""

    def __init__(self) -> None:
        first, second = (
            keras.Variable(0.1 * n, dtype="float64", trainable=False, name="annealed")
            for n in (1, 2)
        )
        self.weights = {"first": first, "second": second}
        self.scale = tf.Variable(0.7, dtype="float64")

    def __call__(self, y: Any, y_pred: Any) -> Any:
        labels = keras.ops.one_hot(keras.ops.reshape(keras.ops.cast(y, "int32"), [-1]), 3)
        distance = labels - y_pred
        first, second = self.weights.values()
        mean = first * keras.ops.mean(distance**2, -1) + second * keras.ops.mean(abs(distance), -1)
        return self.scale * mean


@works(
    DO,
    "change variables of one's own that a loss, a metric or a layer reads",
    note="Keras's or TensorFlow's, found from there",
)
def check_own_variable(runs: Runs) -> None:
    def train(run: Any) -> Any:
        loss = Annealed()

        def anneal(callback: Any, number: int, logs: Any) -> None:
            loss.weights["first"].assign(0.1 * (number + 2))
            loss.scale.assign_add(0.1)

        hooks = {"on_epoch_begin": anneal, "on_train_batch_begin": anneal}
        model = classifier(loss=lambda y, y_pred: loss(y, y_pred), metrics=[])
        return fit(run, [doing(**hooks)], model)

    runs.compare(train)


def set_momentum(callback: Any, *_: Any) -> None:
    callback.model.optimizer.momentum = 0.5


@works(DO, "change settings of the optimizer", note="before the first step, as in Keras")
def check_settings(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model = classifier(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
        return fit(run, [doing(on_train_begin=set_momentum)], model)

    runs.compare(train)


def held() -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays(17)
    return x - 0.5, y


works(DO, "predict and evaluate", note="over all ranks")(
    seeing(
        on_epoch_end=lambda callback, *_: [
            callback.model.predict(held()[0], verbose=0),
            callback.model.evaluate(*held(), verbose=0),
        ],
        on_train_batch_end=lambda callback, *_: callback.model.predict(
            held()[0], batch_size=4, verbose=0
        ),
    )
)


@works(DO, "save the model", note="in any hook")
def check_saving(runs: Runs) -> None:
    def train(run: Any) -> Any:
        folder = run.folder()

        def save(callback: Any, number: int, logs: Any) -> None:
            callback.model.save(folder / f"{callback.model.optimizer.iterations.numpy()}.keras")

        hooks = {"on_epoch_begin": save, "on_train_batch_end": save}
        model = fit(run, [doing(**hooks)], epochs=2)
        found = states(folder)
        assert len(found) == 7
        return model, found

    runs.compare(train)


def slow_down(callback: Any, number: int, logs: Any) -> None:
    callback.model.optimizer.learning_rate = 0.01 / (1 + number)


works(DO, "change the learning rate", note="in any hook")(
    comparing(on_train_batch_begin=slow_down, on_epoch_end=slow_down)
)


def stop(callback: Any, number: int, logs: Any) -> None:
    callback.model.stop_training = number == 1


works(DO, "stop training at the end of an epoch")(comparing(on_epoch_end=stop))
works(DO, "stop training at the end of a batch")(comparing(on_train_batch_end=stop))
works(DO, "add to the logs")(
    comparing(on_epoch_end=lambda callback, epoch, logs: logs.update(squared=epoch**2))
)


@works(DO, "raise", note="the same error on every rank, which can go on training the model")
def check_raising(runs: Runs) -> None:
    def fail(*args: Any) -> None:
        raise LookupError("no such epoch")

    def train(run: Any) -> Any:
        model = classifier()
        for hook in ("on_epoch_end", "on_train_batch_end", "on_train_begin"):
            with pytest.raises(LookupError, match="no such epoch"):
                fit(run, [doing(**{hook: fail})], model)
        return fit(run, [], model)

    runs.compare(train)
