"""Functions that are compiled once for any number of rows, or run eagerly.

Public API of TensorFlow only. Without this file there would be a trace for each number of rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.captured import captures_of
from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.engine.compiled.same_graph import same_graphs

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

    def is_dense(self, saved: Any) -> bool:
        """See `Pair.is_dense`; nothing is known before the second ran."""
        return False


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

        def make(types: Any) -> _Traced:
            concrete = compiled.get_concrete_function(*types)
            return _Traced(types, concrete, call(concrete, types))

        self._calls = ByTypes(make, lambda types: compiled.get_concrete_function(*types).graph)

    def like(self, other: Compiled, likeness: Likeness) -> Compiled:
        """This function, which takes what `other` compiled where that computes the same."""
        twin = copy.copy(self)
        twin._calls = self._calls.like(other._calls, likeness)
        return twin

    def __call__(self, *args: Any) -> Any:
        call = self._calls.find(args).call
        return call(*(x for x in tf.nest.flatten(args) if isinstance(x, tf.Tensor)))

    def prepare(self, *args: Any) -> None:
        """Compile for arguments of these types, or like these, unless that was done."""
        self._calls.find(args)

    def types(self, *args: Any) -> Any:
        """The types that the compiled function for these arguments was compiled for."""
        return self._calls.find(args).arguments


class _Traced:
    """A compiled function for arguments of some types.

    Attributes:
        arguments: the types of the arguments.
        call: a call of the function with flat tensors.

    Args:
        concrete: the traced function.
    """

    def __init__(self, arguments: Any, concrete: Any, call: Callable[..., Any]) -> None:
        self.arguments, self.call = arguments, call
        self._concrete = concrete

    @property
    def traced(self) -> tuple[Any, int | None]:
        """The graph that was traced; all its operations tell whether another is the same."""
        return self._concrete.graph, None

    def on(self, replace: Callable[[Any], Any]) -> _Traced:
        """The same function with other variables."""
        return _Traced(self.arguments, self._concrete, self.call.on(replace))  # type: ignore[attr-defined]


class ByTypes:
    """A cache by types of arguments; an entry serves all arguments that fit its types.

    Args:
        make: (types of arguments, nested) -> a new entry.
        trace: (types of arguments, nested) -> the graph that tells whether an entry of another
            cache does here.
    """

    def __init__(self, make: Callable[[Any], Any], trace: Callable[[Any], Any]) -> None:
        self._make, self._trace = make, trace
        self._made: list[tuple[Any, list[Any], Any]] = []  # with the types, nested and flat
        self.serves: dict[int, bool] = {}  # by id of an entry: whether it serves those like it

    def like(self, others: ByTypes, likeness: Likeness) -> ByTypes:
        """This cache, which takes the entries of another one where they compute the same."""
        return _AlikeByTypes(self._make, self._trace, others, likeness)

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


class _AlikeByTypes(ByTypes):
    """A cache by types that takes the entries of another one, with other variables.

    The first that takes an entry traces its own as well, and compares. Where they differ, or the
    other captured what has no counterpart, each makes its own.

    Args:
        make, trace: as for `ByTypes`.
        others: the other cache.
        likeness: the variables by those of the other.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        trace: Callable[[Any], Any],
        others: ByTypes,
        likeness: Likeness,
    ) -> None:
        super().__init__(make, trace)
        self._others, self._likeness = others, likeness
        self._taken: dict[int, tuple[Any, Any]] = {}  # by id of the other's entry, which is kept

    def find(self, arguments: tuple[Any, ...]) -> Any:
        """The entry for these arguments."""
        other = self._others.find(arguments)
        if id(other) not in self._taken:
            entry = other.on(self._likeness.replace) if self._serves(other) else None
            self._taken[id(other)] = other, entry
        entry = self._taken[id(other)][1]
        return super().find(arguments) if entry is None else entry

    def _serves(self, other: Any) -> bool:
        """Whether an entry of the other cache does here."""
        graph, count = other.traced
        if not self._likeness.covers(outer for outer, _ in captures_of(graph)):
            return False
        known = self._others.serves
        if id(other) not in known:
            own = self._trace(other.arguments)
            known[id(other)] = same_graphs(graph, own, self._likeness.find, count)
        return known[id(other)]


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
