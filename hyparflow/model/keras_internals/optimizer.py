"""What an optimizer says of the variables and gradients that it is given."""

from __future__ import annotations

from typing import Any

from hyparflow.model.keras_internals.compiled import inner_optimizer

__all__ = ["check_given", "check_known"]


def check_known(optimizer: Any, variables: list[Any]) -> None:
    """Check that an optimizer that is built was built for `variables`, as its `apply` does.

    There is no public way to ask before a step.

    Raises:
        ValueError: Keras's own, about an unknown variable.
    """
    inner = inner_optimizer(optimizer)
    if inner.built and hasattr(inner, "_check_variables_are_known"):
        inner._check_variables_are_known(variables)


def check_given(optimizer: Any, variables: list[Any], given: set[int]) -> None:
    """Warn of variables without a gradient, as the optimizer's `apply` does.

    Its `apply` is called with the gradients of a partition only, which are not all.

    Args:
        optimizer: the model's.
        variables: all that it updates.
        given: numbers of those that have a gradient.

    Raises:
        ValueError: Keras's own, if none has.
    """
    gradients = [0.0 if number in given else None for number in range(len(variables))]
    inner_optimizer(optimizer)._filter_empty_gradients(gradients, variables)
