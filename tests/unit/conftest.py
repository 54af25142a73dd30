"""Settings of the tests that need no MPI."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before Keras is imported: whatever ~/.keras/keras.json says.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture
def float64() -> Iterator[None]:
    """Build models in float64."""
    keras = pytest.importorskip("keras")
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # Keras keeps the first that anyone asks for
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])
