"""Executes one rank's list of steps, each by a short handler from a table.

The engine knows nothing of schedules: it executes the list that the simulator has checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.recorder import Recorder
from hyparflow.engine.batch import Batch
from hyparflow.engine.compiled.tensors import as_share, as_tensors
from hyparflow.engine.first_runs import FirstRuns
from hyparflow.engine.gradients.microbatch_sum import GradientSum, joined
from hyparflow.engine.gradients.reducer import Reducer
from hyparflow.engine.loss.head import Labels, no_labels
from hyparflow.engine.stages.local_stage import LocalStage
from hyparflow.engine.stages.saved import Saved
from hyparflow.engine.transport import Transport
from hyparflow.pipeline.actions import Edge, Kind, Step
from hyparflow.pipeline.program import Program

__all__ = ["Engine"]


class Engine:
    """Executes programs on one rank.

    Args:
        held: the stages that this rank holds.
        edges: the tensors that cross from stage to stage.
        transport: sends and receives these tensors.
        num_weights: how many weights this rank trains.
        place: the rank's name in reports.
        note: called with each step's name before it runs.
        recorder: records the time of each step.
    """

    def __init__(
        self,
        held: Sequence[LocalStage],
        edges: Sequence[Edge],
        transport: Transport,
        num_weights: int,
        place: str,
        note: Callable[[str], None],
        recorder: Recorder,
    ) -> None:
        self._held = {one.number: one for one in held}
        self._edges = edges
        self._transport = transport
        self._num_weights = num_weights
        self._place, self._note, self._recorder = place, note, recorder
        # Edges between two stages of this rank, by the stage that makes the tensor.
        self._local: dict[int, list[int]] = {number: [] for number in self._held}
        for index, edge in enumerate(edges):
            if edge.producer in self._held and edge.consumer in self._held:
                self._local[edge.producer].append(index)
        self._handlers: dict[str, Callable[[Step, int], None]] = {
            Kind.FORWARD: self._do_forward,
            Kind.BACKWARD: self._do_backward,
            Kind.INPUT_BACKWARD: self._do_input_backward,
            Kind.WEIGHT_BACKWARD: self._do_weight_backward,
            Kind.FUSED: self._do_fused,
            Kind.SEND_ACTIVATION: self._do_send_activation,
            Kind.RECEIVE_ACTIVATION: self._do_receive_activation,
            Kind.SEND_GRADIENT: self._do_send_gradient,
            Kind.RECEIVE_GRADIENT: self._do_receive_gradient,
            Kind.START_REDUCE: self._do_start_reduce,
            Kind.REDUCE: self._do_reduce,
            Kind.APPLY: self._do_apply,
        }
        self._first_runs = FirstRuns(list(self._held))
        self._forward_call: Callable[[LocalStage, int], Saved | None] = self._predict_forward
        self._begin(Batch(0, []), no_labels)

    def _begin(self, batch: Batch, labels: Callable[[int], Labels]) -> None:
        self._batch = batch
        self._labels = labels
        # By (stage, tensor, micro-batch): inputs received; gradients of inputs, and of outputs.
        self._received: dict[tuple[int, int, int], list[Any]] = {}
        self._of_inputs: dict[tuple[int, int, int], Any] = {}
        self._of_outputs: dict[tuple[int, int, int], Any] = {}
        self._saved: dict[tuple[int, int], Saved] = {}  # (stage, micro-batch)
        self._sums: dict[int, GradientSum] = {}  # by stage, once its backwards are done
        self._reduced: list[Any] = []
        self._advance: Callable[[], object] = lambda: None  # lets sums over ranks go on
        self.added = 0.0  # losses that this rank's layers added, times rows
        self.outputs: list[list[Any]] = []

    # --- the loop ---

    def train(
        self,
        program: Program,
        batch: Batch,
        labels: Callable[[int], Labels],
        loss_scale: float,
        reducer: Reducer,
        apply: Callable[[list[Any]], None],
    ) -> None:
        """Run one training step: `reducer` sums gradients over ranks, `apply` updates weights."""
        self._begin(batch, labels)
        self._loss_scale = loss_scale
        self._forward_call = self._train_forward
        self._reducer, self._apply = reducer, apply
        self._advance = reducer.advance
        for held in self._held.values():
            held.stage.begin(several=program.num_microbatches > 1)
        if not self._first_runs.are_prepared and batch.microbatches:
            self._prepare(program)
        self._run(program)

    def _prepare(self, program: Program) -> None:
        """Compile a stage before its inputs come, while other ranks compile the stages before."""
        self._first_runs.are_prepared = True
        for held in self._held.values():
            if held.types is not None:
                self._note(self._first_runs.ahead(held.number))
                rest = self._labels(0) if held.is_last else self._share(0)
                kinds = {step.kind for step in program.steps if step.stage == held.number}
                held.stage.prepare(list(held.types), rest, kinds)

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
            self._note(self._first_runs.named(program.names[index], step, self._forward_call))
            start, moved = time.monotonic(), self._transport.moved
            try:
                for later in program.post[index]:
                    ahead = program.steps[later]
                    rows = self._batch.size(ahead.microbatch)
                    self._transport.post_activation(ahead.edge, rows, program.tags[later])
                self._handlers[step.kind](step, program.tags[index])
                self._advance()
            except BaseException as error:
                abort.locate(error, f"{self._place}, action {program.names[index]}")
                raise
            moved = self._transport.moved - moved
            self._recorder.note_step(
                step.kind, step.stage, step.microbatch, step.peer, start, moved
            )
        self._note("the end of a step")
        self._transport.flush("its last messages to be taken")

    # --- computations ---

    def _inputs(self, held: LocalStage, m: int) -> Any:
        if held.is_first:
            return as_tensors(self._batch.inputs(m))
        parts = [self._received.pop((held.number, tensor, m)) for tensor in held.inputs]
        return [part[0] for part in parts] + [part[1] for part in parts if len(part) > 1]

    def _share(self, m: int) -> Any:
        return as_share(self._batch.share(m))

    def _do_forward(self, step: Step, tag: int) -> None:
        held, m = self._held[step.stage], step.microbatch
        saved = self._forward_call(held, m)
        if saved is None:
            return
        self._saved[held.number, m] = saved
        for index in self._local[held.number]:
            edge = self._edges[index]
            parts = held.parts(saved.outputs, edge.tensor, self._transport.carries_mask(index))
            self._received[edge.consumer, edge.tensor, m] = parts

    def _train_forward(self, held: LocalStage, m: int) -> Saved:
        if held.is_last:
            saved = held.stage.forward_loss(self._inputs(held, m), self._labels(m))
        else:
            saved = held.stage.forward(self._inputs(held, m), self._share(m))
        self._add_loss(m, saved.loss)
        return saved

    def _test_forward(self, held: LocalStage, m: int) -> Saved | None:
        if held.is_last:
            self._add_loss(m, held.stage.infer_loss(self._inputs(held, m), self._labels(m)))
            return None
        outputs, loss = held.stage.infer(self._inputs(held, m), self._share(m))
        self._add_loss(m, loss)
        return Saved(outputs)

    def _predict_forward(self, held: LocalStage, m: int) -> Saved | None:
        outputs, _ = held.stage.infer(self._inputs(held, m), self._share(m))
        if held.is_last:
            self.outputs.append(outputs)
            return None
        return Saved(outputs)

    def _add_loss(self, m: int, loss: Any) -> None:
        if loss is not None:
            self.added += float(loss) * self._batch.weight(m)

    def _do_fused(self, step: Step, tag: int) -> None:
        held, m = self._held[step.stage], step.microbatch
        gradients, loss = held.stage.forward_backward(self._inputs(held, m), self._labels(m))
        self._add_loss(m, loss)
        self._take_gradients(held, m, gradients)

    def _do_backward(self, step: Step, tag: int) -> None:
        held, m = self._held[step.stage], step.microbatch
        saved = self._saved.pop((held.number, m))
        self._take_gradients(held, m, held.stage.backward(saved, *self._seeds(held, m)))

    def _do_input_backward(self, step: Step, tag: int) -> None:
        held, m = self._held[step.stage], step.microbatch
        saved = self._saved[held.number, m]
        self._take_gradients(held, m, held.stage.input_backward(saved, *self._seeds(held, m)))

    def _do_weight_backward(self, step: Step, tag: int) -> None:
        stage = self._held[step.stage].stage
        stage.weight_backward(self._saved.pop((step.stage, step.microbatch)))

    def _seeds(self, held: LocalStage, m: int) -> tuple[Any, ...]:
        """The gradients of a stage's outputs, and of what its layers added to the loss."""
        if held.is_last:
            return ()  # its backward begins with the loss
        keys = [(held.number, tensor, m) for tensor in held.gradient_outputs]
        seeds = as_tensors([self._of_outputs.pop(key) for key in keys])
        return seeds, as_share(self._batch.share(m) * self._loss_scale)

    def _take_gradients(self, held: LocalStage, m: int, of_inputs: list[Any]) -> None:
        for edge, gradient in zip(held.gradient_inputs, of_inputs, strict=True):
            if edge.producer in self._held:
                self._add_output_gradient(edge, m, gradient)
            else:
                self._of_inputs[held.number, edge.tensor, m] = gradient

    def _add_output_gradient(self, edge: Edge, m: int, gradient: Any) -> None:
        """Add the gradient that one consumer of this rank's tensor sends back, or None."""
        key = (edge.producer, edge.tensor, m)
        other = self._of_outputs.get(key)
        if gradient is not None and other is not None:
            gradient = as_tensors(other) + as_tensors(gradient)
        self._of_outputs[key] = other if gradient is None else gradient

    # --- messages ---

    def _do_send_activation(self, step: Step, tag: int) -> None:
        held, m = self._held[step.stage], step.microbatch
        tensor, with_mask = self._edges[step.edge].tensor, self._transport.carries_mask(step.edge)
        parts = held.parts(self._saved[held.number, m].outputs, tensor, with_mask)
        self._transport.send_activation(step.edge, self._batch.size(m), tag, parts)

    def _do_receive_activation(self, step: Step, tag: int) -> None:
        tensor, m = self._edges[step.edge].tensor, step.microbatch
        what = f"tensor {tensor} of micro-batch {m} from stage {step.peer}"
        parts = self._transport.receive_activation(step.edge, self._batch.size(m), tag, what)
        self._received[step.stage, tensor, m] = parts

    def _do_send_gradient(self, step: Step, tag: int) -> None:
        tensor = self._edges[step.edge].tensor
        gradient = self._of_inputs.pop((step.stage, tensor, step.microbatch))
        self._transport.send_gradient(step.edge, tag, gradient)
        self._transport.trim()

    def _do_receive_gradient(self, step: Step, tag: int) -> None:
        edge, m = self._edges[step.edge], step.microbatch
        held = self._held[step.stage]
        (output, *_) = held.parts(self._saved[held.number, m].outputs, edge.tensor, False)
        what = f"the gradient of tensor {edge.tensor} of micro-batch {m} from stage {step.peer}"
        gradient = self._transport.receive_gradient(step.edge, tag, output, what)
        self._add_output_gradient(edge, m, gradient)

    # --- the end of a step ---

    def _do_start_reduce(self, step: Step, tag: int) -> None:
        held = self._held[step.stage]
        self._reducer.start(step.stage, held.weights, self._gradients(held).values)

    def _do_reduce(self, step: Step, tag: int) -> None:
        parts = [(held.weights, self._gradients(held)) for held in self._held.values()]
        self._reduced = self._reducer.reduce(joined(parts, self._num_weights))

    def _gradients(self, held: LocalStage) -> GradientSum:
        """The gradients of a stage, summed over this rank's micro-batches."""
        if held.number not in self._sums:
            self._sums[held.number] = held.stage.gradients()
        return self._sums[held.number]

    def _do_apply(self, step: Step, tag: int) -> None:
        reduced, self._reduced = self._reduced, []
        self._sums.clear()
        self._apply(reduced)
