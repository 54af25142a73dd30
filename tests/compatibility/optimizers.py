"""Every optimizer of Keras, their arguments, learning rate schedules, and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compatibility.rows import refused, works
from compatibility.runs import Runs, Slower, arrays, on_replicas, one_hot

ABSTRACT = ("Optimizer",)
SPECIAL = ("LossScaleOptimizer", "MultiOptimizer", "OptimizerMap")
OPTIMIZERS = keras.optimizers
SCHEDULES = keras.optimizers.schedules


def names() -> list[str]:
    """The optimizer classes of this Keras."""
    return sorted(
        name
        for name in dir(OPTIMIZERS)
        if isinstance(getattr(OPTIMIZERS, name), type) and name not in ABSTRACT
    )


def schedule_names() -> list[str]:
    """The schedule classes of this Keras."""
    return sorted(
        name
        for name in dir(SCHEDULES)
        if isinstance(getattr(SCHEDULES, name), type) and name != "LearningRateSchedule"
    )


def model_for(optimizer: Any) -> Any:
    """Regularized, constrained weights; the last partition may have none at all."""
    inputs = keras.Input((5,))
    regularizer, constraint = keras.regularizers.L2(0.01), keras.constraints.MaxNorm(1.0)
    x = keras.layers.Dense(
        6, activation="tanh", kernel_regularizer=regularizer, kernel_constraint=constraint
    )(inputs)
    x = keras.layers.Dense(6, activation="tanh")(x)
    outputs = keras.layers.Activation("tanh")(keras.layers.Dense(3)(x))
    model = keras.Model(inputs, outputs)
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def training(make: Callable[[], Any], **options: Any) -> Callable[[Runs], None]:
    """A check that the optimizer of `make` leaves the same weights and state, over two fits."""

    def train(run: Any) -> Any:
        model = model_for(make())
        for _ in range(2):
            run.fit(model, arrays()[0], one_hot(), batch_size=12, **options)
        return model

    return lambda runs: runs.compare(train)


for kind in (name for name in names() if name not in SPECIAL):
    works("Optimizers", kind)(
        training(lambda kind=kind: getattr(OPTIMIZERS, kind)(learning_rate=0.01))
    )

ARGUMENTS: dict[str, Callable[[], Any]] = {
    "learning_rate": lambda: OPTIMIZERS.SGD(learning_rate=0.05),
    "weight_decay": lambda: OPTIMIZERS.AdamW(0.01, weight_decay=0.1),
    "clipnorm": lambda: OPTIMIZERS.Adam(0.01, clipnorm=0.01),
    "clipvalue": lambda: OPTIMIZERS.Adam(0.01, clipvalue=0.01),
    "global_clipnorm": lambda: OPTIMIZERS.Adam(0.01, global_clipnorm=0.05),
    "use_ema": lambda: OPTIMIZERS.SGD(0.01, momentum=0.9, use_ema=True),
    "ema_momentum": lambda: OPTIMIZERS.SGD(0.01, use_ema=True, ema_momentum=0.7),
    "ema_overwrite_frequency": lambda: OPTIMIZERS.SGD(
        0.01, use_ema=True, ema_overwrite_frequency=3
    ),
    "loss_scale_factor": lambda: OPTIMIZERS.SGD(0.01, loss_scale_factor=8.0, global_clipnorm=0.1),
    "gradient_accumulation_steps": lambda: OPTIMIZERS.Adam(
        0.01, gradient_accumulation_steps=3, global_clipnorm=0.1
    ),
    "name": lambda: OPTIMIZERS.Adam(0.01, name="own_name"),
}
NOTES = {
    "global_clipnorm": "the norm over all partitions, each weight once",
    "gradient_accumulation_steps": "also with global_clipnorm",
}
for argument, make in ARGUMENTS.items():
    works("Arguments of optimizers", argument, note=NOTES.get(argument, ""))(training(make))


@works("Arguments of optimizers", "exclude_from_weight_decay")
def check_exclusions(runs: Runs) -> None:
    def make() -> Any:
        optimizer = OPTIMIZERS.AdamW(0.01, weight_decay=0.3)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    training(make)(runs)


SCHEDULE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "CosineDecay": {"initial_learning_rate": 0.1, "decay_steps": 6},
    "CosineDecayRestarts": {"initial_learning_rate": 0.1, "first_decay_steps": 3},
    "ExponentialDecay": {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5},
    "InverseTimeDecay": {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5},
    "PiecewiseConstantDecay": {"boundaries": [2, 5], "values": [0.1, 0.05, 0.01]},
    "PolynomialDecay": {"initial_learning_rate": 0.1, "decay_steps": 6},
}


def scheduled(name: str) -> Callable[[Runs], None]:
    """A check of a schedule.

    Keras computes schedules in float32. TensorFlow's constant folding changes their order of
    multiplication, and with it the last bit, as the rest of a graph suggests; so not here.
    """
    train = training(lambda: OPTIMIZERS.SGD(getattr(SCHEDULES, name)(**SCHEDULE_ARGUMENTS[name])))

    def check(runs: Runs) -> None:
        tf.config.optimizer.set_experimental_options({"constant_folding": False})
        try:
            train(runs)
        finally:
            tf.config.optimizer.set_experimental_options({"constant_folding": True})

    return check


for name in schedule_names():
    works("Learning rate schedules", name)(scheduled(name))


@works("Learning rate schedules", "a function")
def check_function(runs: Runs) -> None:
    training(lambda: OPTIMIZERS.SGD(lambda: 0.05))(runs)


works("Optimizers", "LossScaleOptimizer", note="all ranks agree on the scale")(
    training(
        lambda: OPTIMIZERS.LossScaleOptimizer(
            OPTIMIZERS.Adam(0.01, global_clipnorm=0.1, use_ema=True),
            initial_scale=1024.0,
            dynamic_growth_steps=3,
        )
    )
)


works("Optimizers", "LossScaleOptimizer with gradient accumulation and clipping")(
    training(
        lambda: OPTIMIZERS.LossScaleOptimizer(
            OPTIMIZERS.SGD(0.5, gradient_accumulation_steps=2, global_clipnorm=0.1),
            initial_scale=1024.0,
        )
    )
)


def grouped() -> Any:
    """One optimizer for the biases and one for the rest."""
    groups = OPTIMIZERS.OptimizerMap(default_optimizer=OPTIMIZERS.Adam(0.01))
    groups[".*bias"] = OPTIMIZERS.SGD(0.1)
    return OPTIMIZERS.MultiOptimizer(groups)


if hasattr(OPTIMIZERS, "MultiOptimizer"):

    @works("Optimizers", "MultiOptimizer, OptimizerMap", note='with strategy="data"')
    def check_several(runs: Runs) -> None:
        def train(run: Any) -> Any:
            model = model_for(grouped())
            slow_down = Slower(lambda model: model.optimizer.optimizers[1])
            run.fit(model, arrays()[0], one_hot(), batch_size=20, epochs=2, callbacks=[slow_down])
            return model

        if runs.options["strategy"] != "model":
            on_replicas().compare(train)

    @refused("Optimizers", "MultiOptimizer on a cut model", note='use strategy="data"')
    def check_several_cut(runs: Runs) -> None:
        if runs.options["strategy"] != "data":
            runs.refuse(
                lambda run: run.fit(model_for(grouped()), arrays()[0], one_hot()),
                "A MultiOptimizer cannot be used on a model that is cut",
            )


# --- precision ---


def linear(optimizer: Any) -> Any:
    """A model whose gradients grow with the square of its inputs."""
    layers = [keras.layers.Dense(size) for size in (4, 3, 3)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizer, "mse")
    return model


@works("Precision", "overflow", note="anywhere, in any micro-batch, skips the step everywhere")
def check_overflow(runs: Runs) -> None:
    def train(run: Any) -> Any:
        inner = OPTIMIZERS.Adam(0.01, global_clipnorm=0.1)
        model = linear(
            OPTIMIZERS.LossScaleOptimizer(inner, initial_scale=1e37, dynamic_growth_steps=4)
        )
        x = arrays()[0]
        x[9] = 1e140  # its loss is finite, its scaled gradient is not
        run.fit(model, x, one_hot(), batch_size=8, epochs=2)
        skipped = 12 - int(model.optimizer.iterations)
        assert skipped > 0
        return model, [float(model.optimizer.dynamic_scale), skipped]

    runs.compare(train)


def images_of(policy: str) -> Callable[[Any], Any]:
    """A training of convolutions by this policy."""

    def train(run: Any) -> Any:
        keras.config.set_dtype_policy(policy)
        try:
            inputs = keras.Input((8, 8, 3))
            x = keras.layers.Conv2D(6, 3, activation="relu", kernel_regularizer="l2")(inputs)
            y = keras.layers.Conv2D(6, 3, padding="same")(x)
            x = keras.layers.LayerNormalization()(keras.layers.Add()([x, y]))
            x = keras.layers.Dense(8, activation="tanh")(keras.layers.GlobalMaxPooling2D()(x))
            outputs = keras.layers.Dense(3, activation="softmax", dtype="float32")(x)
            model = keras.Model(inputs, outputs)
            loss = "sparse_categorical_crossentropy"
            model.compile("sgd", loss, weighted_metrics=[loss])
            random = np.random.default_rng(0)
            images = random.normal(size=(40, 8, 8, 3)).astype("float32")
            run.fit(model, images, random.integers(0, 3, 40), batch_size=8, epochs=2)
            cut = [tensor.dtype for tensor in (x, y)]
            return model, [*cut, type(model.optimizer).__name__]
        finally:
            keras.config.set_dtype_policy("float32")

    return train


def mixed(policy: str, tolerance: float, exact: str | None = None) -> Callable[[Runs], None]:
    """A check that a model of this policy trains alike, to the rounding of 16 bits."""
    train = images_of(policy)
    other = images_of(exact) if exact else None
    return lambda runs: runs.compare(train, tolerance, "float32", other)


# On processors that do not compute in bfloat16, plain Keras's small weights are up to 0.2 of
# themselves away from what float32 gives; how far depends on the rows of a call.
works("Precision", "mixed_bfloat16", note="tensors cross cuts in 16 bits; sums are in 32")(
    mixed("mixed_bfloat16", 1e-2, exact="float32")
)
works("Precision", "mixed_float16", note="with Keras's dynamic loss scale")(
    mixed("mixed_float16", 2e-3)
)
