"""Forward, backward and loss of a stage, as functions to be traced or run.

Gradients are those of `hyparflow.engine.stages.recorded`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.compiled.gradients_of import gradients_of
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.loss.head import Labels, LossHead
from hyparflow.engine.stages.recorded import Recorded, rewritten
from hyparflow.engine.stages.stage_call import StageCall

__all__ = ["StageFunctions"]


class StageFunctions:
    """The computations of one stage.

    A forward calls the function that it is given (`outputs`, `training_loss`, or one of them
    compiled) under a gradient tape; it returns its outputs and a state. A backward takes that
    state, and returns the gradients of the inputs and of the weights, None where nothing depends
    on one. `share` is n / B, the micro-batch's rows over those of the global batch.

    Args:
        body: the computation.
        weights: the variables (TensorFlow's) that the stage trains.
        gradient_inputs: positions of the inputs that need a gradient.
        gradient_outputs: positions of the outputs whose gradient comes back.
        head: loss and metrics, on the last stage only.
        rewriter: puts in faster kernels; None leaves all as it is.

    Attributes:
        rewritten: how often which kernel was put in.
    """

    def __init__(
        self,
        body: StageCall,
        weights: Sequence[Any],
        gradient_inputs: Sequence[int],
        gradient_outputs: Sequence[int],
        head: LossHead | None,
        rewriter: Rewriter | None = None,
    ) -> None:
        self._body = body
        self._rewriter = rewriter
        self.rewritten = Counter[str]()
        self.weights = list(weights)
        self._gradient_inputs = list(gradient_inputs)
        self.gradient_outputs = list(gradient_outputs)
        self._head = head

    def outputs(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        """Outputs and what the layers added to the loss, of a stage that is not the last."""
        outputs, losses = self._body(inputs, True, share)
        return outputs, _total(losses)

    def forward(
        self, compute: Callable[..., tuple[list[Any], Any]], inputs: Any, share: Any
    ) -> tuple[Any, Any]:
        """What `compute(inputs, share)`, like `outputs`, returns; and a state for the backward."""

        def made() -> list[Any]:
            outputs, loss = compute(inputs, share)
            return [*outputs, loss]

        recorded = self._recorded(made, inputs)
        *outputs, loss = recorded.results
        return (outputs, loss), (recorded, outputs, loss)

    def backward(self, state: Any, gradients: Sequence[Any], seed: Any) -> Any:
        """The backward of `forward`, from the gradients of the outputs.

        Args:
            state: from `forward`.
            gradients: of the outputs in `gradient_outputs`, or None.
            seed: the gradient of the total loss by what the layers added to it: n / B times the
                loss scale.
        """
        recorded, outputs, loss = state
        given = zip(self.gradient_outputs, gradients, strict=True)
        pairs = [(outputs[p], gradient) for p, gradient in given if gradient is not None]
        if loss is not None:
            pairs.append((loss, tf.cast(seed, loss.dtype)))
        targets, seeds = [t for t, _ in pairs], [s for _, s in pairs]
        return self._gradients(recorded, targets, seeds)

    def gradients_like(self, outputs: Any) -> Any:
        """Types of the arguments `gradients` and `seed` of `backward`.

        Args:
            outputs: what `forward` returned first: (outputs, added losses).
        """
        values, _ = outputs
        types = [tf.TensorSpec(values[p].shape, values[p].dtype) for p in self.gradient_outputs]
        return types, tf.TensorSpec((), tf.float64)

    def infer(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        """Outputs without training, and what the layers add to the loss."""

        def made() -> list[Any]:
            outputs, losses = self._body(inputs, False, share)
            return [*outputs, _total(losses)]

        *outputs, loss = self._inferred(made)
        return outputs, loss

    def loss(self, inputs: Any, labels: Labels, training: bool) -> Any:
        """The micro-batch's loss times `labels.seed`, which has the loss scale; updates metrics."""
        outputs, losses = self._body(inputs, training, labels.share)
        loss = self._head.loss(outputs, _total(losses), labels)  # type: ignore[union-attr]
        return loss * tf.cast(labels.seed, loss.dtype)

    def infer_loss(self, inputs: Any, labels: Labels) -> Any:
        """The loss without training."""
        return self._inferred(lambda: [self.loss(inputs, labels, training=False)])[0]

    def training_loss(self, inputs: Any, labels: Labels) -> Any:
        """The loss with training."""
        return self.loss(inputs, labels, training=True)

    def forward_loss(
        self, compute: Callable[..., Any], inputs: Any, labels: Labels
    ) -> tuple[Any, Any]:
        """The forward of the last stage: no outputs, and a state for the backward."""
        return (), self._recorded(lambda: [compute(inputs, labels)], inputs)

    def backward_loss(self, state: Any) -> Any:
        """The backward of `forward_loss`."""
        return self._gradients(state, state.results, None)

    def fused(self, inputs: Any, labels: Labels) -> Any:
        """Forward and backward of the last stage."""
        _, state = self.forward_loss(self.training_loss, inputs, labels)
        return self.backward_loss(state)

    def weight_gradients(self, inputs: Any, share: Any) -> list[Any]:
        """The gradients of the weights, whatever the gradients of the outputs may be."""

        def targets() -> list[Any]:
            outputs, losses = self._body(inputs, True, share)
            return [x for x in [*outputs, *losses] if x is not None and x.dtype.is_floating]

        return gradients_of(targets, self.weights)

    def _inferred(self, compute: Callable[[], list[Any]]) -> list[Any]:
        results, counts = rewritten(compute, self._rewriter, training=False)
        self.rewritten |= counts
        return results

    def _recorded(self, compute: Callable[[], list[Any]], inputs: Any) -> Recorded:
        recorded = Recorded(compute, self._sources(inputs), self._rewriter)
        self.rewritten |= recorded.rewritten  # each trace of the stage has them
        return recorded

    def _sources(self, inputs: Any) -> list[Any]:
        flat = keras.tree.flatten(inputs)
        return [flat[position] for position in self._gradient_inputs] + self.weights

    def _gradients(
        self, recorded: Recorded, targets: list[Any], seeds: list[Any] | None
    ) -> tuple[list[Any], list[Any]]:
        cut = len(self._gradient_inputs)
        if not targets or not (cut or self.weights):
            return [None] * cut, [None] * len(self.weights)
        gradients = recorded.gradients(targets, seeds)
        of_inputs = [None if g is None else tf.convert_to_tensor(g) for g in gradients[:cut]]
        return of_inputs, list(gradients[cut:])


def _total(losses: list[Any]) -> Any | None:
    """The sum of what the layers added, or None if they added nothing."""
    if not losses:
        return None
    sums = [keras.ops.sum(loss) for loss in losses]
    # Layers may add losses in half precision, to which that of the model is added.
    half = (tf.float16, tf.bfloat16)
    full = keras.config.floatx()
    return keras.ops.sum([keras.ops.cast(x, full) if x.dtype in half else x for x in sums])
