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

from hyparflow import keras_internals
from hyparflow.graph import FlatGraph
from hyparflow.head import Head, Labels

__all__ = [
    "Body",
    "Saved",
    "Stage",
    "as_share",
    "as_tensors",
    "gradients_of",
    "graph_body",
    "model_body",
]

# (inputs, training, share) -> (flat outputs, losses that the stage's layers added)
Body = Callable[[Any, bool, Any], tuple[list[Any], list[Any]]]


def graph_body(
    graph: FlatGraph,
    inputs: Sequence[int],
    outputs: Sequence[int],
    operations: Sequence[int],
    masked: frozenset[int],
    is_first: bool,
) -> Body:
    """The body of a stage cut out of `graph`: a `keras.Function` over cut tensors.

    The first stage takes the user's inputs as `fit` gives them; a later one the flat list of
    its input tensors, then the masks of those that carry one. The outputs are laid out alike.
    """
    function = graph.function(inputs, outputs, operations)
    masked_inputs = [position for position, n in enumerate(inputs) if n in masked]
    masked_outputs = [position for position, n in enumerate(outputs) if n in masked]

    def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
        graph.mode.training = training
        graph.mode.share = share
        graph.mode.losses = []
        if is_first:
            tensors = keras_internals.standardize_inputs(graph.functional, values)
        else:
            tensors = list(values[: len(inputs)])
            for position, mask in zip(masked_inputs, values[len(inputs) :], strict=True):
                tensors[position] = tf.identity(tensors[position])
                keras_internals.set_mask(tensors[position], mask)
        results = function(tensors)
        masks = [keras_internals.get_mask(results[position]) for position in masked_outputs]
        return results + masks, graph.mode.losses

    return body


def model_body(model: Any) -> Body:
    """The body of a stage that is the whole model: its own call, whatever its class."""

    def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
        outputs = keras_internals.call_model(model, values, training)
        body.structure = keras.tree.map_structure(lambda _: None, outputs)  # type: ignore[attr-defined]
        return keras.tree.flatten(outputs), keras_internals.additional_losses(model, share)

    return body


@dataclass
class Saved:
    """What a stage keeps of a micro-batch from its forward to its backward."""

    tape: Any
    inputs: list[Any]
    outputs: list[Any]
    loss: Any


class Stage:
    """The compiled calls of one stage.

    Args:
        body: the computation.
        trainable: the variables that the stage trains.
        gradient_inputs: positions of the inputs that need a gradient.
        gradient_outputs: positions of the outputs whose gradient comes back.
        head: loss and metrics, on the last stage only.
        eager: whether to run without compiling, as `compile(run_eagerly=True)` asks.
    """

    def __init__(
        self,
        body: Body,
        trainable: Sequence[Any],
        gradient_inputs: Sequence[int] = (),
        gradient_outputs: Sequence[int] = (),
        head: Head | None = None,
        eager: bool = False,
    ) -> None:
        self._body = body
        self._weights = [variable.value for variable in trainable]
        self._gradient_inputs = list(gradient_inputs)
        self._gradient_outputs = list(gradient_outputs)
        self._head = head
        make = (lambda function: function) if eager else _Compiled
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
            tape.watch(sources)
            loss = self._trace_loss(inputs, labels)
        return self._gradients(tape, [loss], sources, None)

    # --- what the engine calls ---

    def forward(self, inputs: Any, share: Any) -> Saved:
        """Forward of a stage that is not the last, of the part `share` of a global batch."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._sources(inputs))
            outputs, loss = self._forward(inputs, share)
        return Saved(tape, self._sources(inputs), outputs, loss)

    def backward(
        self, saved: Saved, output_gradients: Sequence[Any], seed: Any
    ) -> tuple[list[Any], list[Any]]:
        """Backward of a stage that is not the last.

        Args:
            saved: what its forward returned.
            output_gradients: gradients of the outputs in `gradient_outputs`, summed over
                their consumers.
            seed: n / B times the loss scale, for what the stage's layers added to the loss.

        Returns:
            Gradients of the inputs in `gradient_inputs`, and of the trained weights.
        """
        targets = [saved.outputs[position] for position in self._gradient_outputs]
        seeds = list(output_gradients)
        if saved.loss is not None:
            targets.append(saved.loss)
            seeds.append(tf.cast(seed, saved.loss.dtype))
        return self._gradients(saved.tape, targets, saved.inputs, seeds)

    def forward_loss(self, inputs: Any, labels: Labels) -> Saved:
        """Forward of the last stage when its backward does not follow at once."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._sources(inputs))
            loss = self._loss_forward(inputs, labels)
        return Saved(tape, self._sources(inputs), [], loss)

    def backward_loss(self, saved: Saved) -> tuple[list[Any], list[Any]]:
        """Backward of the last stage after `forward_loss`."""
        return self._gradients(saved.tape, [saved.loss], saved.inputs, None)

    def forward_backward(self, inputs: Any, labels: Labels) -> tuple[list[Any], list[Any]]:
        """Forward and backward of the last stage in one compiled call."""
        return self._fused(inputs, labels)

    def infer(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        """Outputs without training, and what the layers add to the loss."""
        return self._infer(inputs, share)

    def infer_loss(self, inputs: Any, labels: Labels) -> None:
        """Update loss and metrics without training."""
        self._loss_infer(inputs, labels)

    def _sources(self, inputs: Any) -> list[Any]:
        flat = keras.tree.flatten(inputs)
        return [flat[position] for position in self._gradient_inputs] + self._weights

    def _gradients(
        self, tape: Any, targets: list[Any], sources: list[Any], seeds: list[Any] | None
    ) -> tuple[list[Any], list[Any]]:
        if not targets or not sources:
            return [], [None] * len(self._weights)
        gradients = tape.gradient(targets, sources, output_gradients=seeds)
        cut = len(self._gradient_inputs)
        of_inputs = [
            tf.zeros_like(source) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, source in zip(gradients[:cut], sources[:cut], strict=True)
        ]
        return of_inputs, list(gradients[cut:])


def _total(losses: list[Any]) -> Any | None:
    """The sum of what the layers added, or None if they added nothing."""
    if not losses:
        return None
    return keras.ops.sum([keras.ops.sum(loss) for loss in losses])


class _Compiled:
    """A `tf.function` that is traced once, for any number of rows."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = tf.function(function, reduce_retracing=True, autograph=False)
        self._traced = False

    def __call__(self, *args: Any) -> Any:
        if not self._traced:
            self._traced = True
            self._function.get_concrete_function(*keras.tree.map_structure(_any_rows, args))
        return self._function(*args)


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
