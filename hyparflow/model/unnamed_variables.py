"""Variables of TensorFlow's without a name of their own: Keras names its variables itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["unnamed"]


def unnamed(make: Callable[..., Any], **arguments: Any) -> Any:
    """For `tf.variable_creator_scope`: a variable of a name that all have.

    Each name makes TensorFlow compile another kernel, which takes 35 KB and 1.6 ms.
    """
    return make(**{**arguments, "name": "slot"})
