"""Which models gain by hyparflow's engine over Keras's own loop, in a single process.

A deep model of blocks that repeat takes minutes to compile as a whole; the engine compiles each
kind of block once (`hyparflow.model.unit_layout`). Layers that a faster kernel computes train
faster (`hyparflow.engine.kernels`). All other models are left to Keras.
"""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.engine.compiled import choice
from hyparflow.engine.kernels.rewriter import may_be_rewritten
from hyparflow.model.experts.expert_banks import is_bank
from hyparflow.model.keras_internals.compiled import asked_for_xla, own_step
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.layout import cut_model
from hyparflow.model.unit_layout import COST_OF_A_SECOND, units_of, with_graph
from hyparflow.options import Options

__all__ = ["gains_by_engine"]

_ROWS = 32  # of a batch, which is not known yet: how many blocks a unit has depends on it
_LONG = 0.04  # seconds of a step; the engine takes 3 ms of Python more than Keras's loop
_STEPS = ("train_step", "test_step", "predict_step")


def gains_by_engine(model: Any, options: Options, known: bool) -> bool:
    """Whether the engine trains a model as Keras does, and faster.

    Args:
        model: what the user gave.
        options: of one process.
        known: whether that was found out before, of a model that is the same but for `compile`.
    """
    if not _is_trained_alike(model):
        return False
    if known or _repeats(model, options):
        return True
    layers = all_layers(model)
    rewritten = options.kernels == "auto" and any(may_be_rewritten(x) or is_bank(x) for x in layers)
    return rewritten and _computes_for_long(model, options)


def _is_trained_alike(model: Any) -> bool:
    """Whether the engine trains a model as Keras does, so that it may take its place."""
    if not isinstance(model, keras.Model):
        return False
    if not model.built or not model.compiled or model.run_eagerly or asked_for_xla(model):
        return False
    if getattr(model, "steps_per_execution", 1) != 1 or not choice.compiler().shares:
        return False
    return not any(own_step(model, step) for step in _STEPS)


def _computes_for_long(model: Any, options: Options) -> bool:
    """Whether a step computes for so long that what the engine adds to each is little."""
    operations = with_graph(model, cut_model(model, options), fine=True).operations
    if operations is None:
        return False
    cost = _ROWS * sum(operation.cost for operation in operations.operations)
    return cost / COST_OF_A_SECOND > _LONG


def _repeats(model: Any, options: Options) -> bool:
    """Whether blocks of the model repeat so often that compiling one of them pays."""
    layout = with_graph(model, cut_model(model, options))
    return layout.graph is not None and units_of(layout, _ROWS) is not None
