"""Variables of TensorFlow's that share one name inside it.

TensorFlow gives each name that a variable is made with a kernel of its own, which takes 35 KB and
1.6 ms. The name by which Python knows the variable is set afterwards: it takes nothing, and
optimizers of Keras read it (`exclude_from_weight_decay(var_names=...)`). There is no public way to
set it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["with_shared_kernel_name"]

_NAME = "variable"


def with_shared_kernel_name(make: Callable[..., Any], **arguments: Any) -> Any:
    """A variable as `make` makes it; for `tf.variable_creator_scope`."""
    name = arguments.get("name")
    variable = make(**{**arguments, "name": _NAME})
    known = vars(variable).get("_handle_name")
    if name and known == variable.name and _NAME in known:
        scope, _, suffix = known.rpartition(_NAME)
        variable._handle_name = f"{scope}{name}{suffix}"
    return variable
