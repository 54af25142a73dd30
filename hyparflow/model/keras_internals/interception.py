"""Calls of the methods of all optimizers, or of all metrics, whoever holds them.

A step of the user's own may keep its optimizers and metrics anywhere: in lists, in closures, in
modules. No public hook of Keras sees their calls, so for the time of a step methods of their
classes are replaced by methods that report the calls.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from hyparflow.model.keras_internals.patched import patched

__all__ = ["given_variables", "metric_calls", "optimizer_calls"]

# (name of the method, the method itself, the object, arguments, arguments by name) -> result
Around = Callable[[str, Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


def optimizer_calls(around: Around) -> contextlib.AbstractContextManager[None]:
    """While open, calls that give any optimizer gradients, or a loss to scale, go to `around`."""
    names = ("apply", "apply_gradients", "update_step", "scale_loss")
    return _intercepted(keras.optimizers.Optimizer, names, around)


def metric_calls(around: Around) -> contextlib.AbstractContextManager[None]:
    """While open, updates, results and resets of any metric go through `around`."""
    return _intercepted(keras.metrics.Metric, ("update_state", "result", "reset_state"), around)


def given_variables(optimizer: Any) -> list[Any]:
    """The variables that an optimizer was built with, to which gradients without names belong."""
    return list(optimizer._trainable_variables)


@contextlib.contextmanager
def _intercepted(base: type, names: Sequence[str], around: Around) -> Iterator[None]:
    """While open, these methods of `base` and its subclasses go through `around`.

    Calls from inside such a method, as by an optimizer that wraps another, do not.
    """
    depth = [0]
    with contextlib.ExitStack() as stack:
        for cls in _family(base):
            own = {name: vars(cls)[name] for name in names if callable(vars(cls).get(name))}
            telling = {name: _telling(name, own[name], around, depth) for name in own}
            stack.enter_context(patched(cls, **telling))
        yield


def _telling(name: str, original: Any, around: Around, depth: list[int]) -> Any:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            depth[0] += 1
            try:
                return original(self, *given, **named)
            finally:
                depth[0] -= 1

        if depth[0]:
            return original(self, *args, **kwargs)
        return around(name, call, self, args, kwargs)

    return method


def _family(base: type) -> list[type]:
    """`base`, Keras's classes above it, and all classes that are derived from it."""
    found: dict[type, None] = {
        cls: None for cls in base.__mro__ if cls.__module__.startswith("keras.")
    }
    stack: list[type] = [base]
    while stack:
        cls = stack.pop()
        found[cls] = None
        stack += cls.__subclasses__()
    return list(found)
