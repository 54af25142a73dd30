"""The compiler that reaches into TensorFlow, for speed: its parts, gathered.

====================  ===================================================================
part                  what is reached into
====================  ===================================================================
split_function        the graph of a traced forward and backward, cut in two or three
subgraph              graph definitions, and what a traced function captures
direct_call           calls of compiled functions past the look at each argument
hidden_variable       a variable made while something is traced, which does not notice it
tensor_memory         the memory of a tensor, which MPI writes to
====================  ===================================================================

Each part says what it gains and on which versions it was seen to work. Whether TensorFlow still
lets them do what they rely on, `hyparflow.engine.compiled.self_test` finds out; where it does not,
`hyparflow.engine.compiled.plain` stands in for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyparflow.engine.compiled.compiler import Computation
from hyparflow.engine.compiled.direct_call import packed_call
from hyparflow.engine.compiled.hidden_variable import hidden
from hyparflow.engine.compiled.seed import global_seed
from hyparflow.engine.compiled.split_pair import SplitPair
from hyparflow.engine.compiled.tensor_memory import TensorMemory

__all__ = ["Surgery"]


class Surgery:
    """See `hyparflow.engine.compiled.compiler.Compiler`."""

    adds = True

    def call(self, concrete: Any, arguments: Any) -> Callable[..., Any]:
        """A call that does not look at the tensors."""
        return packed_call(concrete)

    def pair(
        self,
        computation: Computation,
        finishes: Sequence[Callable[[Any], Any]],
        constant: Sequence[Any],
        jit_compile: bool,
    ) -> SplitPair:
        """Both traced as one, and cut."""
        first = functools.partial(computation.first, computation.compute)
        return SplitPair(
            first, computation.second, finishes, computation.further, constant, jit_compile
        )

    def memory(self, shape: tuple[int, ...], dtype: np.dtype) -> TensorMemory:
        """The memory of the tensor itself."""
        return TensorMemory(shape, dtype)

    def variable(self, make: Callable[[], Any]) -> Any:
        """Make it where what is traced does not see it."""
        return hidden(make)

    def seed(self) -> Any:
        """The seed as it was set."""
        return global_seed()
