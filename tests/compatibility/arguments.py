"""Arguments of fit, evaluate, predict and compile."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import hyparflow as hf
from compatibility.rows import refused, works
from compatibility.runs import Runs, arrays, classifier, one_hot

FIT, EVALUATE, PREDICT = (f"Arguments of {name}" for name in ("fit", "evaluate", "predict"))
COMPILE = "Arguments of compile"
WEIGHTS = np.linspace(0, 2, 45)
CLASS_WEIGHTS = {0: 0.2, 1: 1.0, 2: 3.0}


def fitting(**arguments: Any) -> Callable[[Runs], None]:
    """A check that `fit` with these arguments does what plain Keras does."""

    def train(run: Any) -> Any:
        model = classifier(weighted_metrics=["accuracy"])
        x, y = arrays()
        defaults = {"x": x, "y": y, "batch_size": 20, "epochs": 2}
        run.fit(model, **(defaults | arguments))
        return model

    return lambda runs: runs.compare(train)


held = (*(part[:19] for part in arrays()), np.arange(19.0))

works(FIT, "x", "y", "epochs")(fitting())
works(FIT, "batch_size", note="the global batch")(fitting(batch_size=12))
works(FIT, "shuffle", note="Keras's own order for a seed")(fitting(shuffle=False))
works(FIT, "validation_split")(fitting(validation_split=0.3))
works(FIT, "validation_data")(fitting(validation_data=held[:2]))
works(FIT, "validation_batch_size")(fitting(validation_data=held, validation_batch_size=7))
works(FIT, "validation_steps")(
    fitting(validation_data=held, validation_batch_size=6, validation_steps=2)
)
works(FIT, "validation_freq")(fitting(validation_data=held, validation_freq=2))
works(FIT, "initial_epoch")(fitting(initial_epoch=1, epochs=3))
works(FIT, "steps_per_epoch")(fitting(steps_per_epoch=2, batch_size=None))
works(FIT, "sample_weight")(fitting(sample_weight=WEIGHTS))


@refused(FIT, "sample_weight of a wrong shape", note="with a ValueError on all ranks")
def check_wrong_weights(runs: Runs) -> None:
    def train(run: Any) -> Any:
        return run.fit(classifier(), *arrays(), sample_weight=np.ones((45, 4)))

    runs.refuse(train, r"must have one number for each row.*\(None, 4\)")


works(FIT, "class_weight")(fitting(class_weight=CLASS_WEIGHTS, validation_split=0.3))


@works(FIT, "callbacks", note="run on the leader only")
def check_callbacks(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model, (x, y) = classifier(), arrays()
        seen: list[Any] = []
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append([batch, *map(float, logs.values())])
        )
        run.fit(model, x, y, callbacks=[callback])
        return model, seen if run.is_plain or hf.is_leader() else None

    runs.compare(_leaders_extra(train))


@works(FIT, "verbose", note="the bar appears once, on the leader")
def check_verbose(runs: Runs) -> None:
    def train(run: Any) -> Any:
        model, (x, y) = classifier(), arrays()
        text = io.StringIO()
        for verbose in (0, 1, 2, "auto"):
            with contextlib.redirect_stdout(text):
                run.fit(model, x, y, batch_size=20, verbose=verbose)
        lines = [line for line in text.getvalue().splitlines() if "Epoch" in line]
        return model, lines if run.is_plain or hf.is_leader() else None

    runs.compare(_leaders_extra(train))


def _leaders_extra(train: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`train`, with what only the leader has given to all."""
    from contract import WORLD

    def trained(run: Any) -> Any:
        model, extra = train(run)
        return model, extra if run.is_plain else WORLD.bcast(extra)

    return trained


def evaluating(**arguments: Any) -> Callable[[Runs], None]:
    """A check of `evaluate` with these arguments."""

    def train(run: Any) -> Any:
        model, (x, y) = classifier(weighted_metrics=["accuracy"]), arrays()
        values = run.evaluate(model, **({"x": x, "y": y} | arguments))
        return None, values if isinstance(values, dict) else list(values)

    return lambda runs: runs.compare(train)


works(EVALUATE, "x", "y", "verbose")(evaluating(verbose=2))
works(EVALUATE, "batch_size")(evaluating(batch_size=13))
works(EVALUATE, "sample_weight")(evaluating(sample_weight=WEIGHTS))
works(EVALUATE, "steps")(evaluating(steps=2, batch_size=10))
works(EVALUATE, "return_dict")(evaluating(return_dict=True))
works(EVALUATE, "callbacks")(evaluating(callbacks=[keras.callbacks.Callback()]))


def predicting(**arguments: Any) -> Callable[[Runs], None]:
    """A check of `predict` with these arguments."""

    def train(run: Any) -> Any:
        return None, run.predict(classifier(), **({"x": arrays()[0]} | arguments))

    return lambda runs: runs.compare(train)


works(PREDICT, "x", "verbose")(predicting(verbose=2))
works(PREDICT, "batch_size")(predicting(batch_size=13))
works(PREDICT, "steps")(predicting(steps=2, batch_size=10))
works(PREDICT, "callbacks")(predicting(callbacks=[keras.callbacks.Callback()]))


def compiling(**arguments: Any) -> Callable[[Runs], None]:
    """A check that a model compiled so trains as with plain Keras."""

    def train(run: Any) -> Any:
        model, (x, y) = classifier(**arguments), arrays()
        run.fit(model, x, y, batch_size=12, sample_weight=WEIGHTS, validation_split=0.2)
        return model

    return lambda runs: runs.compare(train)


def spread(y_true: Any, y_pred: Any) -> Any:
    """A metric with a value for each row."""
    return keras.ops.max(y_pred, -1) - keras.ops.min(y_pred, -1)


def mean_spread(y_true: Any, y_pred: Any) -> Any:
    """A metric with one value for a batch, a mean over rows."""
    return keras.ops.mean(spread(y_true, y_pred))


works(COMPILE, "optimizer")(compiling(optimizer="rmsprop"))
works(COMPILE, "loss", note="a name, object or function, or a list or dict of them")(
    compiling(loss="sparse_categorical_crossentropy")
)
works(COMPILE, "metrics", note="names, objects, functions; lists and dicts of them")(
    compiling(metrics=["accuracy", spread, mean_spread])
)
works(COMPILE, "weighted_metrics")(compiling(weighted_metrics=["accuracy", spread]))
works(COMPILE, "run_eagerly")(compiling(run_eagerly=True))
works(COMPILE, "steps_per_execution")(compiling(steps_per_execution=2))
works(COMPILE, "jit_compile", note="each stage is compiled by XLA")(compiling(jit_compile=True))
works(COMPILE, "auto_scale_loss", note="with mixed_float16")(compiling(auto_scale_loss=False))


@works(COMPILE, "loss_weights")
def check_loss_weights(runs: Runs) -> None:
    def train(run: Any) -> Any:
        inputs = keras.Input((5,))
        x = keras.layers.Dense(6, activation="tanh")(inputs)
        early = keras.layers.Dense(3, name="early")(x)
        late = keras.layers.Dense(3, name="late")(keras.layers.Dense(6, activation="tanh")(x))
        model = keras.Model(inputs, {"early": early, "late": late})
        model.compile(
            "sgd",
            {"early": "mse", "late": keras.losses.Huber()},
            loss_weights={"early": 0.3, "late": 2.0},
            metrics={"early": ["mae"], "late": [keras.metrics.CosineSimilarity()]},
        )
        x = arrays()[0]
        run.fit(model, x, {"early": one_hot(), "late": one_hot()}, batch_size=12)
        return model

    runs.compare(train)
