"""Real architectures, cut by the load balancer: predictions and one training step.

In float64, because a deep network with BatchNormalization over four images blows rounding up, and
uncompiled (`run_eagerly=True`) on both sides, because compiling would take most of the time; what
is compiled is compared by the contract test.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, differences, float_type, require_none

import hyparflow as hf

SIDES = {
    "VGG16": 32,
    "MobileNetV2": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "ConvNeXtTiny": 32,
    "EfficientNetV2B0": 32,
    "InceptionV3": 75,
    "Xception": 71,
    "NASNetMobile": 32,
}
SLOW = (
    *("VGG16", "ConvNeXtTiny", "DenseNet121", "NASNetMobile"),
    *("InceptionV3", "Xception", "EfficientNetV2B0", "MobileNetV2"),
)

pytestmark = pytest.mark.skipif(WORLD.size == 1, reason="a cut needs two ranks")


def build(name: str) -> Any:
    """The architecture with random weights, ten classes and plain SGD."""
    keras.utils.set_random_seed(3)
    shape = (SIDES[name], SIDES[name], 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=10)
    model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("name", SIDES)
def test_predict_and_step(name: str, request: pytest.FixtureRequest) -> None:
    """As many partitions as ranks give plain Keras's predictions and weights."""
    turn = 2 if list(SIDES).index(name) % 2 == 0 else 4
    if (name in SLOW or turn != WORLD.size) and not request.config.getoption("--everything"):
        pytest.skip("for its time only with --everything, or on another number of ranks")
    with float_type("float64"):
        model = build(name)
        rng = np.random.default_rng(5)
        x = rng.random((4, SIDES[name], SIDES[name], 3)) * 255
        y = rng.integers(0, 10, 4)
        start = State.of(model)
        faults: list[str] = []
        expected = None
        if hf.is_leader():
            predicted = model.predict(x, verbose=0)
            history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
            expected = Outcome(history.history, State.of(model))
            start.restore(model)
        actual = hf.predict(model, x, verbose=0, strategy="model")
        if hf.is_leader():
            faults += differences("predictions", actual, predicted, 1e-10)
        history = hf.fit(
            model, x, y, 4, shuffle=False, verbose=0, strategy="model", num_microbatches=1
        )
        if expected is not None:
            faults += Outcome(history.history, State.of(model)).compare(expected, 1e-8)
        require_none(faults, f"{name} over {WORLD.size} partitions")
