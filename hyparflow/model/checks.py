"""Checks of the model: that it is Keras's, compiled, and can be cut."""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.formats.text import shortened
from hyparflow.model.keras_internals.compiled import has_overridden
from hyparflow.model.keras_internals.layers import opened_graph

__all__ = ["check_model", "check_can_cut", "require_compiled"]


def require_compiled(model: Any, method: str) -> None:
    """Check that `model` is compiled.

    Raises:
        ValueError: if it is not.
    """
    if not model.compiled:
        raise ValueError(
            f"A model must be compiled before `{method}`: call model.compile(optimizer, loss). "
            f"Received: model '{model.name}', which is not compiled."
        )


def check_model(model: Any) -> None:
    """Check that `model` is a Keras model.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "hyparflow trains Keras 3 models. "
            f"Received: model={shortened(model)} of type {type(model).__name__}. "
            "Pass a keras.Model."
        )


def check_can_cut(model: Any) -> None:
    """Check that `model` has a graph that can be cut and no step of its own.

    Raises:
        ValueError: naming the class and what to do.
    """
    name = type(model).__name__
    # The input of a Sequential model that is not built follows from the data.
    unbuilt = isinstance(model, keras.Sequential) and not model.built
    if not unbuilt and opened_graph(model) is None:
        raise ValueError(
            "A model can be cut into partitions only if Keras knows its graph: a Functional or "
            "Sequential model, without a `call` of its own. Received: model of class "
            f"'{name}', which has no such graph. Build it with keras.Model(inputs, outputs), or "
            "use strategy='data', which trains any model."
        )
    for method in ("compute_loss", "compute_metrics"):
        if has_overridden(model, method):
            raise ValueError(
                f"A model with its own `{method}` cannot be cut: that method needs the whole "
                f"model at once. Received: model of class '{name}'. Use strategy='data'."
            )
