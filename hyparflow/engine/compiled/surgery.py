"""The compiler that uses private parts of TensorFlow, for speed.

====================  ===================================================================
part                  what it uses of TensorFlow
====================  ===================================================================
split_function        the graph of a traced forward and backward, cut in two or three
recomputed            which operations have a state
sections              the same graph, cut where it waits for attention
subgraph              graph definitions, and what a traced function captures
direct_call           calls of compiled functions without checks of each argument
hidden_variable       a variable made during a trace that does not notice it
tensor_memory         the memory of a tensor, which MPI writes to
====================  ===================================================================

The docstring of each part says what it gains and on which versions it was seen to work.
`hyparflow.engine.compiled.self_test` finds out whether they work with this TensorFlow; if not,
`hyparflow.engine.compiled.plain` takes the place of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyparflow.engine.compiled.compiler import Computation
from hyparflow.engine.compiled.direct_call import packed_call
from hyparflow.engine.compiled.hidden_variable import hidden
from hyparflow.engine.compiled.section_cut import Wanted
from hyparflow.engine.compiled.sections import Sections
from hyparflow.engine.compiled.seed import global_seed
from hyparflow.engine.compiled.split_pair import SplitPair
from hyparflow.engine.compiled.tensor_memory import TensorMemory

__all__ = ["Surgery"]


class Surgery:
    """See `hyparflow.engine.compiled.compiler.Compiler`."""

    adds = True
    shares = True

    def call(self, concrete: Any, arguments: Any) -> Callable[..., Any]:
        """A call without checks of the tensors."""
        return packed_call(concrete)

    def pair(
        self,
        computation: Computation,
        finishes: Sequence[Callable[[Any], Any]],
        constant: Sequence[Any],
        jit_compile: bool,
        recompute: str | None = None,
    ) -> SplitPair:
        """A forward and backward, traced as one graph and cut."""
        first = functools.partial(computation.first, computation.compute)
        second, further = computation.second, computation.further
        return SplitPair(first, second, finishes, further, constant, jit_compile, recompute)

    def sections(
        self,
        function: Callable[..., Wanted],
        arguments: Sequence[Any],
        weights: Sequence[Any],
        training: bool,
    ) -> Sections:
        """The sections of a function, traced as one graph and cut."""
        return Sections(function, arguments, weights, training)

    def memory(self, shape: tuple[int, ...], dtype: np.dtype) -> TensorMemory:
        """The memory of the tensor itself."""
        return TensorMemory(shape, dtype)

    def variable(self, make: Callable[[], Any]) -> Any:
        """Make the variable without the trace noticing it."""
        return hidden(make)

    def seed(self) -> Any:
        """The seed that the user set."""
        return global_seed()
