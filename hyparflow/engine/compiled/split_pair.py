"""A forward and its backward as two compiled functions, cut from one that was traced.

Reaches into nothing itself; for gain and versions see `hyparflow.engine.compiled.split_function`.
Without it `hyparflow.engine.compiled.plain.TapedPair` stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hyparflow.engine.compiled.functions import ByTypes
from hyparflow.engine.compiled.split_function import Split

__all__ = ["SplitPair"]


class SplitPair:
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
        self._splits = ByTypes(
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
