"""What a stage calls: its forward, its backward and its loss, each compiled when it first runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from hyparflow.engine.compiled.compiler import Compiler, Computation
from hyparflow.engine.compiled.functions import Compiled, EagerPair
from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.engine.stages.stage_functions import StageFunctions

__all__ = ["StageCalls"]

_COMPILED = ("pair", "loss_pair", "fused", "fused_add", "infer", "infer_loss")


class StageCalls:
    """The compiled calls of one stage.

    Attributes:
        pair: forward and backward of a stage that is not the last.
        loss_pair: those of the last stage.
        fused, fused_add: forward and backward of the last stage in one call; the second adds up
            the gradients of weights.
        infer, infer_loss: forward without training; loss and metrics without training.

    Args:
        functions: the computations.
        add_up: adds the gradients of weights to those of the micro-batches before.
        eager: whether to run without compiling.
        jit_compile: whether XLA compiles.
        compiler: compiles.
        recompute: what computes the forward again; see `Compiler.pair`.
    """

    def __init__(
        self,
        functions: StageFunctions,
        add_up: Callable[[Any], Any],
        eager: bool,
        jit_compile: bool,
        compiler: Compiler,
        recompute: str | None = None,
    ) -> None:
        def make(function: Callable[..., Any]) -> Any:
            return function if eager else Compiled(function, jit_compile, compiler.call)

        def pair(computation: Computation) -> Any:
            finishes = (_as_they_are, add_up)
            if not eager:
                weights = functions.weights
                return compiler.pair(computation, finishes, weights, jit_compile, recompute)
            first = functools.partial(computation.first, computation.compute)
            return EagerPair(first, computation.second, finishes)

        self.pair = pair(
            Computation(
                functions.outputs, functions.forward, functions.backward, functions.gradients_like
            )
        )
        self.loss_pair = pair(
            Computation(functions.training_loss, functions.forward_loss, functions.backward_loss)
        )
        self.fused = make(functions.fused)
        self.fused_add = make(lambda *args: add_up(functions.fused(*args)))
        self.infer = make(functions.infer)
        self.infer_loss = make(functions.infer_loss)

    def like(self, other: StageCalls, likeness: Likeness) -> StageCalls:
        """These calls, which take what `other` compiled where that computes the same."""
        twin = copy.copy(self)
        for name in _COMPILED:
            setattr(twin, name, getattr(self, name).like(getattr(other, name), likeness))
        return twin


def _as_they_are(results: Any) -> Any:
    return results
