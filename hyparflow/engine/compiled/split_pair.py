"""A forward and its backward as two compiled functions, cut from one that was traced.

Uses no private part of TensorFlow itself; for gain and versions see
`hyparflow.engine.compiled.split_function`. Without it `hyparflow.engine.compiled.plain.TapedPair`
stands in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.functions import ByTypes
from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.engine.compiled.split_function import Split

__all__ = ["SplitPair"]


class SplitPair:
    """Compiles both, once for arguments of any number of rows.

    Args:
        first, second, finishes: as for `EagerPair`.
        further: (outputs) -> the further arguments, or tensors like them.
        constant: variables that nothing but the optimizer changes.
        jit_compile: whether XLA compiles.
        recompute: see `Split`.
    """

    def __init__(
        self,
        first: Callable[..., tuple[Any, Any]],
        second: Callable[..., Any],
        finishes: Sequence[Callable[[Any], Any]],
        further: Callable[[Any], Any],
        constant: Sequence[Any],
        jit_compile: bool,
        recompute: str | None = None,
    ) -> None:
        def trace(types: Any) -> Any:
            """The graph of the first function, from which that of the second follows."""
            function = tf.function(lambda *args: first(*args) and None, autograph=False)
            return function.get_concrete_function(*types).graph

        self._splits = ByTypes(
            lambda types: Split(
                first, second, types, further, constant, finishes, jit_compile, recompute
            ),
            trace,
        )

    def like(self, other: SplitPair, likeness: Likeness) -> SplitPair:
        """See `Pair.like`."""
        twin = copy.copy(self)
        twin._splits = self._splits.like(other._splits, likeness)
        return twin

    def forward(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.forward`."""
        split = self._splits.find(arguments)
        outputs, kept = split.forward(arguments)
        return outputs, (split, kept)

    def again(self, saved: Any, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.again`."""
        split, kept = saved
        outputs, kept = split.again(arguments, kept)
        return outputs, (split, kept)

    def backward(self, saved: Any, further: tuple[Any, ...], finish: int) -> Any:
        """See `Pair.backward`."""
        split, kept = saved
        return split.backward(kept, further, finish)

    def early(self, saved: Any, further: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.early`; computes only what the first half needs."""
        split, kept = saved
        first, kept = split.early(kept, further)
        return first, (split, kept)

    def late(self, saved: Any, finish: int) -> Any:
        """See `Pair.late`."""
        split, kept = saved
        return split.late(kept, finish)

    def types(self, saved: Any) -> Any:
        """See `Pair.types`."""
        return saved[0].arguments

    def is_dense(self, saved: Any) -> bool:
        """See `Pair.is_dense`."""
        return saved[0].is_dense

    def prepare(self, arguments: tuple[Any, ...], finish: int, in_two: bool = False) -> None:
        """See `Pair.prepare`."""
        self._splits.find(arguments).prepare(finish, in_two)
