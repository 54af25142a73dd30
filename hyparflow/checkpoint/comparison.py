"""Whether the tensors of a checkpoint are those of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hyparflow.checkpoint.tensor_names import without_numbers
from hyparflow.formats.checkpoint.index import TensorEntry
from hyparflow.model.variable_sizes import numpy_type

__all__ = ["OWN_OPTIMIZERS", "matched_names", "require_same_tensors"]

OWN_OPTIMIZERS = "own-optimizers/"  # begins the names of variables of steps' optimizers
_OPTIMIZER = "'optimizer/"  # begins what is said of the optimizer's variables
_SHOWN = 8  # differences that a message names
_BUILD = " Build the optimizers of your own steps before `fit`: `optimizer.build(variables)`."
_ALONE = " The weights alone load into a model that is not compiled, by hyparflow.load_checkpoint."


def matched_names(stored: Mapping[str, TensorEntry], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Name of a variable -> name of its tensor in the checkpoint.

    Numbers that Keras gives to layers depend on what a process has built before, and the layers
    around a layer on how a model was built. So where names are others, tensors are the same whose
    names differ by nothing but numbers, or those in the same place that have the same layer's name,
    shape and type.
    """
    if stored.keys() == wanted.keys():
        return {name: name for name in wanted}
    tensors: dict[str, list[str]] = {}
    for name in stored:
        tensors.setdefault(without_numbers(name), []).append(name)
    found = {}
    for name in wanted:
        candidates = tensors.get(without_numbers(name))
        if candidates:
            found[name] = candidates.pop(0)
    kinds = [_kind(name, entry.shape, entry.dtype) for name, entry in stored.items()]
    if len(found) < len(wanted) and kinds == [
        _kind(name, tuple(v.shape), _type(v)) for name, v in wanted.items()
    ]:
        return dict(zip(wanted, stored, strict=True))
    return found


def require_same_tensors(
    stored: Mapping[str, TensorEntry], wanted: Mapping[str, Any], where: str
) -> dict[str, str]:
    """Check that a checkpoint has the tensors of a model, and return `matched_names`.

    Args:
        stored: of the checkpoint.
        wanted: name -> variable.
        where: the checkpoint, for the message.

    Raises:
        ValueError: with all that differs.
    """
    matched = matched_names(stored, wanted)
    faults = _faults(stored, wanted, matched)
    if faults:
        few = faults if len(faults) <= _SHOWN else [*faults[: _SHOWN // 2], *faults[-_SHOWN // 2 :]]
        shown = "; ".join(few)
        more = f"; and {len(faults) - len(few)} more differences" if len(faults) > len(few) else ""
        raise ValueError(
            "A checkpoint must have the weights and the optimizer's variables of the model. "
            f"Received: {where}, where {shown}{more}. Use the model that was saved, or another "
            f"folder.{_BUILD if any(OWN_OPTIMIZERS in fault for fault in faults) else ''}"
            f"{_ALONE if all(fault.startswith(_OPTIMIZER) for fault in faults) else ''}"
        )
    return matched


def _faults(
    stored: Mapping[str, TensorEntry], wanted: Mapping[str, Any], matched: dict[str, str]
) -> list[str]:
    faults = []
    for name, variable in wanted.items():
        mine = _said(tuple(variable.shape), _type(variable))
        if name not in matched:
            faults.append(f"'{name}' {mine} of the model is missing")
            continue
        entry = stored[matched[name]]
        is_flat = entry.shape == (math.prod(variable.shape),)
        theirs = _said(tuple(variable.shape) if is_flat else entry.shape, entry.dtype)
        if mine != theirs:
            faults.append(f"'{name}' is {theirs}, and in the model {mine}")
    taken = set(matched.values())
    return faults + [
        f"'{name}' {_said(entry.shape, entry.dtype)} is not in the model"
        for name, entry in stored.items()
        if name not in taken
    ]


def _kind(name: str, shape: tuple[int, ...], dtype: str) -> tuple[Any, ...]:
    """What a tensor is wherever its layer is: its group, and the names of layer and weight."""
    group, *path = name.split("/")
    if group == "optimizer":  # a slot's name holds that of the layer, and it may be stored flat
        return group, math.prod(shape), dtype
    return group, without_numbers("/".join(path[-2:])), shape, dtype


def _type(variable: Any) -> str:
    return str(numpy_type(variable.dtype))


def _said(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}{list(shape)}"
