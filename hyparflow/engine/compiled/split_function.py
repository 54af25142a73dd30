"""A computation that is traced as one graph and run in two calls: a forward, later its backward.

TensorFlow compiles a forward and its backward as two calls only through an eager tape. Traced as
one graph, which is cut here, they cost less: the backward can add up gradients itself, and the
tensors that it keeps from the forward are chosen. If it needs only the shape of a tensor, only the
shape is kept; values that follow from a weight alone are computed again. With `recompute` so is all
that can be, from the arguments and from what was drawn.

Gain: without it a step of small layers took 3 to 6 % more processor time; and only with it can
backwards add up gradients, which gains more (``benchmarks/border``). Seen to work on TensorFlow
2.21 with Keras 3.15. Without it, the tape of `hyparflow.engine.compiled.plain` makes the backward,
whose two parts cannot run apart.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.direct_call import DirectCall
from hyparflow.engine.compiled.flat_tensors import packed_like, tensors_of, unique
from hyparflow.engine.compiled.front import with_shapes
from hyparflow.engine.compiled.recomputed import cheap, repeatable
from hyparflow.engine.compiled.subgraph import GraphParts

__all__ = ["BLOCK", "SEGMENTS", "Split"]

BLOCK = "block"  # values of `recompute`
SEGMENTS = "segments"


class Split:
    """Two functions of which the second continues the first.

    Attributes:
        arguments: the types of the arguments.

    Args:
        first: (arguments) -> (outputs, state); the state goes to `second`.
        second: (state, further arguments) -> results. Where they are a pair, what the first half
            needs can run before the rest (`early`, `late`).
        arguments: types of the arguments, nested; `tf.TensorSpec` where there are tensors.
        further: (outputs) -> the further arguments, nested; tensors like those to come.
        constant: variables that nothing but the optimizer changes.
        finishes: functions of the results, one of which is compiled with the second; its value is
            returned.
        jit_compile: whether XLA compiles.
        recompute: BLOCK: the second function runs the first again. SEGMENTS: `again` does, before
            it. None: what the second function needs is kept.
    """

    def __init__(
        self,
        first: Callable[..., tuple[Any, Any]],
        second: Callable[..., Any],
        arguments: Any,
        further: Callable[[Any], Any] = lambda outputs: (),
        constant: Sequence[Any] = (),
        finishes: Sequence[Callable[[Any], Any]] = (lambda results: results,),
        jit_compile: bool = False,
        recompute: str | None = None,
    ) -> None:
        self.arguments = arguments
        self._finishes = finishes
        self._compiled: dict[Any, DirectCall] = {}
        self._original: Split | None = None
        self._replace: Callable[[Any], Any] = lambda tensor: tensor
        self._trace(first, second, arguments, further, jit_compile)
        self._cut(recompute, {id(v.handle) for v in constant})

    def _cut(self, recompute: str | None, constant: Collection[int]) -> None:
        """Choose what is kept, and compile the first function."""
        parts, first = self._parts, self._parts.operations[: self._boundary]
        front = with_shapes(first, parts.operations[self._boundary :])
        self._effects = [op for op in parts.effects if op not in front]
        self._again = cheap(first, parts.captured, constant)
        self._behind = behind = front - self._again
        self._kept = stored = self._needed([], behind)
        if recompute is not None:
            behind = behind - repeatable(first, parts.functions, parts.captured, constant)
            more = [*self._outputs, *self._kept] if recompute == SEGMENTS else []
            stored = self._needed(more, behind)
        if recompute == BLOCK:
            self._behind, self._kept = behind, stored
        if recompute == SEGMENTS:
            given = {x.ref() for x in self._given}
            stored = [x for x in stored if x.ref() not in given]
        self._stored, self._first_runs = stored, behind
        made = [*self._outputs, *stored]
        start = [x.op for x in made] + [op for op in parts.effects if op in front]
        self._forward = parts.compile(self._given, made, parts.upstream(start))

    def _needed(self, more: Sequence[Any], behind: Collection[Any]) -> list[Any]:
        """The tensors of `behind` that the second function needs, and the tensors `more`."""
        wanted = [*self._results, *more]
        kept = self._parts.needed([*(x.op for x in wanted), *self._effects], behind)
        return unique([*kept, *(x for x in wanted if x.op in behind)])

    def on(self, replace: Callable[[Any], Any]) -> Split:
        """The same functions with other variables; nothing is traced.

        Args:
            replace: (a captured tensor, of a variable its handle) -> the one to take instead.
        """
        twin = copy.copy(self)
        twin._original, twin._replace, twin._compiled = self, replace, {}
        twin._forward = self._forward.on(replace)
        return twin

    @property
    def traced(self) -> tuple[Any, int]:
        """The graph that was traced, and how many of its operations are the first function's."""
        return self._parts.graph, self._boundary

    @functools.cached_property
    def is_dense(self) -> bool:
        """Whether no result is sparse."""
        return not any(isinstance(x, tf.IndexedSlices) for x in tf.nest.flatten(self._results_like))

    # --- what users call ---

    def forward(self, arguments: Any) -> tuple[Any, list[Any]]:
        """Run the first function: its outputs, and the tensors kept for `backward` or `early`."""
        made = self._forward(*tensors_of(arguments))
        count = len(self._outputs)
        return packed_like(self._outputs_like, made[:count]), made[count:]

    def again(self, arguments: Any, stored: list[Any]) -> tuple[Any, list[Any]]:
        """Run the first function again, without effects: what `forward` returned if none is."""
        made = self._made(self._second_run, None)(*tensors_of(arguments), *stored)
        count = len(self._outputs)
        return packed_like(self._outputs_like, made[:count]), made[count:]

    def backward(self, kept: list[Any], further: Any = (), finish: int = 0) -> Any:
        """Run the second function, and one of `finishes` on its results."""
        return self._made(self._whole, finish)(*kept, *tensors_of(further))

    def early(self, kept: list[Any], further: Any = ()) -> tuple[Any, list[Any]]:
        """Compute the first half of the results: that half, and the tensors kept for `late`."""
        made = self._made(self._first_half, None)(*kept, *tensors_of(further))
        like = self._results_like[0]
        count = len(tensors_of(like))
        return packed_like(like, made[:count]), made[count:]

    def late(self, kept: list[Any], finish: int = 0) -> Any:
        """Run the rest, and one of `finishes` on ([], second half of the results)."""
        return self._made(self._second_half, finish)(*kept)

    def prepare(self, finish: int, in_two: bool = False) -> None:
        """Compile the second function, as one call or, if `in_two`, as two."""
        if in_two:
            self._made(self._first_half, None)
            self._made(self._second_half, finish)
        else:
            self._made(self._whole, finish)

    def _made(self, make: Callable[[Any], DirectCall], finish: int | None) -> DirectCall:
        key = (make.__name__, finish)
        if key not in self._compiled:
            self._compiled[key] = self._new(make, finish)
        return self._compiled[key]

    def _new(self, make: Callable[[Any], DirectCall], finish: int | None) -> DirectCall:
        original = self._original
        if original is None:
            return make(None if finish is None else self._finishes[finish])
        return original._made(getattr(original, make.__name__), finish).on(self._replace)

    # --- parts of the second function ---

    def _whole(self, finish: Callable[[Any], Any]) -> DirectCall:
        start = [*(x.op for x in self._results), *self._effects]
        return self._parts.compile(
            [*self._kept, *self._further],
            self._results,
            self._parts.upstream(start, self._behind),
            lambda results: finish(packed_like(self._results_like, results)),
        )

    def _second_run(self, finish: None) -> DirectCall:
        wanted = [*self._outputs, *self._kept]
        operations = self._parts.upstream([x.op for x in wanted], self._first_runs)
        return self._parts.compile([*self._given, *self._stored], wanted, operations)

    @functools.cached_property
    def _halves(self) -> tuple[list[Any], list[Any], set[Any]]:
        """Tensors of the first half; those that the second half needs; operations before them."""
        early, late = map(tensors_of, self._results_like)
        before = self._parts.upstream([x.op for x in early], self._behind) - self._again
        before |= self._behind | {x.op for x in self._further}
        effects = [op for op in self._effects if op not in before]
        kept = self._parts.needed([*(x.op for x in late), *effects], before)
        kept += [x for x in late if x.op in before]
        return early, unique(kept), before

    def _first_half(self, finish: None) -> DirectCall:
        early, kept, _ = self._halves
        wanted = [*early, *kept]
        operations = self._parts.upstream([x.op for x in wanted], self._behind)
        return self._parts.compile([*self._kept, *self._further], wanted, operations)

    def _second_half(self, finish: Callable[[Any], Any]) -> DirectCall:
        _, kept, before = self._halves
        like = self._results_like[1]
        start = [x.op for x in tensors_of(like)]
        start += [op for op in self._effects if op not in before]
        return self._parts.compile(
            kept,
            tensors_of(like),
            self._parts.upstream(start, before),
            lambda results: finish(([], packed_like(like, results))),
        )

    # --- tracing ---

    def _trace(
        self, first: Any, second: Any, arguments: Any, further: Any, jit_compile: bool
    ) -> None:
        def both(*arguments: Any) -> list[Any]:
            outputs, state = first(*arguments)
            self._boundary = len(tf.compat.v1.get_default_graph().get_operations())
            more = tf.nest.map_structure(_placeholder, further(outputs))
            results = second(state, *more)
            self._outputs_like, self._results_like = outputs, results
            self._further = tensors_of(more)
            return tensors_of((outputs, results))

        traced = tf.function(both, autograph=False).get_concrete_function(*arguments)
        self._parts = GraphParts(traced, jit_compile)
        self._given = [x for x in traced.inputs if x.name not in self._parts.captured]
        self._outputs, self._results = (
            tensors_of(self._outputs_like),
            tensors_of(self._results_like),
        )


def _placeholder(like: Any) -> Any:
    """A placeholder for an argument of the second function."""
    if not isinstance(like, tf.Tensor | tf.TensorSpec):
        return like
    return tf.compat.v1.placeholder(like.dtype, like.shape)
