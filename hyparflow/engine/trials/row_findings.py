"""Tries a model out on a few rows, to learn what its layers do with the rows of a batch.

Most layers treat each row alone, so that a batch may be parted. A layer of the user's own may not:
it may mix rows, branch on values of the whole batch, add to the loss something else than a mean
over rows, count its calls, or take one number of rows only. Nothing declares this, so the model
runs on four random rows at once and in parts, or on as many as training will have, and differences
are named.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.stages.stage_call import model_body
from hyparflow.engine.trials.added_losses import added_losses
from hyparflow.engine.trials.mixing import find_mixing
from hyparflow.engine.trials.rows_trial import RowsTrial, open_trial
from hyparflow.formats.text import first_line
from hyparflow.model.branches import branching_operations
from hyparflow.model.keras_internals.compiled import has_overridden
from hyparflow.model.keras_internals.layers import all_layers, opened_graph
from hyparflow.model.layer_names import layer_of, layer_of_operation
from hyparflow.model.normalization import normalized_layers
from hyparflow.model.random_rows import random_rows
from hyparflow.model.untouched import untouched

__all__ = ["RowFindings", "find_row_faults"]

_ROWS = 4
_LENGTH = 5  # the size for a dimension of unknown size
_TOLERANCE = {"float64": 1e-9, "float32": 1e-3}


@dataclass
class RowFindings:
    """What layers do that differs when a batch is parted.

    Attributes:
        mixed: whether outputs for some rows depend on others.
        mixing: the layers, or operations, that mix rows, as far as they were found.
        branches: layers, or operations, that branch on values of the whole batch.
        added: layers that add to the loss what is neither a mean nor a sum over the rows.
        sums: (number of a layer, position) of the added losses that are sums over rows.
        state: variables that change in each call.
        metrics: metrics of layers whose state does not add up over parts of a batch.
        fixed: the number of rows with which a call failed, though a call with all did not.
        failed: the layer in which that happened, or "".
        error: the first line of the error; without `fixed`, why nothing else is known.
        hidden: whether branches cannot be seen, because the model runs eagerly.
    """

    mixed: bool = False
    mixing: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    sums: list[tuple[int, int]] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    fixed: int | None = None
    failed: str = ""
    error: str = ""
    hidden: bool = False


def find_row_faults(
    model: Any, types: Any, rows: int | None = None, parts: Sequence[int] = ()
) -> RowFindings:
    """Run `model` on random rows, whole and in parts; its variables end as they were.

    Args:
        model: a built model.
        types: shape and type of each input, in the user's structure.
        rows: of a global batch, where known.
        parts: how many rows the micro-batches of the replicas have.

    Returns:
        What was found.
    """
    findings = RowFindings()
    if opened_graph(model) is None and not has_overridden(model, "call"):
        return findings  # the model has no `call`; its own steps call its layers
    try:
        _survey(model, types, _ROWS, 1, findings)
    except Exception as error:  # random rows may be no valid input, or four too few
        findings = RowFindings(failed=layer_of(error), error=first_line(error))
        if rows is not None and parts:
            _survey_sizes(model, types, rows, parts, findings)
    _find_branches(model, types, findings)
    return findings


def _survey_sizes(
    model: Any, types: Any, rows: int, parts: Sequence[int], findings: RowFindings
) -> None:
    """Try the numbers of rows that training will have, for a model that cannot take any."""
    try:
        with open_trial(model, _random(types, rows), rows) as trial:
            trial.call(trial.inputs, training=False)
            for part in sorted(set(parts)):
                if findings.fixed is None:
                    _try_part(trial, part, findings)
        if findings.fixed is None:
            _survey(model, types, rows, parts[0], findings)
            findings.error = ""
    except Exception:  # the first error is reported
        return


def _try_part(trial: RowsTrial, part: int, findings: RowFindings) -> None:
    try:
        outputs = trial.call(trial.take(0, part), training=False)
        if any(x.ndim and x.shape[0] % part for x in outputs):
            findings.fixed, findings.failed, findings.error = part, "", "rows are lost or made"
    except Exception as error:
        findings.fixed = part
        findings.failed, findings.error = layer_of(error), first_line(error)


def _survey(model: Any, types: Any, rows: int, cut: int, findings: RowFindings) -> None:
    with open_trial(model, _random(types, rows), rows) as trial:
        trial.cut = cut
        layers = all_layers(model)
        added = added_losses(trial)
        others = [layers[loss.layer].name for loss in added if loss.kind == "other"]
        findings.added = list(dict.fromkeys(others))
        findings.sums = [(loss.layer, loss.position) for loss in added if loss.kind == "sum"]
        mixing = find_mixing(trial)
        findings.mixed = mixing is not None
        findings.mixing = [] if mixing is None else mixing.layers
        findings.metrics = _odd_metrics(trial)
        findings.state = _changed_state(trial)


def _changed_state(trial: RowsTrial) -> list[str]:
    """Paths of the variables that a call in training changes and should not."""
    known = {id(v) for layer in normalized_layers(trial.model) for v in layer.variables}
    known |= {id(v) for v in [*trial.seeds, *trial.metric_variables]}
    trial.run(trial.inputs, training=True)
    return [
        variable.path
        for variable, value in trial.state
        if id(variable) not in known and not np.array_equal(variable.numpy(), value)
    ]


def _odd_metrics(trial: RowsTrial) -> list[str]:
    """Names of metrics of layers whose state after a batch is not the sum over its parts."""

    def after(*ends: int) -> list[list[np.ndarray]]:
        for metric in trial.metrics:
            metric.reset_state()
        for start, stop in itertools.pairwise((0, *ends)):
            trial.call(trial.take(start, stop), False, (stop - start) / trial.rows)
        return [[np.asarray(v) for v in metric.variables] for metric in trial.metrics]

    pairs = zip(trial.metrics, after(trial.rows), after(trial.cut, trial.rows), strict=True)
    return [m.name for m, whole, parts in pairs if not all(map(_alike, whole, parts))]


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b)) or a.dtype.kind not in "biu"
    tolerance = _TOLERANCE.get(a.dtype.name, 0.05)
    scale = max(float(np.abs(a).max(initial=0.0)), 1e-30)
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _find_branches(model: Any, types: Any, findings: RowFindings) -> None:
    """Name the layers that branch on the whole batch; their operations' names begin with theirs."""
    body = model_body(model)

    def function(inputs: Any) -> list[Any]:
        outputs, losses = body(inputs, True, tf.ones([], tf.float64))
        return [x for x in [*outputs, *losses] if x is not None]

    with untouched(model):
        names = branching_operations(function, types)
    if names is None:
        findings.hidden = bool(model.compiled and model.run_eagerly)
        return
    layers = [layer.name for layer in all_layers(model)]
    for name in names:
        findings.branches.append(layer_of_operation(name, layers) or name.strip("/"))
    findings.branches = list(dict.fromkeys(findings.branches))


def _random(types: Any, rows: int) -> Any:
    seeds = itertools.count(0, 2)  # different inputs: the difference of equal ones would be zero

    def draw(spec: Any) -> Any:
        shape = [rows, *(_LENGTH if size is None else size for size in spec.shape[1:])]
        return random_rows(shape, spec.dtype, next(seeds))

    return keras.tree.map_structure(draw, types)
