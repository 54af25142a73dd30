"""A model on a few random rows, as often as wanted, without a trace in it.

While a trial is open, BatchNormalization layers normalize by fixed numbers: that they mix rows is
known, and said elsewhere. Weights, random states and metrics end as they were.
"""

from __future__ import annotations

import contextlib
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
        rows: how many.

    Attributes:
        state: variables that calls may change, with their present values.
        seeds: the states of random generators.
        metrics, metric_variables: that layers keep.
        cut: after how many rows the batch is parted in two.
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
        """Give all state the values that it had, random states too."""
        for variable, value in self.state:
            variable.assign(value)

    def call(self, inputs: Any, training: bool, share: float = 1.0) -> list[np.ndarray]:
        """The flat outputs for these rows; the state is left as the call leaves it."""
        outputs, _ = self._body(inputs, training, tf.constant(share, tf.float64))
        return [np.asarray(x) for x in outputs if x is not None]

    def run(self, inputs: Any, training: bool) -> list[np.ndarray]:
        """The same from the state, and so the random numbers, of the beginning."""
        self.restore()
        return self.call(inputs, training)

    @contextlib.contextmanager
    def unit_weights(self) -> Iterator[None]:
        """While open, weights are random and of unit size: none hides by being small or zero.

        Random generators begin elsewhere: what is drawn is another thing than with the weights as
        they are.
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
    """A trial of `model` on these inputs; in the end all is as it was."""
    with fixed_moments(model), untouched(model):
        yield RowsTrial(model, inputs, rows)
