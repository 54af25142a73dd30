"""Compiled functions; a forward and its backward as two of them, or as Python runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from hyparflow.split import Split

__all__ = ["Compiled", "CompiledPair", "EagerPair", "any_rows"]


class EagerPair:
    """Runs both without compiling.

    Args:
        first: (arguments) -> (outputs, state).
        second: (state, further arguments) -> results.
        finishes: what may be done with the results.
    """

    def __init__(
        self,
        first: Callable[..., tuple[Any, Any]],
        second: Callable[..., Any],
        finishes: Sequence[Callable[[Any], Any]],
    ) -> None:
        self._first, self._second, self._finishes = first, second, finishes

    def forward(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """The outputs of the first, and what `backward` needs."""
        return self._first(*arguments)

    def backward(self, saved: Any, further: tuple[Any, ...], finish: int) -> Any:
        """The results of the second."""
        return self._finishes[finish](self._second(saved, *further))

    def early(self, saved: Any, further: tuple[Any, ...]) -> tuple[Any, Any]:
        """The first half of the results, and what `late` needs: here, the second half."""
        first, second = self._second(saved, *further)
        return first, second

    def late(self, saved: Any, finish: int) -> Any:
        """The second half of the results, after nothing."""
        return self._finishes[finish](([], saved))


class CompiledPair:
    """Compiles both, once for arguments of any number of rows.

    Args:
        first, second, finishes: as for `EagerPair`.
        further: (outputs) -> the further arguments, or tensors like them.
        constant: variables that nothing but the optimizer changes.
        jit_compile: whether XLA compiles.
    """

    def __init__(
        self,
        first: Callable[..., tuple[Any, Any]],
        second: Callable[..., Any],
        finishes: Sequence[Callable[[Any], Any]],
        further: Callable[[Any], Any],
        constant: Sequence[Any],
        jit_compile: bool,
    ) -> None:
        self._make = lambda types: Split(
            first, second, types, further, constant, finishes, jit_compile
        )
        self._splits: list[tuple[list[Any], Split]] = []

    def forward(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """The outputs of the first, and what `backward` needs."""
        split = self._find(arguments)
        outputs, kept = split.forward(arguments)
        return outputs, (split, kept)

    def backward(self, saved: Any, further: tuple[Any, ...], finish: int) -> Any:
        """The results of the second."""
        split, kept = saved
        return split.backward(kept, further, finish)

    def early(self, saved: Any, further: tuple[Any, ...]) -> tuple[Any, Any]:
        """The first half of the results, by what it needs alone, and what `late` needs."""
        split, kept = saved
        first, kept = split.early(kept, further)
        return first, (split, kept)

    def late(self, saved: Any, finish: int) -> Any:
        """The second half of the results, after nothing."""
        split, kept = saved
        return split.late(kept, finish)

    def prepare(self, arguments: tuple[Any, ...], finish: int, in_two: bool = False) -> None:
        """Compile for arguments of these types, or like these; the second as one or in two."""
        self._find(arguments).prepare(finish, in_two)

    def _find(self, arguments: tuple[Any, ...]) -> Split:
        flat = tf.nest.flatten(arguments)
        for types, split in self._splits:
            if _fit(types, flat):
                return split
        types = [any_rows(x) for x in flat]
        if self._splits:
            types = [_wider(a, b) for a, b in zip(self._splits[-1][0], types, strict=True)]
        split = self._make(tf.nest.pack_sequence_as(arguments, types))
        self._splits.append((types, split))
        return split


class Compiled:
    """A `tf.function` that is traced once, for any number of rows.

    Args:
        function: what to compile.
        jit_compile: whether XLA compiles.
    """

    def __init__(self, function: Callable[..., Any], jit_compile: bool) -> None:
        self._function = tf.function(
            function, reduce_retracing=True, autograph=False, jit_compile=jit_compile or None
        )
        self._traced = False

    def __call__(self, *args: Any) -> Any:
        self.prepare(*args)
        return self._function(*args)

    def prepare(self, *args: Any) -> None:
        """Compile, if it is not, for arguments of these types, or like these."""
        if not self._traced:
            self._traced = True
            self._function.get_concrete_function(*keras.tree.map_structure(any_rows, args))


def any_rows(value: Any) -> Any:
    """The type of `value` with any number of rows."""
    if not isinstance(value, tf.Tensor | tf.TensorSpec):
        return value
    shape = value.shape.as_list()
    return tf.TensorSpec([None, *shape[1:]] if shape else [], value.dtype)


def _fit(types: Sequence[Any], values: Sequence[Any]) -> bool:
    return len(types) == len(values) and all(
        kind.is_compatible_with(x) if isinstance(kind, tf.TensorSpec) else kind is x
        for kind, x in zip(types, values, strict=True)
    )


def _wider(known: Any, new: Any) -> Any:
    """The type of both, where shapes vary from step to step."""
    specs = isinstance(known, tf.TensorSpec) and isinstance(new, tf.TensorSpec)
    if not specs or known.dtype != new.dtype or known.shape.rank != new.shape.rank:
        return new
    pairs = zip(known.shape.as_list(), new.shape.as_list(), strict=True)
    return tf.TensorSpec([a if a == b else None for a, b in pairs], new.dtype)
