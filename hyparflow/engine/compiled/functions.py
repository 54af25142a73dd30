"""Functions that are compiled once for any number of rows, or run eagerly.

Public API of TensorFlow only. Without this file there would be a trace for each number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["ByTypes", "Compiled", "EagerPair", "any_rows"]


class EagerPair:
    """A forward and its backward, run eagerly.

    Args:
        first: (arguments) -> (outputs, state).
        second: (state, further arguments) -> results.
        finishes: see `hyparflow.engine.compiled.compiler.Compiler.pair`.
    """

    def __init__(
        self,
        first: Callable[..., tuple[Any, Any]],
        second: Callable[..., Any],
        finishes: Sequence[Callable[[Any], Any]],
    ) -> None:
        self._first, self._second, self._finishes = first, second, finishes

    def forward(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.forward`."""
        return self._first(*arguments)

    def backward(self, saved: Any, further: tuple[Any, ...], finish: int) -> Any:
        """See `Pair.backward`."""
        return self._finishes[finish](self._second(saved, *further))

    def early(self, saved: Any, further: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.early`; the state for `late` is the second half of the results."""
        first, second = self._second(saved, *further)
        return first, second

    def late(self, saved: Any, finish: int) -> Any:
        """See `Pair.late`."""
        return self._finishes[finish](([], saved))


class Compiled:
    """Compiles a function once for arguments of any number of rows.

    Args:
        function: what to compile.
        jit_compile: whether XLA compiles.
        call: (concrete function, types of its arguments) -> a function of flat tensors.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        jit_compile: bool,
        call: Callable[[Any, Any], Callable[..., Any]],
    ) -> None:
        compiled = tf.function(function, autograph=False, jit_compile=jit_compile or None)

        def make(types: Any) -> tuple[Any, Callable[..., Any]]:
            return types, call(compiled.get_concrete_function(*types), types)

        self._calls = ByTypes(make)

    def __call__(self, *args: Any) -> Any:
        _, call = self._calls.find(args)
        return call(*(x for x in tf.nest.flatten(args) if isinstance(x, tf.Tensor)))

    def prepare(self, *args: Any) -> None:
        """Compile for arguments of these types, or like these, unless that was done."""
        self._calls.find(args)

    def types(self, *args: Any) -> Any:
        """The types that the compiled function for these arguments was compiled for."""
        return self._calls.find(args)[0]


class ByTypes:
    """A cache by types of arguments; an entry serves all arguments that fit its types.

    Args:
        make: (types of arguments, nested) -> a new entry.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._made: list[tuple[Any, list[Any], Any]] = []  # with the types, nested and flat

    def find(self, arguments: tuple[Any, ...]) -> Any:
        """The entry for these arguments, or for arguments of these types; made if there is none."""
        flat = tf.nest.flatten(arguments)
        alike = None
        for nested, types, made in self._made:
            if _alike(nested, arguments):
                if _fit(types, flat):
                    return made
                alike = types
        types = [any_rows(x) for x in flat]
        if alike is not None:
            types = [_wider(a, b) for a, b in zip(alike, types, strict=True)]
        nested = tf.nest.pack_sequence_as(arguments, types)
        made = self._make(nested)
        self._made.append((nested, types, made))
        return made


def any_rows(value: Any) -> Any:
    """The type of `value` with any number of rows."""
    if not isinstance(value, tf.Tensor | tf.TensorSpec):
        return value
    shape = value.shape.as_list()
    return tf.TensorSpec([None, *shape[1:]] if shape else [], value.dtype)


def _alike(types: Any, arguments: Any) -> bool:
    """Whether types and arguments have the same structure.

    They may not: the labels of a fit may have weights, and those of its validation none.
    """
    try:
        tf.nest.assert_same_structure(types, arguments)
    except (TypeError, ValueError):
        return False
    return True


def _fit(types: Sequence[Any], values: Sequence[Any]) -> bool:
    return all(
        kind.is_compatible_with(x) if isinstance(kind, tf.TensorSpec) else kind is x
        for kind, x in zip(types, values, strict=True)
    )


def _wider(known: Any, new: Any) -> Any:
    """The type that both fit, if shapes vary from step to step."""
    specs = isinstance(known, tf.TensorSpec) and isinstance(new, tf.TensorSpec)
    if not specs or known.dtype != new.dtype or known.shape.rank != new.shape.rank:
        return new
    pairs = zip(known.shape.as_list(), new.shape.as_list(), strict=True)
    return tf.TensorSpec([a if a == b else None for a, b in pairs], new.dtype)
