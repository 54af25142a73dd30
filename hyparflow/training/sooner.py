"""Which models start sooner with hyparflow's engine than with Keras's, in a single process.

A deep model of blocks that repeat takes minutes to compile as a whole. The engine compiles each
kind of block once (`hyparflow.model.unit_layout`). All other models are left to Keras.
"""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.engine.compiled import choice
from hyparflow.model.keras_internals.compiled import asked_for_xla, own_step
from hyparflow.model.layout import cut_model
from hyparflow.model.unit_layout import units_of, with_graph
from hyparflow.options import Options

__all__ = ["may_start_sooner", "repeats"]

_ROWS = 32  # of a batch, which is not known yet: how many blocks a unit has depends on it
_STEPS = ("train_step", "test_step", "predict_step")


def may_start_sooner(model: Any) -> bool:
    """Whether the engine trains a model as Keras does, so that it may take its place."""
    if not isinstance(model, keras.Model):
        return False
    if not model.built or not model.compiled or model.run_eagerly or asked_for_xla(model):
        return False
    if getattr(model, "steps_per_execution", 1) != 1 or not choice.compiler().shares:
        return False
    return not any(own_step(model, step) for step in _STEPS)


def repeats(model: Any, options: Options) -> bool:
    """Whether blocks of the model repeat so often that compiling one of them pays."""
    layout = with_graph(model, cut_model(model, options))
    return layout.graph is not None and units_of(layout, _ROWS) is not None
