"""One stage: compiled forward and backward of a micro-batch.

The only file that calls TensorFlow's gradients. A stage in the middle runs its forward under an
eager tape that holds the compiled function's intermediates until the backward asks for them;
the last stage, which needs nothing between the two, runs both as one compiled call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from hyparflow.body import Body
from hyparflow.head import Head, Labels
from hyparflow.lookups import common_lookups

__all__ = [
    "Saved",
    "Stage",
    "as_share",
    "as_tensors",
    "gradients_of",
]


@dataclass
class Saved:
    """What a stage keeps of a micro-batch from its forward to its backward."""

    tape: Any
    inputs: list[Any]
    outputs: list[Any]
    loss: Any
    arguments: Any = None  # of the forward


class Stage:
    """The compiled calls of one stage.

    Args:
        body: the computation.
        trainable: the variables that the stage trains.
        gradient_inputs: positions of the inputs that need a gradient.
        gradient_outputs: positions of the outputs whose gradient comes back.
        head: loss and metrics, on the last stage only.
        eager: whether to run without compiling, as `compile(run_eagerly=True)` asks.
        jit_compile: whether XLA compiles, as `compile(jit_compile=True)` asks.
    """

    def __init__(
        self,
        body: Body,
        trainable: Sequence[Any],
        gradient_inputs: Sequence[int] = (),
        gradient_outputs: Sequence[int] = (),
        head: Head | None = None,
        eager: bool = False,
        jit_compile: bool = False,
    ) -> None:
        self._body = body
        self._weights = [variable.value for variable in trainable]
        self._gradient_inputs = list(gradient_inputs)
        self._gradient_outputs = list(gradient_outputs)
        self._head = head
        self._types: Any = None
        self._common: frozenset[int] | None = None
        self._known: dict[tuple[int, ...], tuple[list[bool], list[bool]]] = {}

        def make(function: Callable[..., Any]) -> Callable[..., Any]:
            return function if eager else _Compiled(function, jit_compile)

        self._forward = make(self._trace_forward)
        self._infer = make(self._trace_infer)
        self._fused = make(self._trace_fused)
        self._loss_forward = make(self._trace_loss)
        self._loss_infer = make(self._trace_loss_infer)

    # --- what is compiled ---

    def _trace_forward(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        outputs, losses = self._body(inputs, True, share)
        return outputs, _total(losses)

    def _trace_infer(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        outputs, losses = self._body(inputs, False, share)
        return outputs, _total(losses)

    def _trace_loss(self, inputs: Any, labels: Labels, training: bool = True) -> Any:
        """The micro-batch's loss, times its seed; metrics are updated."""
        outputs, losses = self._body(inputs, training, labels.share)
        loss = self._head.loss(  # type: ignore[union-attr]
            inputs, outputs, _total(losses), labels, training
        )
        return loss * tf.cast(labels.seed, loss.dtype)

    def _trace_loss_infer(self, inputs: Any, labels: Labels) -> Any:
        return self._trace_loss(inputs, labels, training=False)

    def _trace_fused(self, inputs: Any, labels: Labels) -> tuple[list[Any], list[Any]]:
        sources = self._sources(inputs)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(_differentiable(sources))
            loss = self._trace_loss(inputs, labels)
        return self._gradients(tape, [loss], sources, None)

    # --- what the engine calls ---

    def forward(self, inputs: Any, share: Any) -> Saved:
        """Forward of a stage that is not the last, of the part `share` of a global batch."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(_differentiable(self._sources(inputs)))
            outputs, loss = self._forward(inputs, share)
        self._note_types(inputs, share)
        return Saved(tape, self._sources(inputs), outputs, loss, (inputs, share))

    def backward(
        self, saved: Saved, output_gradients: Sequence[Any], seed: Any
    ) -> tuple[list[Any], list[Any]]:
        """Backward of a stage that is not the last.

        Args:
            saved: what its forward returned.
            output_gradients: gradients of the outputs in `gradient_outputs`, summed over
                their consumers; None where no consumer depends on one.
            seed: n / B times the loss scale, for what the stage's layers added to the loss.

        Returns:
            Gradients of the inputs in `gradient_inputs`, and of the trained weights; None where
            nothing depends on one, as in plain Keras, whose optimizers leave such weights alone.
        """
        given = dict(zip(self._gradient_outputs, output_gradients, strict=True))
        reached = tuple(position for position, gradient in given.items() if gradient is not None)
        targets = [saved.outputs[position] for position in reached]
        seeds = [given[position] for position in reached]
        if saved.loss is not None:
            targets.append(saved.loss)
            seeds.append(tf.cast(seed, saved.loss.dtype))
        of_inputs, of_weights = self._gradients(saved.tape, targets, saved.inputs, seeds)
        if len(reached) == len(given):
            return of_inputs, of_weights
        inputs_depend, weights_depend = self._dependent(reached, saved.arguments)
        return _only(of_inputs, inputs_depend), _only(of_weights, weights_depend)

    def _dependent(
        self, positions: tuple[int, ...], arguments: Any
    ) -> tuple[list[bool], list[bool]]:
        """On which inputs and weights the outputs at `positions`, or added losses, depend.

        The gradient of a compiled call is zero where only its other outputs depend on a weight.
        """
        if positions not in self._known:

            def trace(inputs: Any, share: Any) -> None:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    sources = self._sources(inputs)
                    tape.watch(_differentiable(sources))
                    outputs, loss = self._trace_forward(inputs, share)
                targets = [outputs[p] for p in positions] + ([] if loss is None else [loss])
                of_inputs, of_weights = self._gradients(tape, targets, sources, None)
                self._known[positions] = (
                    [gradient is not None for gradient in of_inputs],
                    [gradient is not None for gradient in of_weights],
                )

            types = keras.tree.map_structure(_any_rows, arguments)
            tf.function(trace, autograph=False).get_concrete_function(*types)
        return self._known[positions]

    def forward_loss(self, inputs: Any, labels: Labels) -> Saved:
        """Forward of the last stage when its backward does not follow at once."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(_differentiable(self._sources(inputs)))
            loss = self._loss_forward(inputs, labels)
        self._note_types(inputs, labels.share)
        return Saved(tape, self._sources(inputs), [], loss)

    def backward_loss(self, saved: Saved) -> tuple[list[Any], list[Any]]:
        """Backward of the last stage after `forward_loss`."""
        return self._gradients(saved.tape, [saved.loss], saved.inputs, None)

    def forward_backward(self, inputs: Any, labels: Labels) -> tuple[list[Any], list[Any]]:
        """Forward and backward of the last stage in one compiled call."""
        self._note_types(inputs, labels.share)
        return self._fused(inputs, labels)

    def infer(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        """Outputs without training, and what the layers add to the loss."""
        return self._infer(inputs, share)

    def infer_loss(self, inputs: Any, labels: Labels) -> None:
        """Update loss and metrics without training."""
        self._loss_infer(inputs, labels)

    def common_lookups(self) -> frozenset[int]:
        """Positions of the weights of which all samples look up the same rows."""
        if self._common is None:
            self._common = common_lookups(self._trace_gradients, self._types)
        return self._common

    def _trace_gradients(self, inputs: Any, share: Any) -> list[Any]:
        """The gradients of the weights, whatever the gradients of the outputs may be."""

        def targets() -> list[Any]:
            outputs, losses = self._body(inputs, True, share)
            return [x for x in [*outputs, *losses] if x is not None and x.dtype.is_floating]

        return gradients_of(targets, self._weights)

    def _note_types(self, inputs: Any, share: Any) -> None:
        if self._types is None:
            self._types = keras.tree.map_structure(_type_of, (inputs, share))

    def _sources(self, inputs: Any) -> list[Any]:
        flat = keras.tree.flatten(inputs)
        return [flat[position] for position in self._gradient_inputs] + self._weights

    def _gradients(
        self, tape: Any, targets: list[Any], sources: list[Any], seeds: list[Any] | None
    ) -> tuple[list[Any], list[Any]]:
        cut = len(self._gradient_inputs)
        if not targets or not sources:
            return [None] * cut, [None] * len(self._weights)
        gradients = tape.gradient(targets, sources, output_gradients=seeds)
        of_inputs = [None if g is None else tf.convert_to_tensor(g) for g in gradients[:cut]]
        return of_inputs, list(gradients[cut:])


def _only(gradients: list[Any], wanted: list[bool]) -> list[Any]:
    """`gradients`, with None for those that are not wanted."""
    return [g if keep else None for g, keep in zip(gradients, wanted, strict=True)]


def _differentiable(sources: list[Any]) -> list[Any]:
    """Those of floating point: what Keras takes for a float may be an integer when it runs."""
    return [x for x in sources if not isinstance(x, tf.Tensor) or x.dtype.is_floating]


def _total(losses: list[Any]) -> Any | None:
    """The sum of what the layers added, or None if they added nothing."""
    if not losses:
        return None
    return keras.ops.sum([keras.ops.sum(loss) for loss in losses])


class _Compiled:
    """A `tf.function` that is traced once, for any number of rows."""

    def __init__(self, function: Callable[..., Any], jit_compile: bool) -> None:
        self._function = tf.function(
            function, reduce_retracing=True, autograph=False, jit_compile=jit_compile or None
        )
        self._traced = False

    def __call__(self, *args: Any) -> Any:
        if not self._traced:
            self._traced = True
            self._function.get_concrete_function(*keras.tree.map_structure(_any_rows, args))
        return self._function(*args)


def _type_of(value: Any) -> Any:
    """The type of a tensor."""
    return tf.TensorSpec(value.shape, value.dtype) if isinstance(value, tf.Tensor) else value


def _any_rows(value: Any) -> Any:
    """The type of `value` with any number of rows."""
    if not isinstance(value, tf.Tensor):
        return value
    shape = value.shape.as_list()
    return tf.TensorSpec([None, *shape[1:]] if shape else [], value.dtype)


def gradients_of(function: Callable[[], list[Any]], sources: list[Any]) -> list[Any]:
    """The gradients of the sum of what `function` returns; to be traced."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        targets = function()
    return list(tape.gradient(targets, sources)) if sources else []


def as_share(share: float) -> Any:
    """The part of the global batch in a micro-batch, n / B, as a tensor."""
    return tf.constant(share, tf.float64)


def as_tensors(structure: Any) -> Any:
    """Arrays as TensorFlow tensors; None and tensors stay as they are."""
    return keras.tree.map_structure(
        lambda x: x if x is None or isinstance(x, tf.Tensor) else tf.convert_to_tensor(x), structure
    )
