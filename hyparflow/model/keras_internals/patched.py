"""Replaces attributes for a while: the only way in which hyparflow changes objects of others.

==========================================  ====================================================
what is changed                             where, and for how long
==========================================  ====================================================
steps, weights' methods, of one model       `hyparflow.training.keras_bridge`, a call
weights' methods of its layers              `hyparflow.training.keras_bridge`, a call
what its optimizer does at the end          `hyparflow.training.keras_bridge`, a call
`assign` of Keras's and TF's variables      `hyparflow.training.write_log`, a call
Keras's iterator over a dataset             `hyparflow.model.keras_internals.data`, a call
optimizers' and metrics' methods            `hyparflow.model.keras_internals.interception`, a
                                            step of the model's own
TensorFlow's random operations              `hyparflow.engine.compiled.random_draws`, the same
how Keras's variables get a first value     `hyparflow.model.keras_internals.deferred_variables`,
                                            while `hyparflow.deferred` is open
the handle of variables without memory      the same file, while a model is exported
how Keras makes variables of TensorFlow     `hyparflow.model.keras_internals.shared_kernel_name`,
                                            the same, and on several ranks for good
how Keras reads files of weights            `hyparflow.model.keras_internals.stored_values`,
                                            the same, and `hyparflow.load_weights`
how Keras writes files of weights           `hyparflow.model.keras_internals.saving_beside`, for
                                            good, once weights are left in their file
losses of one model                         `hyparflow.model.keras_internals.compiled`, a trace
the loop of Keras's LSTM and GRU layers     `hyparflow.engine.kernels.recurrent_layers`, a trace
`update_state` of one metric, or of means   `hyparflow.engine.loss.additive_metrics`, a trial,
                                            or a trace
attention, dropout, positions of layers     `hyparflow.model.keras_internals.attention`, `dropout`
                                            and `positions`, a trial or a trace
where tokens go in caches, and masks        `hyparflow.model.keras_internals.row_index`, a trace
`keras.ops.reshape`                         `hyparflow.model.keras_internals.serving_hook`, a trace
`call_with_cache` of one model              `hyparflow.model.keras_internals.own_cache`, a call
banks of experts, and Keras's einsum        `hyparflow.model.experts.expert_banks`, a trace
`call` of layers with experts               `hyparflow.model.experts.routing_recorder`, a call
`call` of layers whose kernels are cut      `hyparflow.model.keras_internals.replaced_calls`, a
                                            trace
==========================================  ====================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["patched"]

_ABSENT = object()


@contextlib.contextmanager
def patched(owner: Any, **replacements: Any) -> Iterator[None]:
    """While open, attributes of an object, a class or a module have other values.

    Afterwards each is as before, whether the owner's own or inherited. The attributes of an object
    are written without its `__setattr__`, by which Keras would track them.

    Args:
        owner: the object, class or module.
        replacements: the other values, by name.
    """
    own = vars(owner)
    before = {name: own.get(name, _ABSENT) for name in replacements}
    put, remove = _writers(owner)
    for name, value in replacements.items():
        put(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                remove(name)
            else:
                put(name, value)


def _writers(owner: Any) -> tuple[Any, Any]:
    """The functions that set and remove an attribute."""
    if isinstance(owner, type):  # the `vars` of a class cannot be written to
        return (
            lambda name, value: setattr(owner, name, value),
            lambda name: delattr(owner, name),
        )
    return vars(owner).__setitem__, lambda name: vars(owner).pop(name, None)
