"""Walks one rank's list of steps through a table of short handlers.

The engine knows nothing of schedules: what it executes is the list that the simulator proved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyparflow import guard
from hyparflow.actions import Edge, Kind, Step
from hyparflow.data import Batch
from hyparflow.gradients import GradientSum
from hyparflow.head import Labels
from hyparflow.lowering import tag
from hyparflow.partition import Partitioning
from hyparflow.stage import Saved, Stage, as_share, as_tensors
from hyparflow.transport import Transport

__all__ = ["Engine", "Program", "no_labels"]


def no_labels(microbatch: int) -> Labels:
    """Stands in for the labels on ranks that have none."""
    raise RuntimeError(f"This rank has no labels. Received: micro-batch {microbatch}")


class Program:
    """A lowered list with what can be known before it runs.

    Args:
        steps: this rank's steps.
        num_microbatches: M, which makes tags unique.
    """

    def __init__(self, steps: Sequence[Step], num_microbatches: int) -> None:
        self.steps = list(steps)
        self.names = [str(step) for step in steps]
        self.tags = [tag(step, num_microbatches) if step.edge >= 0 else -1 for step in steps]
        # Receives are posted one computation ahead: while a micro-batch is computed, the next
        # one's tensors find their buffers waiting.
        self.post: list[list[int]] = [[] for _ in steps]
        computation = 0
        for index, step in enumerate(steps):
            if step.kind == Kind.RECEIVE_ACTIVATION:
                self.post[computation].append(index)
            elif step.edge < 0:
                computation = index


class Engine:
    """Executes programs on one rank.

    Args:
        stage: this rank's stage.
        number: its number.
        partitioning: the table of stages and edges.
        transport: moves tensors.
        masked: output tensors whose masks follow the outputs.
        place: what to call this rank in a report.
        note: called with each step's name before it runs.
    """

    def __init__(
        self,
        stage: Stage,
        number: int,
        partitioning: Partitioning,
        transport: Transport,
        masked: tuple[int, ...],
        place: str,
        note: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._inputs = partitioning.stage_inputs[number]
        self._outputs = partitioning.stage_outputs[number]
        self._edges: tuple[Edge, ...] = partitioning.edges
        self._is_first = number == 0
        self._is_last = number == partitioning.num_stages - 1
        self._transport = transport
        self._masked = masked
        self._place = place
        self._note = note
        self._gradient_inputs = [
            edge.tensor for edge in self._edges if edge.consumer == number and edge.carries_gradient
        ]
        self._gradient_outputs = list(
            dict.fromkeys(
                edge.tensor
                for edge in self._edges
                if edge.producer == number and edge.carries_gradient
            )
        )
        self._handlers: dict[str, Callable[[Step, int], None]] = {
            Kind.FORWARD: self._do_forward,
            Kind.BACKWARD: self._do_backward,
            Kind.FUSED: self._do_fused,
            Kind.SEND_ACTIVATION: self._do_send_activation,
            Kind.RECEIVE_ACTIVATION: self._do_receive_activation,
            Kind.SEND_GRADIENT: self._do_send_gradient,
            Kind.RECEIVE_GRADIENT: self._do_receive_gradient,
            Kind.REDUCE: self._do_reduce,
            Kind.APPLY: self._do_apply,
        }
        self._begin(Batch(0, []), no_labels)

    def _begin(self, batch: Batch, labels: Callable[[int], Labels]) -> None:
        self._batch = batch
        self._labels = labels
        self._received: dict[tuple[int, int], list[Any]] = {}  # (tensor, micro-batch) -> parts
        self._saved: dict[int, Saved] = {}
        self._gradients: dict[tuple[int, int], Any] = {}  # (tensor, micro-batch) -> gradient
        self._sum = GradientSum(self._stage.common_lookups)
        self.added = 0.0  # what this stage's layers added to the loss, times rows
        self.outputs: list[list[Any]] = []

    # --- the loop ---

    def train(
        self,
        program: Program,
        batch: Batch,
        labels: Callable[[int], Labels],
        loss_scale: float,
        reduce: Callable[[GradientSum], None],
        apply: Callable[[], None],
    ) -> None:
        """Run one training step: `reduce` sums the gradients over ranks, `apply` updates."""
        self._begin(batch, labels)
        self._loss_scale = loss_scale
        self._forward_call = self._train_forward
        self._reduce, self._apply = reduce, apply
        self._run(program)

    def test(self, program: Program, batch: Batch, labels: Callable[[int], Labels]) -> None:
        """Run one evaluation step: loss and metrics are updated on the last stage."""
        self._begin(batch, labels)
        self._forward_call = self._test_forward
        self._run(program)

    def predict(self, program: Program, batch: Batch) -> list[list[Any]]:
        """Run one prediction step; on the last stage, the flat outputs of each micro-batch."""
        self._begin(batch, no_labels)
        self._forward_call = self._predict_forward
        self._run(program)
        return self.outputs

    def _run(self, program: Program) -> None:
        for index, step in enumerate(program.steps):
            self._note(program.names[index])
            try:
                for later in program.post[index]:
                    self._post(program.steps[later], program.tags[later])
                self._handlers[step.kind](step, program.tags[index])
            except BaseException as error:
                guard.locate(error, f"{self._place}, action {program.names[index]}")
                raise
        self._note("idle")
        self._transport.flush("its last messages to be taken")

    def _post(self, step: Step, tag: int) -> None:
        self._transport.post_activation(step.edge, self._batch.size(step.microbatch), tag)

    # --- computations ---

    def _stage_inputs(self, m: int) -> Any:
        if self._is_first:
            return as_tensors(self._batch.inputs(m))
        parts = [self._received.pop((tensor, m)) for tensor in self._inputs]
        return [part[0] for part in parts] + [part[1] for part in parts if len(part) > 1]

    def _share(self, m: int) -> Any:
        return as_share(self._batch.share(m))

    def _do_forward(self, step: Step, tag: int) -> None:
        self._forward_call(step.microbatch)

    def _train_forward(self, m: int) -> None:
        if self._is_last:
            self._saved[m] = self._stage.forward_loss(self._stage_inputs(m), self._labels(m))
            return
        self._saved[m] = self._stage.forward(self._stage_inputs(m), self._share(m))
        self._add_loss(m, self._saved[m].loss)

    def _test_forward(self, m: int) -> None:
        if self._is_last:
            self._stage.infer_loss(self._stage_inputs(m), self._labels(m))
            return
        outputs, loss = self._stage.infer(self._stage_inputs(m), self._share(m))
        self._saved[m] = Saved(None, [], outputs, None)
        self._add_loss(m, loss)

    def _predict_forward(self, m: int) -> None:
        outputs, _ = self._stage.infer(self._stage_inputs(m), self._share(m))
        if self._is_last:
            self.outputs.append(outputs)
        else:
            self._saved[m] = Saved(None, [], outputs, None)

    def _add_loss(self, m: int, loss: Any) -> None:
        if loss is not None:
            self.added += float(loss) * self._batch.weight(m)

    def _do_fused(self, step: Step, tag: int) -> None:
        m = step.microbatch
        gradients = self._stage.forward_backward(self._stage_inputs(m), self._labels(m))
        self._take_gradients(m, *gradients)

    def _do_backward(self, step: Step, tag: int) -> None:
        m = step.microbatch
        saved = self._saved.pop(m)
        if self._is_last:
            gradients = self._stage.backward_loss(saved)
        else:
            seeds = as_tensors([self._gradients.pop((t, m)) for t in self._gradient_outputs])
            seed = as_share(self._batch.share(m) * self._loss_scale)
            gradients = self._stage.backward(saved, seeds, seed)
        self._take_gradients(m, *gradients)

    def _take_gradients(self, m: int, of_inputs: list[Any], of_weights: list[Any]) -> None:
        for tensor, gradient in zip(self._gradient_inputs, of_inputs, strict=True):
            self._gradients[tensor, m] = gradient
        self._sum.add(of_weights)

    # --- messages ---

    def _do_send_activation(self, step: Step, tag: int) -> None:
        tensor = self._edges[step.edge].tensor
        outputs = self._saved[step.microbatch].outputs
        parts = [outputs[self._outputs.index(tensor)]]
        if self._transport.carries_mask(step.edge):
            parts.append(outputs[len(self._outputs) + self._masked.index(tensor)])
        rows = self._batch.size(step.microbatch)
        self._transport.send_activation(step.edge, rows, tag, parts)

    def _do_receive_activation(self, step: Step, tag: int) -> None:
        tensor = self._edges[step.edge].tensor
        rows = self._batch.size(step.microbatch)
        what = f"tensor {tensor} of micro-batch {step.microbatch} from partition {step.peer}"
        parts = self._transport.receive_activation(step.edge, rows, tag, what)
        self._received[tensor, step.microbatch] = as_tensors(parts)

    def _do_send_gradient(self, step: Step, tag: int) -> None:
        tensor = self._edges[step.edge].tensor
        gradient = self._gradients.pop((tensor, step.microbatch))
        self._transport.send_gradient(step.edge, tag, gradient)
        self._transport.trim()

    def _do_receive_gradient(self, step: Step, tag: int) -> None:
        tensor, m = self._edges[step.edge].tensor, step.microbatch
        shape = tuple(self._saved[m].outputs[self._outputs.index(tensor)].shape)
        what = f"the gradient of tensor {tensor} of micro-batch {m} from partition {step.peer}"
        gradient = self._transport.receive_gradient(step.edge, tag, shape, what)
        other = self._gradients.get((tensor, m))
        if gradient is not None and other is not None:
            gradient = np.add(other, gradient)
        self._gradients[tensor, m] = other if gradient is None else gradient

    # --- the end of a step ---

    def _do_reduce(self, step: Step, tag: int) -> None:
        self._reduce(self._sum)

    def _do_apply(self, step: Step, tag: int) -> None:
        self._apply()
