"""Compiled functions; a forward and its backward as two of them, or as Python runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.fast_call import packed_call
from hyparflow.engine.compiled.split_function import Split

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
        self._splits = _ByTypes(
            lambda types: Split(first, second, types, further, constant, finishes, jit_compile)
        )

    def forward(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """The outputs of the first, and what `backward` needs."""
        split = self._splits.find(arguments)
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

    def types(self, saved: Any) -> Any:
        """The types of arguments that what `forward` saved was compiled for."""
        return saved[0].arguments

    def prepare(self, arguments: tuple[Any, ...], finish: int, in_two: bool = False) -> None:
        """Compile for arguments of these types, or like these; the second as one or in two."""
        self._splits.find(arguments).prepare(finish, in_two)


class Compiled:
    """Compiles a function once for arguments of any number of rows.

    Args:
        function: what to compile.
        jit_compile: whether XLA compiles.
    """

    def __init__(self, function: Callable[..., Any], jit_compile: bool) -> None:
        compiled = tf.function(function, autograph=False, jit_compile=jit_compile or None)
        self._calls = _ByTypes(lambda types: packed_call(compiled.get_concrete_function(*types)))

    def __call__(self, *args: Any) -> Any:
        call = self._calls.find(args)
        return call(*(x for x in tf.nest.flatten(args) if isinstance(x, tf.Tensor)))

    def prepare(self, *args: Any) -> None:
        """Compile, if it is not, for arguments of these types, or like these."""
        self._calls.find(args)


class _ByTypes:
    """What was made for arguments of some types, and serves all that fit them.

    Args:
        make: types of arguments, nested as they are -> what serves them.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._made: list[tuple[Any, list[Any], Any]] = []  # with the types, nested and flat

    def find(self, arguments: tuple[Any, ...]) -> Any:
        """What serves these arguments, or arguments of these types; made if nothing does."""
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
    """Whether they are nested in one way; labels of a fit may have weights, and those of its
    validation none.
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
    """The type of both, where shapes vary from step to step."""
    specs = isinstance(known, tf.TensorSpec) and isinstance(new, tf.TensorSpec)
    if not specs or known.dtype != new.dtype or known.shape.rank != new.shape.rank:
        return new
    pairs = zip(known.shape.as_list(), new.shape.as_list(), strict=True)
    return tf.TensorSpec([a if a == b else None for a, b in pairs], new.dtype)
