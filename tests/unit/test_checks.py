"""What is refused before any message is sent."""

from __future__ import annotations

from typing import Any

import pytest

keras = pytest.importorskip("keras")

from hyparflow.options import resolve  # noqa: E402
from hyparflow.training.checks import check_jit_compile  # noqa: E402


class OwnStep(keras.Model):  # type: ignore[misc, name-defined]
    """A model with a step of its own."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def compiled(**arguments: Any) -> Any:
    inputs = keras.Input((2,))
    model = OwnStep(inputs, keras.layers.BatchNormalization()(inputs))
    model.compile("sgd", "mse", **arguments)
    return model


def test_xla_for_a_step_of_its_own_is_refused() -> None:
    options = resolve(2, strategy="data")
    check_jit_compile(compiled(jit_compile=False), options)
    with pytest.raises(ValueError, match="XLA cannot compile a model's own `train_step`"):
        check_jit_compile(compiled(jit_compile=True), options)


def test_what_keras_chooses_on_gpus_is_no_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" means True there."""
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", lambda model: True)
    model = compiled()
    assert model.jit_compile
    check_jit_compile(model, resolve(2, strategy="data"))
    check_jit_compile(model, resolve(2, strategy="data", batchnorm="sync"))
