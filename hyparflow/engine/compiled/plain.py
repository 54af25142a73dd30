"""The compiler that uses nothing but TensorFlow's public API.

A forward is a `tf.function` under an eager `tf.GradientTape`, and the tape computes its backward. A
tape gives all gradients at a time, so the first part of a backward in two computes both. Nothing
here is known to depend on a version of TensorFlow. `HYPARFLOW_COMPILED=plain` asks for it; it costs
what `hyparflow.engine.compiled.surgery` gains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.compiler import Computation
from hyparflow.engine.compiled.functions import Compiled, EagerPair
from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.engine.compiled.section_cut import Wanted

__all__ = ["Plain"]

_NO_SEED = 87654321  # what TensorFlow's get_seed returns for the global seed if there is none


class Plain:
    """See `hyparflow.engine.compiled.compiler.Compiler`."""

    adds = False
    shares = False

    def call(self, concrete: Any, arguments: Any) -> Callable[..., Any]:
        """The function's usual call, which checks each argument."""
        flat = tf.nest.flatten(arguments)

        def call(*tensors: Any) -> Any:
            following = iter(tensors)
            given = [next(following) if _is_tensor(x) else x for x in flat]
            return concrete(*tf.nest.pack_sequence_as(arguments, given))

        return call

    def pair(
        self,
        computation: Computation,
        finishes: Sequence[Callable[[Any], Any]],
        constant: Sequence[Any],
        jit_compile: bool,
        recompute: str | None = None,
    ) -> TapedPair:
        """A compiled forward, with an eager tape that makes its backward; it keeps all."""
        return TapedPair(
            computation, finishes, Compiled(computation.compute, jit_compile, self.call)
        )

    def sections(
        self,
        function: Callable[..., Wanted],
        arguments: Sequence[Any],
        weights: Sequence[Any],
        training: bool,
    ) -> Any:
        """Refused before it is asked for: a tape computes a whole backward."""
        raise NotImplementedError("sections")

    def memory(self, shape: tuple[int, ...], dtype: np.dtype) -> CopiedMemory:
        """An array of its own, from which the tensor is made."""
        return CopiedMemory(shape, dtype)

    def variable(self, make: Callable[[], Any]) -> Any:
        """Make it in the usual way; `tf.function` then traces again."""
        return make()

    def seed(self) -> Any:
        """The seed as operations get it: modulo 2**31 - 1."""
        seed, _ = tf.compat.v1.get_seed(1)
        return None if seed == _NO_SEED else seed


class TapedPair:
    """A forward that is compiled alone, and the backward that an eager tape makes of it.

    Args:
        computation: the two.
        finishes: as for `EagerPair`.
        compute: the compiled `computation.compute`.
    """

    def __init__(
        self,
        computation: Computation,
        finishes: Sequence[Callable[[Any], Any]],
        compute: Compiled,
    ) -> None:
        first = functools.partial(computation.first, compute)
        self._pair = EagerPair(first, computation.second, finishes)
        self._compute = compute

    def forward(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.forward`."""
        outputs, state = self._pair.forward(arguments)
        return outputs, (self._compute.types(*arguments), state)

    def again(self, saved: Any, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.again`; a tape keeps all."""
        return saved[0], saved

    def backward(self, saved: Any, further: tuple[Any, ...], finish: int) -> Any:
        """See `Pair.backward`."""
        return self._pair.backward(saved[1], further, finish)

    def early(self, saved: Any, further: tuple[Any, ...]) -> tuple[Any, Any]:
        """See `Pair.early`; the state for `late` is the second half of the results."""
        return self._pair.early(saved[1], further)

    def late(self, saved: Any, finish: int) -> Any:
        """See `Pair.late`."""
        return self._pair.late(saved, finish)

    def like(self, other: Any, likeness: Likeness) -> TapedPair:
        """See `Pair.like`; a tape is bound to its variables."""
        return self

    def types(self, saved: Any) -> Any:
        """See `Pair.types`."""
        return saved[0]

    def is_dense(self, saved: Any) -> bool:
        """See `Pair.is_dense`; what a tape makes is known once it has run."""
        return False

    def prepare(self, arguments: tuple[Any, ...], finish: int, in_two: bool = False) -> None:
        """Compile the forward; the tape compiles the backward when both first run."""
        self._compute.prepare(*arguments)


class CopiedMemory:
    """An array, which TensorFlow copies into a tensor.

    Attributes:
        array: the memory; must be written before `tensor` is called.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.array = np.empty(shape, dtype)
        self._tensor: Any = None

    def tensor(self) -> Any:
        """The content of `array` as a tensor."""
        if self._tensor is None:
            self._tensor = tf.convert_to_tensor(self.array)
        return self._tensor


def _is_tensor(value: Any) -> bool:
    return isinstance(value, tf.Tensor | tf.TensorSpec)
