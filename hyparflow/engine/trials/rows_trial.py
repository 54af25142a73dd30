"""Runs a model on a few random rows, and sets it back afterwards.

While a trial is open, BatchNormalization layers normalize by fixed numbers: that they mix rows is
known, and reported elsewhere. Weights, random states and metrics are set back at the end.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.stages.stage_call import model_body
from hyparflow.model.keras_internals.layers import (
    all_layers,
    layer_metrics,
    seed_states,
)
from hyparflow.model.untouched import fixed_moments, untouched

__all__ = ["RowsTrial", "open_trial"]

_LARGEST = 1_000_000  # numbers in a weight that is replaced for a trial


class RowsTrial:
    """Runs a model on random rows.

    Args:
        model: a built model.
        inputs: random rows, in the user's structure.
        rows: the number of rows.

    Attributes:
        state: variables that calls may change, with their present values.
        seeds: the states of random generators.
        metrics, metric_variables: the metrics of layers, and their variables.
        cut: the number of rows of the first of two parts of the batch.
    """

    def __init__(self, model: Any, inputs: Any, rows: int) -> None:
        self.model = model
        self.inputs = inputs
        self.rows = rows
        self.cut = 1
        self.seeds = seed_states(model)
        layers = all_layers(model, include_self=False)
        self.metrics = layer_metrics(layers)
        self.metric_variables = [v for metric in self.metrics for v in metric.variables]
        variables = [*model.non_trainable_variables, *self.seeds, *self.metric_variables]
        known = {id(v): v for v in variables}
        self.state = [(variable, variable.numpy()) for variable in known.values()]
        self._body = model_body(model)

    def take(self, start: int, stop: int) -> Any:
        """Some of the rows."""
        return keras.tree.map_structure(lambda x: x[start:stop], self.inputs)

    def restore(self) -> None:
        """Set all state back to its values at the start, random states, too."""
        for variable, value in self.state:
            variable.assign(value)

    def call(self, inputs: Any, training: bool, share: float = 1.0) -> list[np.ndarray]:
        """The flat outputs for these rows; changes of the state stay."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first step says it, of the rows of the user
            outputs, _ = self._body(inputs, training, tf.constant(share, tf.float64))
        return [np.asarray(x) for x in outputs if x is not None]

    def run(self, inputs: Any, training: bool) -> list[np.ndarray]:
        """The flat outputs for these rows, after `restore`."""
        self.restore()
        return self.call(inputs, training)

    @contextlib.contextmanager
    def unit_weights(self) -> Iterator[None]:
        """While open, weights are random and of unit size: none hides by being small or zero.

        Random generators start from another state than with the present weights, so they draw other
        numbers.
        """
        draw = np.random.default_rng(1)
        saved = []
        state = self.state
        seeds = {id(variable) for variable in self.seeds}
        self.state = [(v, value + 1 if id(v) in seeds else value) for v, value in state]
        try:
            for variable in self.model.trainable_variables:
                shape = tuple(variable.shape)
                if "float" not in variable.dtype or np.prod(shape) > _LARGEST:
                    continue
                saved.append((variable, variable.numpy()))
                values = draw.normal(size=shape)
                if len(shape) > 1:
                    values *= np.prod(shape[:-1]) ** -0.5
                else:
                    values = 1 + values / 4
                variable.assign(values)
            yield
        finally:
            self.state = state
            for variable, value in saved:
                variable.assign(value)


@contextlib.contextmanager
def open_trial(model: Any, inputs: Any, rows: int) -> Iterator[RowsTrial]:
    """A trial of `model` on these inputs; at the end the model is set back."""
    with fixed_moments(model), untouched(model):
        yield RowsTrial(model, inputs, rows)
