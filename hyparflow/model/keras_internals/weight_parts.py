"""Optimizers of Keras's that update some rows of a weight like the whole, and how they are led to.

Keras finds a weight's slots by the weight's number. While `standing_in` is open, the number of a
divided weight leads to the part of it that this rank has, and to slots for that part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from hyparflow.model.keras_internals.deferred_variables import deferring, raw_variable
from hyparflow.model.keras_internals.optimizer import inner_optimizer, slot_lists, writes_at_end
from hyparflow.model.keras_internals.patched import patched

__all__ = [
    "WeightPart",
    "divides",
    "make_part",
    "make_rows",
    "may_be_divided",
    "slots_by_list",
    "standing_in",
    "weights_with_slots",
]

# Their `update_step` computes each number of weight and slots from the same number of weight, slots
# and gradient, and from numbers that all weights have in common.
_BY_ELEMENT = (
    *("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "Ftrl", "Lion", "Nadam", "RMSprop"),
    "SGD",
)
_REGULARIZERS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


@dataclass(frozen=True)
class WeightPart:
    """One rank's rows of a divided weight.

    Attributes:
        whole: the weight.
        rows: a variable for its rows, which has memory during an update alone.
        slots: for the same rows of its slots, by the names of the optimizer's lists.
    """

    whole: Any
    rows: Any
    slots: dict[str, Any]


def divides(optimizer: Any) -> bool:
    """Whether an optimizer updates rows of a weight as it does when it updates the whole weight.

    A class of the user's own may do anything; `clipnorm` is of whole weights.
    """
    inner = inner_optimizer(optimizer)
    known = any(type(inner) is getattr(keras.optimizers, name, None) for name in _BY_ELEMENT)
    plain = optimizer is inner or type(optimizer) is keras.optimizers.LossScaleOptimizer
    known &= "update_step" not in vars(inner)
    return known and plain and not inner.clipnorm and not writes_at_end(inner)


def may_be_divided(variable: Any) -> bool:
    """Whether nothing needs the whole of a weight when it is updated."""
    return (
        variable.constraint is None
        and not variable.overwrite_with_gradient
        and (variable.regularizer is None or type(variable.regularizer) in _REGULARIZERS)
        and tf.as_dtype(variable.dtype).is_floating
    )


def make_rows(whole: Any, shape: tuple[int, ...]) -> Any:
    """A variable, without memory, for rows of a weight."""
    with deferring(), tf.device(raw_variable(whole).device):
        return _variable(whole, shape)


def make_part(optimizer: Any, whole: Any, shape: tuple[int, ...], rows: Any = None) -> WeightPart:
    """Variables, without memory, for rows of a weight and of its slots.

    Args:
        optimizer: the model's, built; one that `divides`.
        whole: the weight.
        shape: of the rows.
        rows: the variable of the rows, if there is one.
    """
    rows = make_rows(whole, shape) if rows is None else rows
    with deferring(), tf.device(raw_variable(whole).device):
        slots = {
            name: _variable(slot, shape) for name, slot in slots_by_list(optimizer, whole).items()
        }
    return WeightPart(whole, rows, slots)


def weights_with_slots(optimizer: Any) -> list[Any]:
    """The weights that an optimizer was built for."""
    return list(inner_optimizer(optimizer)._trainable_variables)


def slots_by_list(optimizer: Any, weight: Any) -> dict[str, Any]:
    """A weight's slots, by the name of the optimizer's list that each is in."""
    inner = inner_optimizer(optimizer)
    index = inner._get_variable_index(weight)
    found = {name: values[index] for name, values in slot_lists(inner).items()}
    return {name: slot for name, slot in found.items() if isinstance(slot, keras.Variable)}


def _variable(like: Any, shape: tuple[int, ...]) -> Any:
    kind, trainable = like.dtype, like.trainable
    return keras.Variable("zeros", shape=shape, dtype=kind, trainable=trainable, name=like.name)


@contextlib.contextmanager
def standing_in(optimizer: Any, parts: Sequence[WeightPart]) -> Iterator[None]:
    """While open, an optimizer knows parts of weights, and their slots, in place of the whole.

    Args:
        optimizer: the one that updates weights.
        parts: this rank's.
    """
    if not parts:
        yield
        return
    weights, numbers = list(optimizer._trainable_variables), {}
    lists = {name: list(values) for name, values in slot_lists(optimizer).items()}
    wholes = {}
    for part in parts:
        index = optimizer._get_variable_index(part.whole)
        numbers[optimizer._var_key(part.rows)] = index
        wholes[optimizer._var_key(part.rows)] = part.whole
        weights[index] = part.rows
        for name, slot in part.slots.items():
            lists[name][index] = slot
    usual = optimizer._use_weight_decay

    def use_weight_decay(variable: Any) -> Any:
        whole = wholes.get(optimizer._var_key(variable), variable)
        return usual(whole if isinstance(variable, keras.Variable) else raw_variable(whole))

    replaced: dict[str, Any] = {
        "_trainable_variables": weights,
        "_trainable_variables_indices": optimizer._trainable_variables_indices | numbers,
        "_use_weight_decay": use_weight_decay,
    }
    with patched(optimizer, **replaced, **lists):
        yield
