"""Gives a model the values of a checkpoint: each is read when it is needed."""

from __future__ import annotations

from typing import Any

from hyparflow.checkpoint.comparison import require_same_tensors
from hyparflow.checkpoint.stored_tensor import StoredTensor
from hyparflow.checkpoint.tensor_names import named_variables
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.model.keras_internals.deferred_variables import release

__all__ = ["restore"]

_WEIGHTS = ("model/", "random/")
_VARIABLES = (*_WEIGHTS, "optimizer/")


def restore(model: Any, reader: CheckpointReader, with_optimizer: bool = True) -> dict[str, str]:
    """Let the variables of a model and its optimizer be those of a checkpoint.

    They have no memory until they are read, and then only on the ranks that read them.

    Args:
        model: built, as is its optimizer.
        reader: of the checkpoint.
        with_optimizer: whether the optimizer's variables are those of the model's.

    Returns:
        Name of a variable -> name of its tensor.

    Raises:
        ValueError: if the checkpoint is another model's.
    """
    wanted = named_variables(model)
    groups = _VARIABLES if with_optimizer else _WEIGHTS
    stored = {n: e for n, e in reader.index.tensors.items() if n.startswith(groups)}
    matched = require_same_tensors(stored, wanted, str(reader.folder))
    for name, variable in wanted.items():
        source = StoredTensor(reader, matched[name], tuple(variable.shape))
        if not release(variable, source):
            variable.assign(source())
    return matched
