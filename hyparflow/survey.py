"""Tries a model out on a few rows, to learn what its layers do with the rows of a batch.

Most layers treat each row alone, so that a batch may be parted. A layer of the user's own may not:
it may mix rows, add to the loss what is no mean over rows, or count its calls. Nothing declares it,
so the model runs on four random rows at once and two by two, and what differs is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow import keras_internals
from hyparflow.batchnorm import normalized_layers
from hyparflow.body import Body, model_body
from hyparflow.random_rows import random_rows

__all__ = ["Findings", "own_layers", "survey"]

_ROWS = 4
_LENGTH = 5  # in place of a dimension of unknown size
_OVER_ROWS = frozenset(  # operations of keras.ops that may join the rows
    ["Mean", "Sum", "Max", "Min", "Std", "Var", "Norm", "Prod", "Cumsum", "Cumprod", "Average"]
    + ["Median", "Quantile", "Softmax", "LogSoftmax", "Moments", "Sort", "Argsort", "Flip", "Roll"]
    + ["Matmul", "Einsum", "Tensordot", "Transpose", "Reshape", "Logsumexp", "CountNonzero"]
)
_TOLERANCE = {"float64": 1e-9, "float32": 1e-3}


@dataclass
class Findings:
    """What layers do that differs when a batch is parted.

    Attributes:
        mixed: whether outputs for some rows depend on others.
        added: whether what layers add to the loss is no mean over the rows.
        state: variables that change in each call.
        metrics: metrics of layers whose state does not add up over parts of a batch.
    """

    mixed: bool = False
    added: bool = False
    state: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)


def own_layers(model: Any) -> list[str]:
    """Names of the layers and operations of `model` that may do more than treat each row alone."""
    found = []
    for layer in keras_internals.all_layers(model):
        kind = type(layer)
        is_keras = kind.__module__.partition(".")[0] in ("keras", "keras_hub")
        graph = keras_internals.opened_graph(layer)
        if graph is None and (not is_keras or kind.__name__ == "Lambda"):
            found.append(layer.name)
        for operation in () if graph is None else graph.operations:
            if not isinstance(operation, keras.Layer) and type(operation).__name__ in _OVER_ROWS:
                found.append(operation.name)
    return list(dict.fromkeys(found))


def survey(model: Any, types: Any) -> Findings:
    """Run `model` on random rows, whole and in parts; its variables end as they were.

    Args:
        model: a built model.
        types: shape and type of each input, in the user's structure.

    Returns:
        What was found; nothing where the model cannot be run on random rows.
    """
    seeds = keras_internals.seed_states(model)
    known = {id(v) for layer in normalized_layers(model) for v in layer.variables}
    known |= {id(seed) for seed in seeds}
    variables = list({id(v): v for v in [*model.non_trainable_variables, *seeds]}.values())
    saved = [np.array(variable.numpy()) for variable in variables]
    try:
        return _survey(model, keras.tree.map_structure(_random, types), variables, saved, known)
    except Exception:  # random rows may be no valid input; then nothing is known
        return Findings()
    finally:
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)


def _survey(
    model: Any, inputs: Any, variables: Sequence[Any], saved: list[np.ndarray], known: set[int]
) -> Findings:
    body = model_body(model)

    def run(start: int, stop: int) -> tuple[list[np.ndarray], float]:
        rows = keras.tree.map_structure(lambda x: x[start:stop], inputs)
        outputs, losses = body(rows, False, tf.ones([], tf.float64))
        arrays = [np.asarray(x) for x in outputs if x is not None]
        return arrays, sum(float(keras.ops.sum(loss)) for loss in losses)

    half = _ROWS // 2
    (whole, loss), (again, loss_again) = run(0, _ROWS), run(0, _ROWS)
    (first, loss_first), (second, loss_second) = run(0, half), run(half, _ROWS)
    findings = Findings()
    # What draws random numbers gives other outputs each time, and tells nothing.
    if loss == loss_again and all(map(np.array_equal, whole, again)):
        joined = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
        findings.mixed = not all(map(_alike, whole, joined))
        findings.added = not _alike(np.array([loss]), np.array([(loss_first + loss_second) / 2]))
    findings.metrics = _odd_metrics(model, body, inputs)
    body(inputs, True, tf.ones([], tf.float64))
    findings.state = [
        variable.path
        for variable, value in zip(variables, saved, strict=True)
        if id(variable) not in known and not np.array_equal(variable.numpy(), value)
    ]
    return findings


def _odd_metrics(model: Any, body: Body, inputs: Any) -> list[str]:
    """Names of metrics of layers whose state after a batch is not what its parts add up to."""
    layers = keras_internals.all_layers(model, include_self=False)
    metrics = keras_internals.layer_metrics(layers)

    def after(*ends: int) -> list[list[np.ndarray]]:
        for metric in metrics:
            metric.reset_state()
        for start, stop in itertools.pairwise((0, *ends)):
            rows = keras.tree.map_structure(lambda x, a=start, b=stop: x[a:b], inputs)
            body(rows, False, tf.constant((stop - start) / _ROWS, tf.float64))
        return [[np.asarray(v) for v in metric.variables] for metric in metrics]

    try:
        pairs = zip(metrics, after(_ROWS), after(1, _ROWS), strict=True)
        return [m.name for m, whole, parts in pairs if not all(map(_alike, whole, parts))]
    finally:
        for metric in metrics:
            metric.reset_state()


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b)) or a.dtype.kind not in "biu"
    tolerance = _TOLERANCE.get(a.dtype.name, 0.05)
    scale = max(float(np.abs(a).max(initial=0.0)), 1e-30)
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _random(spec: Any) -> Any:
    shape = [_ROWS, *(_LENGTH if size is None else size for size in spec.shape[1:])]
    return random_rows(shape, spec.dtype)
