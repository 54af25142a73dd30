"""Variables that are overwritten with their "gradient": scales and largest values of float8 layers.

Keras's float8 layers give the next value of such a variable as its gradient. A scale follows from
earlier values and is the same for all parts of a batch. The largest value seen is, for a whole
batch, the largest of those of its parts. Other layers' values of this kind are not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.model.keras_internals.compiled import own_step as own_step_of_keras
from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["check_overwritten", "require_one_call", "require_one_holder"]

# The largest numbers of float8_e4m3fn and float8_e5m2.
_LARGEST = {"inputs": 448.0, "kernel": 448.0, "outputs_grad": 57344.0}
_ONE_PART = "train with one replica and num_microbatches=1 (strategy='model')"


def check_overwritten(model: Any, parts: int) -> None:
    """Check that such variables of `model` can be computed from `parts` parts of a batch.

    Raises:
        ValueError: naming the variables for which this is not possible.
    """
    found = [v for v in model.trainable_variables if v.overwrite_with_gradient]
    if not found or parts == 1:
        return
    known = {id(v) for layer, *_ in _float8(model) for v in layer.trainable_variables}
    own_step = own_step_of_keras(model, "train_step")
    unknown = [v.path for v in found if own_step or id(v) not in known]
    if unknown:
        raise ValueError(
            "Variables with overwrite_with_gradient=True can be had from parts of a batch only in "
            "Keras's own float8 layers, in a model without its own `train_step`. Received: "
            f"{unknown[:6]} with {parts} parts (replicas x micro-batches). Leave float8 out, or "
            f"{_ONE_PART}."
        )


def require_one_holder(variables: Sequence[Any], holders: Mapping[int, Sequence[int]]) -> None:
    """Check that no two partitions have layers of such variables in common.

    Args:
        variables: all that the model trains.
        holders: the partitions that hold each, by id.

    Raises:
        ValueError: naming the variables.
    """
    shared = [v.path for v in variables if v.overwrite_with_gradient and len(holders[id(v)]) > 1]
    if shared:
        raise ValueError(
            "A layer with variables of overwrite_with_gradient=True must be in one partition. "
            f"Received: {shared[:6]} in several. Cut the model elsewhere, with `lpp`, or use "
            "strategy='data'."
        )


def require_one_call(model: Any, variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Check that each float8 layer was called once in a step.

    Keras sums the values of several calls; the largest sum of all parts is not that of the whole
    batch. Several calls show in the sum of the scales.

    Args:
        model: the model.
        variables: the variables that this rank trains.
        values: for each, its next value, or its gradient.

    Raises:
        RuntimeError: naming a layer that was called several times.
    """
    new = {id(v): value for v, value in zip(variables, values, strict=True)}
    for layer, scale, history, largest in _float8(model):
        if new.get(id(scale)) is None:
            continue
        amax = keras.ops.max(history)
        expected = keras.quantizers.compute_float8_scale(amax, scale.value, largest)
        if not np.isclose(float(new[id(scale)]), float(expected), rtol=1e-3):
            raise RuntimeError(
                "A float8 layer must be called once in a step for its scales to be had from parts "
                f"of a batch. Received: '{layer.name}' ('{scale.path}'), which is called several "
                f"times. Leave float8 out there, or {_ONE_PART}."
            )


def _float8(model: Any) -> Iterator[tuple[Any, Any, Any, float]]:
    """For each scale of Keras's float8 layers: the layer, the scale, the largest values that it
    follows from, and the largest number of its type.
    """
    for layer in all_layers(model):
        own_class = not type(layer).__module__.startswith("keras.")
        if own_class or getattr(layer, "quantization_mode", None) != "float8":
            continue
        for of, largest in _LARGEST.items():
            scale = getattr(layer, f"{of}_scale", None)
            history = getattr(layer, f"{of}_amax_history", None)
            if scale is not None and history is not None:
                yield layer, scale, history, largest
