"""Settings of the tests that need no MPI."""

from __future__ import annotations

import os
import sys
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


@pytest.fixture(autouse=True)
def graphs_as_they_are() -> None:
    """Spare TensorFlow's optimization of graphs, which decides nothing here, but takes time."""
    tf = sys.modules.get("tensorflow")
    if tf is not None:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(params=[True, False], ids=["oneDNN", "TensorFlow"])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether kernels of oneDNN are to be taken, whatever this processor is."""
    from hyparflow.comm.one_dnn import processor_flags
    from hyparflow.engine.compiled import one_dnn

    wanted = bool(request.param)
    if wanted and not (one_dnn._is_there() and {"avx2", "fma"} <= processor_flags()):
        pytest.skip("TensorFlow has no kernels of oneDNN for this processor")
    monkeypatch.setattr(one_dnn, "is_chosen", lambda: wanted)
    return wanted
