"""What a step decides by values of the whole batch, such as to leave out an update.

Replicas decide by their own rows, where one process decides by all. Trials see it only if their
rows lead to more than one decision; the traced step shows it whatever the rows are. A step that
runs as Python is traced for this alone: its `if` and `while` become operations.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from hyparflow.model.branches import branching_step

__all__ = ["decisions_of", "of_operations"]

_SCALARS = 2  # inputs of a step behind those of its batch: share and factors


def of_operations(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with an `if` and a `while` of Python's as operations, where that can be done.

    Only in its own code: what it calls is called as it is.
    """
    if not inspect.ismethod(step):
        return step
    try:
        converted = tf.autograph.to_graph(step.__func__, recursive=False)
        return functools.partial(converted, step.__self__)
    except Exception:  # its source is not known, or has what cannot be converted
        return step


def decisions_of(traced: Callable[[], Any]) -> list[str]:
    """Names of the operations of a step that decide by values of the whole batch.

    Args:
        traced: traces the step for any number of rows; returns the concrete function.

    Returns:
        The names; nothing where the step cannot be traced.
    """
    try:
        step = traced()
    except Exception:  # it must run as Python
        return []
    given = step.inputs[: len(step.inputs) - len(step.captured_inputs)]
    names = branching_step(step, given[:-_SCALARS])
    return [name.rpartition("/")[2] for name in names]
