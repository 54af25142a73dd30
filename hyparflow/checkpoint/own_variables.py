"""The variables that a user's own code has beside those of the model and its optimizer.

A step of one's own may train by further optimizers, and a loss may have a weight that a callback
sets. They are found from the model and from what it is compiled with. Every rank has them whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from hyparflow.checkpoint.comparison import OWN_OPTIMIZERS, require_same_tensors
from hyparflow.checkpoint.stored_tensor import StoredTensor
from hyparflow.checkpoint.tensor_names import named_variables, unused
from hyparflow.comm.log import STATUS
from hyparflow.formats.checkpoint.dtypes import NAMES
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.model.keras_internals.compiled import compile_arguments, tracked_metrics
from hyparflow.model.keras_internals.deferred_variables import raw_variable
from hyparflow.model.reachable_variables import VARIABLES, reachable

__all__ = ["announce_odd", "own_variables", "restore_own"]

_OTHERS = "own/"  # what the names of others begin with
_SHOWN = 4  # names in a message


def own_variables(model: Any) -> dict[str, Any]:
    """Name -> variable, in an order that is the same in every process.

    States of metrics are left out, for they are saved with those of all others.

    Args:
        model: built and compiled, as are the optimizers that its steps use.
    """
    found = list(reachable([model, compile_arguments(model)]))
    metrics = [value for _, value in found if isinstance(value, keras.metrics.Metric)]
    left_out = [v for metric in (*tracked_metrics(model), *metrics) for v in metric.variables]
    known = {id(raw_variable(v)) for v in (*named_variables(model).values(), *left_out)}
    named: dict[str, Any] = {}
    for way, value in found:
        for name, variable in _variables_of(value, way.removeprefix("(0)").strip(" .")):
            if id(raw_variable(variable)) not in known and _can_be_stored(variable):
                known.add(id(raw_variable(variable)))
                named[unused(name, named)] = variable
    return named


def restore_own(model: Any, reader: CheckpointReader, is_training: bool = False) -> list[str]:
    """Let these variables have the values of a checkpoint.

    Args:
        model: built and compiled.
        reader: of the checkpoint.
        is_training: whether optimizers must be those of the checkpoint.

    Returns:
        The names of those that only the checkpoint has, or only the model.

    Raises:
        ValueError: if one has another shape or type, or an optimizer's is missing in training.
    """
    groups = (OWN_OPTIMIZERS, _OTHERS)
    stored = {n: e for n, e in reader.index.tensors.items() if n.startswith(groups)}
    mine = own_variables(model)
    odd = sorted(stored.keys() ^ mine.keys())
    if is_training and any(name.startswith(OWN_OPTIMIZERS) for name in odd):
        odd = []
    else:
        stored = {name: entry for name, entry in stored.items() if name in mine}
        mine = {name: variable for name, variable in mine.items() if name in stored}
    matched = require_same_tensors(stored, mine, str(reader.folder))
    for name, variable in mine.items():
        variable.assign(StoredTensor(reader, matched[name], tuple(variable.shape))())
    return odd


def announce_odd(names: list[str], where: object) -> None:
    """Say which variables do not go on from a checkpoint, if there are any."""
    if names:
        STATUS.warning(
            "hyparflow: these variables of your own are not both in the model and in %s, and do "
            "not go on: %s%s",
            where,
            ", ".join(names[:_SHOWN]),
            f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "",
        )


def _variables_of(value: Any, way: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, keras.optimizers.Optimizer):
        for variable in value.variables:
            yield f"{OWN_OPTIMIZERS}{way}/{variable.path}", variable
    elif isinstance(value, VARIABLES):
        yield f"{_OTHERS}{way}", value


def _can_be_stored(variable: Any) -> bool:
    """Whether it is a tensor of numbers, of a known shape, and no handle or text."""
    dtype = getattr(variable.dtype, "name", variable.dtype)
    return dtype in NAMES and None not in tuple(variable.shape)
