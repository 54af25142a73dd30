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
from hyparflow.masks import masked_outputs
from hyparflow.partition import Partitioning

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
    graph: FlatGraph, table: Partitioning, stage: int, masked: frozenset[tuple[int, int]]
) -> Body:
    """The body of a stage cut out of `graph`: a `keras.Function` over cut tensors.

    The first stage takes the user's inputs as `fit` gives them; a later one the flat list of
    its input tensors, then the masks of those that come with one. The outputs are followed by the
    masks of those that a later stage takes with one.

    Args:
        graph: the model's flat graph.
        table: how it is cut.
        stage: the stage's number.
        masked: from `hyparflow.masks.masked_inputs`.
    """
    inputs, outputs = table.stage_inputs[stage], table.stage_outputs[stage]
    function = graph.function(inputs, outputs, table.operations(stage))
    with_mask = [position for position, n in enumerate(inputs) if (n, stage) in masked]
    sent_masks = [outputs.index(n) for n in masked_outputs(table, masked, stage)]

    def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
        graph.mode.training = training
        graph.mode.share = share
        graph.mode.losses = []
        if stage == 0:
            tensors = keras_internals.standardize_inputs(graph.functional, values)
        else:
            tensors = list(values[: len(inputs)])
            for position, mask in zip(with_mask, values[len(inputs) :], strict=True):
                tensors[position] = tf.identity(tensors[position])
                keras_internals.set_mask(tensors[position], mask)
        results = function(tensors)
        masks = [keras_internals.get_mask(results[position]) for position in sent_masks]
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
        self._known: dict[tuple[int, ...], tuple[list[bool], list[bool]]] = {}
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
            tape.watch(_differentiable(sources))
            loss = self._trace_loss(inputs, labels)
        return self._gradients(tape, [loss], sources, None)

    # --- what the engine calls ---

    def forward(self, inputs: Any, share: Any) -> Saved:
        """Forward of a stage that is not the last, of the part `share` of a global batch."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(_differentiable(self._sources(inputs)))
            outputs, loss = self._forward(inputs, share)
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
        pairs = zip(self._gradient_outputs, output_gradients, strict=True)
        reached = [(position, seed) for position, seed in pairs if seed is not None]
        targets = [saved.outputs[position] for position, _ in reached]
        seeds = [seed for _, seed in reached]
        if saved.loss is not None:
            targets.append(saved.loss)
            seeds.append(tf.cast(seed, saved.loss.dtype))
        of_inputs, of_weights = self._gradients(saved.tape, targets, saved.inputs, seeds)
        if len(reached) < len(self._gradient_outputs):
            known = self._dependent(tuple(position for position, _ in reached), saved.arguments)
            of_inputs, of_weights = (
                [g if depends else None for g, depends in zip(part, flags, strict=True)]
                for part, flags in zip((of_inputs, of_weights), known, strict=True)
            )
        return of_inputs, of_weights

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
                found = self._gradients(tape, targets, sources, None)
                self._known[positions] = tuple([g is not None for g in part] for part in found)  # type: ignore[assignment]

            types = keras.tree.map_structure(_any_rows, arguments)
            tf.function(trace, autograph=False).get_concrete_function(*types)
        return self._known[positions]

    def forward_loss(self, inputs: Any, labels: Labels) -> Saved:
        """Forward of the last stage when its backward does not follow at once."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(_differentiable(self._sources(inputs)))
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
        cut = len(self._gradient_inputs)
        if not targets or not sources:
            return [None] * cut, [None] * len(self._weights)
        gradients = tape.gradient(targets, sources, output_gradients=seeds)
        of_inputs = [None if g is None else tf.convert_to_tensor(g) for g in gradients[:cut]]
        return of_inputs, list(gradients[cut:])


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
