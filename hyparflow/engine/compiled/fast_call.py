"""Compiled functions of many tensors, called without checks of each one where possible.

Uses no private part of TensorFlow itself: the compiler calls the functions. For the gain, the
versions and what happens without it see `hyparflow.engine.compiled.direct_call`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import choice

__all__ = ["FixedFunction"]


class FixedFunction:
    """Compiles a function of many tensors whose types do not change from call to call.

    Args:
        function: (tensors, *constants) -> any structure.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = tf.function(function, autograph=False, reduce_retracing=True)
        self._calls: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, tensors: Sequence[Any], *constants: Hashable) -> Any:
        """Call it with tensors or None; compiled once for each set of missing tensors.

        With sparse gradients, whose number of rows changes, it is called in the usual way.
        """
        if any(isinstance(x, tf.IndexedSlices) for x in tensors):
            return self._sparse(tensors, constants)
        return self._dense(tensors, constants)(*(x for x in tensors if x is not None))

    def on(self, replace: Callable[[Any], Any]) -> FixedFunction:
        """The same function with other variables; for tensors that are all dense.

        Args:
            replace: (a captured tensor, of a variable its handle) -> the one to take instead.
        """
        return _FixedOn(self, replace)

    def _sparse(self, tensors: Sequence[Any], constants: tuple[Hashable, ...]) -> Any:
        return self._function(list(tensors), *constants)

    def _dense(self, tensors: Sequence[Any], constants: tuple[Hashable, ...]) -> Any:
        """The call for tensors that are dense or None."""
        key = (tuple(x is None for x in tensors), constants)
        if key not in self._calls:
            self._calls[key] = self._make(tensors, constants)
        return self._calls[key]

    def _make(self, tensors: Sequence[Any], constants: tuple[Hashable, ...]) -> Any:
        concrete = self.concrete(tensors, *constants)
        return choice.compiler().call(concrete, (_types(tensors), *constants))

    def concrete(self, tensors: Sequence[Any], *constants: Hashable) -> Any:
        """The concrete function for these arguments."""
        return self._function.get_concrete_function(list(tensors), *constants)


class _FixedOn(FixedFunction):
    """A `FixedFunction` with other variables."""

    def __init__(self, original: FixedFunction, replace: Callable[[Any], Any]) -> None:
        self._calls = {}
        self._original, self._replace = original, replace

    def _sparse(self, tensors: Sequence[Any], constants: tuple[Hashable, ...]) -> Any:
        raise TypeError(
            "A function that was traced for other variables takes dense tensors. "
            "Received: a sparse one. Set HYPARFLOW_UNITS=0 and report it."
        )

    def _make(self, tensors: Sequence[Any], constants: tuple[Hashable, ...]) -> Any:
        return self._original._dense(tensors, constants).on(self._replace)

    def concrete(self, tensors: Sequence[Any], *constants: Hashable) -> Any:
        return self._original.concrete(tensors, *constants)


def _types(tensors: Sequence[Any]) -> list[Any]:
    """The types of the tensors, which hold no memory."""
    return [None if x is None else tf.TensorSpec(x.shape, x.dtype) for x in tensors]
