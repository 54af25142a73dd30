"""Variables of TensorFlow's that share one name inside it.

TensorFlow gives each name that a variable is made with, and each name scope that it is made in, a
kernel of its own, which takes 40 KB and 1.6 ms. The name by which Python knows the variable is set
afterwards: it takes nothing, and optimizers of Keras read it
(`exclude_from_weight_decay(var_names=...)`). There is no public way to set it, nor a hook of
Keras's for how it makes its variables (`_initialize`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from hyparflow.model.keras_internals.patched import patched

__all__ = ["sharing_kernel_names", "with_shared_kernel_name"]

_NAME = "variable"
_UNNAMED = "Variable"  # what TensorFlow calls a variable that is given no name


@contextlib.contextmanager
def sharing_kernel_names() -> Iterator[None]:
    """While open, variables that Keras makes share one name inside TensorFlow."""
    kind: Any = keras.Variable
    initialize = kind._initialize

    def named_alike(self: Any, value: Any) -> None:
        with tf.variable_creator_scope(with_shared_kernel_name):
            initialize(self, value)

    with patched(kind, _initialize=named_alike):
        yield


def with_shared_kernel_name(make: Callable[..., Any], **arguments: Any) -> Any:
    """A variable as `make` makes it; for `tf.variable_creator_scope`."""
    scope = tf.get_current_name_scope()
    with tf.name_scope(""):  # of no scope
        variable = make(**{**arguments, "name": _NAME})
    known = vars(variable).get("_handle_name")
    if known == variable.name and known.startswith(_NAME):
        name = arguments.get("name") or _UNNAMED
        path = f"{scope}/{name}" if scope else name
        variable._handle_name = path + known.removeprefix(_NAME)
    return variable
