"""Which variables an optimizer was built for."""

from __future__ import annotations

from typing import Any

from hyparflow.keras_internals.compiled import inner_optimizer

__all__ = ["check_known"]


def check_known(optimizer: Any, variables: list[Any]) -> None:
    """Check that an optimizer that is built was built for `variables`, as its `apply` does.

    There is no public way to ask before a step.

    Raises:
        ValueError: Keras's own, about an unknown variable.
    """
    inner = inner_optimizer(optimizer)
    if inner.built and hasattr(inner, "_check_variables_are_known"):
        inner._check_variables_are_known(variables)
