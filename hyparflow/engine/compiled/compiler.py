"""The interface of a compiler of stages: the border to TensorFlow's private parts.

There are two compilers, with equal results: `hyparflow.engine.compiled.surgery`, which is fast, and
`hyparflow.engine.compiled.plain`, which uses nothing but TensorFlow's public API. Which of them a
process uses is decided in `hyparflow.engine.compiled.choice`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.engine.compiled.section_cut import Wanted

__all__ = ["Compiler", "Computation", "Fillable", "Pair"]


class Computation(NamedTuple):
    """A forward, and its backward, which runs later.

    Attributes:
        compute: (arguments) -> the results of the forward; without a gradient tape.
        first: (compute, arguments) -> (outputs, state); calls `compute` under a gradient tape.
        second: (state, further arguments) -> (gradients of inputs, gradients of weights).
        further: (outputs) -> the further arguments, or tensors like them.
    """

    compute: Callable[..., Any]
    first: Callable[..., tuple[Any, Any]]
    second: Callable[..., tuple[Any, Any]]
    further: Callable[[Any], Any] = lambda outputs: ()


class Pair(Protocol):
    """A forward and its backward, compiled once for arguments of any number of rows."""

    def forward(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """The outputs of the forward, and the state that `backward`, or `early`, needs."""

    def again(self, saved: Any, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """Run the forward again, without effects, if it was to be recomputed in segments.

        Args:
            saved: the state that the forward returned.
            arguments: those of that forward.

        Returns:
            What the forward returned, with the state that `backward` needs.
        """

    def backward(self, saved: Any, further: tuple[Any, ...], finish: int) -> Any:
        """What one of the `finishes` makes of the results of the backward."""

    def early(self, saved: Any, further: tuple[Any, ...]) -> tuple[Any, Any]:
        """The first half of the results of the backward, and the state that `late` needs."""

    def late(self, saved: Any, finish: int) -> Any:
        """What one of the `finishes` makes of `([], second half of the results)`."""

    def like(self, other: Any, likeness: Likeness) -> Any:
        """This pair, which takes what `other` compiled where that computes the same."""

    def types(self, saved: Any) -> Any:
        """The types of the arguments of the `forward` that returned the state `saved`."""

    def is_dense(self, saved: Any) -> bool:
        """Whether it is known that no result is sparse, once a `forward` returned `saved`."""

    def prepare(self, arguments: tuple[Any, ...], finish: int, in_two: bool = False) -> None:
        """Compile for arguments of these types, or like these; the backward in two if `in_two`."""


class Fillable(Protocol):
    """Memory of a tensor that another rank sends.

    Attributes:
        array: the memory; must be written before `tensor` is called.
    """

    array: np.ndarray

    def tensor(self) -> Any:
        """The content of `array` as a tensor."""


class Compiler(Protocol):
    """Compiles what stages compute, and what goes on around them.

    Attributes:
        adds: whether a compiled backward may add up gradients in variables of its own; if not, it
            returns them.
        shares: whether compiled functions serve for other variables than they were traced with.
    """

    adds: bool
    shares: bool

    def call(self, concrete: Any, arguments: Any) -> Callable[..., Any]:
        """A call of a concrete function.

        Args:
            concrete: the function.
            arguments: what it was traced with, nested, a TensorSpec or tensor for each tensor.

        Returns:
            (tensors of `arguments`, flat) -> what the function returns.
        """

    def pair(
        self,
        computation: Computation,
        finishes: Sequence[Callable[[Any], Any]],
        constant: Sequence[Any],
        jit_compile: bool,
        recompute: str | None = None,
    ) -> Pair:
        """A forward and its backward.

        Args:
            computation: the two.
            finishes: functions of the results of the backward, one of which is compiled with it;
                `backward` and `late` choose by its number.
            constant: variables that nothing but the optimizer changes.
            jit_compile: whether XLA compiles.
            recompute: "block": the backward runs the forward again. "segments": `again` does. Of
                use if the compiler `shares`; without it all is kept.
        """

    def sections(
        self,
        function: Callable[..., Wanted],
        arguments: Sequence[Any],
        weights: Sequence[Any],
        training: bool,
    ) -> Any:
        """The `Sections` of a function, if the compiler `shares`.

        Args:
            function: (arguments) -> `Wanted`; to be traced.
            arguments: types of the arguments, nested.
            weights: variables whose gradients are wanted.
            training: whether there are backwards.
        """

    def memory(self, shape: tuple[int, ...], dtype: np.dtype) -> Fillable:
        """Memory for a tensor of this shape and type."""

    def variable(self, make: Callable[[], Any]) -> Any:
        """Make a variable by `make` while a function is traced, which may then use it.

        Without `adds` this works in the first trace of a function only.
        """

    def seed(self) -> Any:
        """TensorFlow's global seed, or None."""
