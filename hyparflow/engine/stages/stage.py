"""One stage: compiled forward and backward of a micro-batch.

A stage in the middle runs its forward, and later its backward
(`hyparflow.engine.compiled.compiler`); the last stage, which needs nothing between the two, runs
both as one compiled call. The gradients of weights are added up over the micro-batches of a step
where they are computed (`hyparflow.engine.compiled.accumulator`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import choice
from hyparflow.engine.compiled.accumulator import Accumulator
from hyparflow.engine.compiled.compiler import Compiler
from hyparflow.engine.compiled.likeness import Likeness
from hyparflow.engine.gradients.common_lookups import Aside
from hyparflow.engine.gradients.lookup_survey import LookupSurvey
from hyparflow.engine.gradients.microbatch_sum import GradientSum
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.loss.head import Labels, LossHead
from hyparflow.engine.stages.dependences import Dependences
from hyparflow.engine.stages.saved import Dependence, Saved
from hyparflow.engine.stages.stage_call import StageCall
from hyparflow.engine.stages.stage_calls import StageCalls
from hyparflow.engine.stages.stage_functions import StageFunctions
from hyparflow.pipeline.actions import Kind

__all__ = ["Stage", "Twin"]


@contextlib.contextmanager
def _no_trace() -> Iterator[Callable[[], None]]:
    """The context for trial calls of a stage without state: there is nothing to undo."""
    yield lambda: None


@dataclass(frozen=True)
class Twin:
    """A stage that another one is like.

    Attributes:
        stage: the stage whose calls are compiled.
        theirs: its variables (TensorFlow's).
        mine: the other's, in corresponding order.
    """

    stage: Stage
    theirs: Sequence[Any]
    mine: Sequence[Any]


class Stage:
    """The compiled calls of one stage.

    Attributes:
        calls: what is compiled.
        accumulator: the sums of gradients that compiled calls add up.

    Args:
        body: the computation.
        trainable: the variables that the stage trains.
        gradient_inputs: positions of the inputs that need a gradient.
        gradient_outputs: positions of the outputs whose gradient comes back.
        head: loss and metrics, on the last stage only.
        eager: whether to run without compiling, as `compile(run_eagerly=True)` asks.
        jit_compile: whether XLA compiles, as `compile(jit_compile=True)` asks.
        aside: makes a context in which calls of the stage have no lasting effects.
        compiler: compiles the stage; None for the compiler that this process uses.
        twin: a stage that computes the same with other variables, whose compiled calls serve here.
        recompute: "block": a backward computes its forward again. "segments": `again` does. None:
            a forward keeps what its backward needs.
        rewriter: puts in faster kernels; None leaves all as Keras computes it.
    """

    def __init__(
        self,
        body: StageCall,
        trainable: Sequence[Any],
        gradient_inputs: Sequence[int] = (),
        gradient_outputs: Sequence[int] = (),
        head: LossHead | None = None,
        eager: bool = False,
        jit_compile: bool = False,
        aside: Aside = _no_trace,
        compiler: Compiler | None = None,
        twin: Twin | None = None,
        recompute: str | None = None,
        rewriter: Rewriter | None = None,
    ) -> None:
        weights = [variable.value for variable in trainable]
        self._functions = StageFunctions(
            body, weights, gradient_inputs, gradient_outputs, head, rewriter
        )
        self._eager, self._twin = eager, twin
        self._lookups = LookupSurvey(self._functions.weight_gradients, aside, eager)
        self._dependences = Dependences(self._functions)
        self._largest = [n for n, v in enumerate(trainable) if v.overwrite_with_gradient]
        sums: Accumulator | None = None if twin is None else twin.stage.accumulator
        self.accumulator: Accumulator = Accumulator(weights, self._largest, sums)
        chosen = choice.compiler() if compiler is None else compiler
        self._adds_inside = chosen.adds and not eager
        self.calls = StageCalls(
            self._functions, self._add_up, eager, jit_compile, chosen, recompute
        )
        if twin is not None:
            likeness = Likeness(twin.theirs, twin.mine, self.accumulator.counterpart)
            self.calls = self.calls.like(twin.stage.calls, likeness)
        self.begin(several=False)

    def _add_up(self, results: Any) -> Any:
        """To be traced: add dense gradients of weights to those of the micro-batches before."""
        of_inputs, of_weights = results
        return of_inputs, *self.accumulator.add(of_weights)

    @property
    def rewritten(self) -> Counter[str]:
        """How often which faster kernel was put in; empty before it is compiled."""
        like = None if self._twin is None else self._twin.stage
        return self._functions.rewritten or (like.rewritten if like else Counter())

    def begin(self, several: bool) -> None:
        """Begin a training step; `several` tells whether it has more than one micro-batch."""
        self._adds = several and self._adds_inside  # the compiled backward
        self._lookups.begin()
        self._total = GradientSum(self._lookups, self._largest)
        self._added: set[int] = set()  # weights whose gradients the accumulator has
        self._reached: set[int] = set()  # weights with a gradient
        if self._adds:
            self.accumulator.reset()

    def prepare(self, inputs: Any, rest: Any, kinds: Collection[str]) -> None:
        """Compile what training calls, while other ranks compile theirs.

        Args:
            inputs: types of the inputs; if they prove wrong, the stage is compiled again.
            rest: the share n / B of a micro-batch, or for the last stage its labels.
            kinds: the kinds of the steps that it will run.
        """
        if self._eager:
            return
        with contextlib.suppress(Exception):  # the first step will tell
            if Kind.FUSED in kinds:
                (self.calls.fused_add if self._adds else self.calls.fused).prepare(inputs, rest)
            else:
                pair = self.calls.loss_pair if isinstance(rest, Labels) else self.calls.pair
                in_two = Kind.INPUT_BACKWARD in kinds
                pair.prepare((inputs, rest), self._adds, in_two)

    def gradients(self) -> GradientSum:
        """The gradients of the weights, summed over the micro-batches of the step.

        None where nothing depends on one, as in plain Keras, whose optimizers leave such weights
        alone.
        """
        values = self._total.values
        if values is not None:
            self.accumulator.fill(values, self._added)
            self._total.values = _only(values, [n in self._reached for n in range(len(values))])
        return self._total

    def forward(self, inputs: Any, share: Any) -> Saved:
        """Forward of a stage that is not the last; `share` is the micro-batch's n / B."""
        (outputs, loss), state = self.calls.pair.forward((inputs, share))
        return Saved(
            outputs=outputs,
            loss=loss,
            pair=self.calls.pair,
            state=state,
            given=self._given(inputs, share, self.calls.pair.is_dense(state)),
        )

    def forward_loss(self, inputs: Any, labels: Labels) -> Saved:
        """Forward of the last stage when its backward does not follow at once."""
        _, state = self.calls.loss_pair.forward((inputs, labels))
        given = self._given(inputs, labels.share, self.calls.loss_pair.is_dense(state))
        return Saved([], pair=self.calls.loss_pair, state=state, given=given)

    def again(self, saved: Saved, inputs: Any, rest: Any) -> None:
        """Compute a forward again, of which nothing was kept; `rest` is its share, or labels."""
        results, saved.state = saved.pair.again(saved.state, (inputs, rest))
        if saved.pair is self.calls.pair:
            saved.outputs = results[0]

    def backward(
        self, saved: Saved, output_gradients: Sequence[Any] = (), seed: Any = None
    ) -> list[Any]:
        """Backward of a micro-batch; the last stage's takes nothing but what was saved.

        Args:
            saved: what the forward returned.
            output_gradients: gradients of the outputs in `gradient_outputs`, summed over
                their consumers; None where no consumer depends on one.
            seed: n / B times the loss scale: the gradient of the total loss by what the stage's
                layers add to it, with which their backward begins.

        Returns:
            Gradients of the inputs in `gradient_inputs`; None where nothing depends on one.
        """
        further, depend = self._backward_arguments(saved, output_gradients, seed)
        results = saved.pair.backward(saved.state, further, self._adds)
        of_inputs = self._add(results, saved.given, depend and depend[1])
        return _only(of_inputs, depend and depend[0])

    def input_backward(
        self, saved: Saved, output_gradients: Sequence[Any] = (), seed: Any = None
    ) -> list[Any]:
        """The part of `backward` that gives the gradients of the inputs."""
        further, saved.depend = self._backward_arguments(saved, output_gradients, seed)
        of_inputs, saved.state = saved.pair.early(saved.state, further)
        return _only(of_inputs, saved.depend and saved.depend[0])

    def weight_backward(self, saved: Saved) -> None:
        """The rest of a backward: the gradients of the weights."""
        results = saved.pair.late(saved.state, self._adds)
        self._add(results, saved.given, saved.depend and saved.depend[1])

    def _backward_arguments(
        self, saved: Saved, output_gradients: Sequence[Any], seed: Any
    ) -> tuple[tuple[Any, ...], Dependence | None]:
        """The arguments of a backward; and the `Dependence`, if some gradients are None."""
        if saved.pair is self.calls.loss_pair:
            return (), None
        given = list(zip(self._functions.gradient_outputs, output_gradients, strict=True))
        reached = tuple(position for position, gradient in given if gradient is not None)
        if self._eager or len(reached) == len(given):
            return (output_gradients, seed), None
        # A compiled backward takes all gradients, so zeros stand for None; `Dependence` tells them.
        likes = {p: saved.outputs[p] for p, g in given if g is None}
        zeros = {p: tf.zeros(like.shape, like.dtype) for p, like in likes.items()}
        full = [zeros[p] if g is None else g for p, g in given]
        return (full, seed), self._dependences.of(saved.pair.types(saved.state), reached)

    def _add(self, results: Any, given: Any, depend: Sequence[bool] | None = None) -> list[Any]:
        """Take the gradients of the weights; return those of the inputs."""
        of_inputs, of_weights, *added = results
        self._lookups.note(of_weights, given)
        self._total.add(of_weights)
        found = [n for n, gradient in enumerate(of_weights) if gradient is not None]
        if added:
            found += added[0]
            self._added.update(added[0])
        self._reached.update(found if depend is None else [n for n in found if depend[n]])
        return list(of_inputs)

    def forward_backward(self, inputs: Any, labels: Labels) -> tuple[list[Any], Any]:
        """Forward and backward of the last stage in one compiled call.

        Returns:
            Gradients of the inputs in `gradient_inputs`; and what layers added to the loss that
            the loss of this call does not have in it, or None.
        """
        given = self._given(inputs, labels.share)
        results = (self.calls.fused_add if self._adds else self.calls.fused)(inputs, labels)
        return self._add(results, given), None

    def infer(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        """Outputs without training, and what the layers add to the loss."""
        return self.calls.infer(inputs, share)

    def infer_loss(self, inputs: Any, labels: Labels) -> Any:
        """Update loss and metrics without training; what is added besides, or None."""
        self.calls.infer_loss(inputs, labels)
        return None

    def _given(self, inputs: Any, share: Any, is_dense: bool = False) -> Any:
        """(inputs, share), if trial calls may be needed to find which rows are looked up.

        They are not where gradients are known to be dense, before there are any.
        """
        self._lookups.see(inputs, share)
        return (inputs, share) if self._lookups.needs_inputs and not is_dense else None


def _only(gradients: Sequence[Any], wanted: Sequence[bool] | None) -> list[Any]:
    """`gradients`, with None for those that are not wanted; None wants all."""
    if wanted is None:
        return list(gradients)
    return [g if keep else None for g, keep in zip(gradients, wanted, strict=True)]
