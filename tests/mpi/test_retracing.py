"""Many trainings in one script are none of the retracing that TensorFlow warns of."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
from keras import layers
from tensorflow.python.eager.polymorphic_function import polymorphic_function

import hyparflow as hf


def build() -> keras.Model:
    """A model with all that is compiled beside its stages: statistics, penalty, masks, metrics."""
    inputs = keras.Input((4, 2))
    x = layers.Masking()(inputs)
    x = layers.BatchNormalization()(layers.Dense(3, kernel_regularizer="l2")(x))
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile("sgd", "mse", metrics=["mae"], weighted_metrics=["mse"])
    return model


@pytest.mark.on_ranks(2)  # for the time: each rank compiles the same on any number of them
def test_fits_are_no_retracing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polymorphic_function, "FREQUENT_TRACING_WARNING_THRESHOLD", 3)
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    x, y = np.ones((8, 4, 2)), np.ones((8, 4, 1))
    arguments = {"batch_size": 8, "verbose": 0, "batchnorm": "deferred"}
    try:
        for _ in range(4):  # new traces in a row are what it warns of: five, here three
            hf.fit(build(), x, y, strategy="data", sample_weight=np.ones((8, 4)), **arguments)
    finally:
        logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records]
    ours = [text for text in said if "retracing" in text and "TensorFlowTrainer" not in text]
    assert not ours  # in one process Keras's own step function is warned of
