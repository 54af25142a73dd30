"""A stage that is computed unit by unit.

A unit is a stage of its own, small enough to be compiled in little time; the backward goes through
the units from the last to the first. So what a stage takes to compile depends on its units, and
units that are alike can be compiled once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyparflow.engine.gradients.microbatch_sum import GradientSum, joined
from hyparflow.engine.loss.head import Labels
from hyparflow.engine.stages.saved import Saved
from hyparflow.engine.stages.stage import Stage
from hyparflow.pipeline.actions import Kind

__all__ = ["ChainedSaved", "ChainedStage", "Unit"]

_DATA = -1  # the number of the user's data
_Backward = Callable[..., list[Any]]


@dataclass(frozen=True)
class Unit:
    """One unit of a stage, with the numbers of its tensors and weights.

    Attributes:
        stage: its compiled calls.
        inputs, outputs: the tensors that it takes and returns, by their numbers in the model.
        gradient_inputs, gradient_outputs: those of them whose gradients it returns and takes.
        weights: positions of its weights among those of the whole stage.
        types: the types of its inputs, or None where they are not known before it runs.
    """

    stage: Stage
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    gradient_inputs: tuple[int, ...]
    gradient_outputs: tuple[int, ...]
    weights: tuple[int, ...]
    types: list[Any] | None = None


@dataclass
class ChainedSaved(Saved):
    """The data that a chained stage keeps of a micro-batch.

    Attributes:
        units: those of its units, in order.
        seed: the gradient of the loss, where the stage ends with it.
    """

    units: list[Saved] = field(default_factory=list)
    seed: Any = None


class ChainedStage:
    """The calls of a stage, made of those of its units; see `hyparflow.engine.stages.stage.Stage`.

    Args:
        units: the units, in order.
        inputs, outputs: numbers of the tensors that the stage takes and returns.
        gradient_inputs, gradient_outputs: those of them whose gradients it returns and takes.
        takes_data: whether the first unit takes the user's data, and not numbered tensors.
        num_weights: how many weights the stage trains.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        inputs: Sequence[int],
        outputs: Sequence[int],
        gradient_inputs: Sequence[int],
        gradient_outputs: Sequence[int],
        takes_data: bool,
        num_weights: int,
    ) -> None:
        self._units = list(units)
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._gradient_inputs = list(gradient_inputs)
        self._gradient_outputs = list(gradient_outputs)
        self._takes_data = takes_data
        self._num_weights = num_weights
        # The unit that reads a tensor last: behind it the tensor is let go of.
        self._last_reader = {n: place for place, unit in enumerate(units) for n in unit.inputs}
        self._last_reader |= dict.fromkeys(outputs, len(units))

    @property
    def rewritten(self) -> Counter[str]:
        """See `Stage.rewritten`."""
        return sum((unit.stage.rewritten for unit in self._units), Counter[str]())

    def begin(self, several: bool) -> None:
        """See `Stage.begin`."""
        for unit in self._units:
            unit.stage.begin(several)

    def prepare(self, inputs: Any, rest: Any, kinds: Collection[str]) -> None:
        """See `Stage.prepare`."""
        *before, last = self._units
        is_loss = isinstance(rest, Labels)
        share = rest.share if is_loss else rest
        # Units before the last have their forward and backward apart.
        apart = (set(kinds) - {Kind.FUSED}) | {Kind.BACKWARD} if Kind.FUSED in kinds else kinds
        for place, unit in enumerate(before):
            types = inputs if place == 0 else unit.types
            unit.stage.prepare(types, share, apart)
        last.stage.prepare(last.types if before else inputs, rest, kinds)

    def gradients(self) -> GradientSum:
        """See `Stage.gradients`."""
        parts = [(unit.weights, unit.stage.gradients()) for unit in self._units]
        return joined(parts, self._num_weights)

    # --- forward ---

    def forward(self, inputs: Any, share: Any) -> ChainedSaved:
        """See `Stage.forward`."""
        values = self._begin_with(inputs)
        saved = [self._pass(place, values, share) for place in range(len(self._units))]
        return ChainedSaved([values[n] for n in self._outputs], _added(saved), units=saved)

    def forward_loss(self, inputs: Any, labels: Labels) -> ChainedSaved:
        """See `Stage.forward_loss`; the loss is what units before the last add to it."""
        values, saved = self._before_the_last(inputs, labels.share)
        ended = self._pass_loss(values, labels)
        return ChainedSaved([], _added(saved), units=[*saved, ended], seed=labels.seed)

    def forward_backward(self, inputs: Any, labels: Labels) -> tuple[list[Any], Any]:
        """See `Stage.forward_backward`: only the last unit does both in one call."""
        values, saved = self._before_the_last(inputs, labels.share)
        last = self._units[-1]
        of_inputs, _ = last.stage.forward_backward(self._taken(last, values), labels)
        values.clear()
        gradients = _Gradients(dict(zip(last.gradient_inputs, of_inputs, strict=True)))
        self._go_back(saved, gradients, labels.seed, Stage.backward)
        return gradients.of(self._gradient_inputs), _added(saved)

    def infer(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        """See `Stage.infer`."""
        values = self._begin_with(inputs)
        losses = [self._infer(place, values, share) for place in range(len(self._units))]
        return [values[n] for n in self._outputs], _total(losses)

    def infer_loss(self, inputs: Any, labels: Labels) -> Any:
        """See `Stage.infer_loss`."""
        values, last = self._begin_with(inputs), self._units[-1]
        before = range(len(self._units) - 1)
        losses = [self._infer(place, values, labels.share) for place in before]
        last.stage.infer_loss(self._taken(last, values), labels)
        return _total(losses)

    # --- backward ---

    def backward(
        self, saved: ChainedSaved, output_gradients: Sequence[Any] = (), seed: Any = None
    ) -> list[Any]:
        """See `Stage.backward`."""
        return self._backward(saved, output_gradients, seed, Stage.backward)

    def input_backward(
        self, saved: ChainedSaved, output_gradients: Sequence[Any] = (), seed: Any = None
    ) -> list[Any]:
        """See `Stage.input_backward`."""
        return self._backward(saved, output_gradients, seed, Stage.input_backward)

    def weight_backward(self, saved: ChainedSaved) -> None:
        """See `Stage.weight_backward`."""
        for unit, of_unit in zip(reversed(self._units), reversed(saved.units), strict=True):
            unit.stage.weight_backward(of_unit)

    def _backward(
        self, saved: ChainedSaved, output_gradients: Sequence[Any], seed: Any, way: _Backward
    ) -> list[Any]:
        gradients = _Gradients(dict(zip(self._gradient_outputs, output_gradients, strict=True)))
        self._go_back(saved.units, gradients, saved.seed if seed is None else seed, way)
        return gradients.of(self._gradient_inputs)

    def _go_back(
        self,
        saved: Sequence[Saved],
        gradients: _Gradients,
        seed: Any,
        way: _Backward,
        start: int = 0,
    ) -> None:
        """The backward of units of which something was saved, from the last to that at `start`."""
        units = self._units[start : start + len(saved)]
        for unit, of_unit in zip(reversed(units), reversed(saved), strict=True):
            of_inputs = way(unit.stage, of_unit, gradients.take(unit.gradient_outputs), seed)
            if way is Stage.backward:  # the units before it take the memory
                of_unit.let_go()
            for number, gradient in zip(unit.gradient_inputs, of_inputs, strict=True):
                gradients.add(number, gradient)

    # --- the way of the tensors ---

    def _begin_with(self, inputs: Any) -> dict[int, Any]:
        """The tensors at hand, by number; -1 for the user's data."""
        if self._takes_data:
            return {_DATA: inputs}
        return dict(zip(self._inputs, inputs, strict=True))

    def _numbers(self, place: int) -> tuple[int, ...]:
        """The numbers of the tensors that a unit takes."""
        return (_DATA,) if self._takes_data and place == 0 else self._units[place].inputs

    def _taken(self, unit: Unit, values: dict[int, Any]) -> Any:
        """The inputs of a unit, in the form that its stage takes."""
        if self._takes_data and unit is self._units[0]:
            return values[_DATA]
        return [values[n] for n in unit.inputs]

    def _before_the_last(self, inputs: Any, share: Any) -> tuple[dict[int, Any], list[Saved]]:
        """The forward of all units but the last."""
        values = self._begin_with(inputs)
        return values, [self._pass(n, values, share) for n in range(len(self._units) - 1)]

    def _pass(self, place: int, values: dict[int, Any], share: Any) -> Saved:
        """The forward of a unit."""
        unit = self._units[place]
        saved = unit.stage.forward(self._taken(unit, values), share)
        self._take(place, values, saved.outputs)
        saved.let_go_of_outputs()  # `values` holds them for as long as a unit reads them
        return saved

    def _pass_loss(self, values: dict[int, Any], labels: Labels) -> Saved:
        """The forward of the unit that ends with the loss."""
        last = self._units[-1]
        return last.stage.forward_loss(self._taken(last, values), labels)

    def _infer(self, place: int, values: dict[int, Any], share: Any) -> Any:
        """The forward of a unit without training; what its layers add to the loss."""
        unit = self._units[place]
        outputs, loss = unit.stage.infer(self._taken(unit, values), share)
        self._take(place, values, outputs)
        return loss

    def _take(self, place: int, values: dict[int, Any], outputs: Sequence[Any]) -> None:
        """Take a unit's outputs, and let go of what no later one reads."""
        unit = self._units[place]
        for number in unit.inputs:
            if self._last_reader[number] == place:
                values.pop(number, None)
        values.update(zip(unit.outputs, outputs, strict=True))


class _Gradients:
    """The gradients of tensors by their numbers; several units may read one."""

    def __init__(self, known: dict[int, Any]) -> None:
        self._known = known

    def add(self, number: int, gradient: Any) -> None:
        """Add the gradient by one reader; None if it does not depend on the tensor."""
        other = self._known.get(number)
        both = gradient is not None and other is not None
        self._known[number] = (
            other + gradient if both else (other if gradient is None else gradient)
        )

    def of(self, numbers: Sequence[int]) -> list[Any]:
        """The gradients of tensors."""
        return [self._known.get(number) for number in numbers]

    def take(self, numbers: Sequence[int]) -> list[Any]:
        """The gradients of what a unit made, which are complete by then, and nobody else needs."""
        return [self._known.pop(number, None) for number in numbers]


def _added(saved: Sequence[Saved]) -> Any:
    """What the layers of units added to the loss, or None."""
    return _total([of_unit.loss for of_unit in saved])


def _total(losses: Sequence[Any]) -> Any:
    found = [loss for loss in losses if loss is not None]
    return sum(found[1:], found[0]) if found else None
