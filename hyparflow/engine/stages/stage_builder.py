"""Builds the stages of one rank: whole, or of units that are compiled once for all like them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from hyparflow.engine.gradients.common_lookups import Aside
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.loss.head import LossHead
from hyparflow.engine.stages.batchnorm import BatchStatistics
from hyparflow.engine.stages.chained_stage import ChainedStage, Unit
from hyparflow.engine.stages.local_stage import LocalStage
from hyparflow.engine.stages.segmented_stage import SegmentedStage
from hyparflow.engine.stages.stage import Stage, Twin
from hyparflow.engine.stages.stage_call import StageCall, graph_body
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.model import masks
from hyparflow.model.graph import FlatGraph
from hyparflow.model.layout import ModelCut
from hyparflow.pipeline.partition import Partitioning
from hyparflow.pipeline.units import Units

__all__ = ["StageBuilder"]

Masked = frozenset[tuple[int, int]]  # (tensor, stage that takes it with a mask)


@dataclass
class StageBuilder:
    """What the stages of a rank have in common.

    Attributes:
        layout: how the model is cut.
        place: what the rank holds.
        statistics: what BatchNormalization layers report to.
        around: puts what replicas exchange around what a stage computes.
        local: what the rank has of a weight: the weight, or some rows in its place.
        head: loss and metrics, if the rank has the last stage.
        eager, jit_compile: as for `Stage`.
        aside: makes a context for trial calls.
        recompute: what computes forwards again, before their backwards: "block", "segments", None.
        rewriter: as for `Stage`.
        built: by their kinds, units that others may be like, with the variables (TensorFlow's)
            that they read and write.
    """

    layout: ModelCut
    place: Ownership
    statistics: BatchStatistics
    around: Callable[[StageCall], StageCall]
    local: Callable[[Any], Any]
    head: LossHead | None
    eager: bool
    jit_compile: bool
    aside: Aside
    recompute: str | None = None
    rewriter: Rewriter | None = None
    built: dict[int, tuple[Stage, list[Any]]] = field(default_factory=dict)

    def all(
        self, bodies: Sequence[StageCall], units: tuple[FlatGraph, Units] | None
    ) -> list[LocalStage]:
        """All stages of this rank: of several units, or compiled whole if there are none.

        Args:
            bodies: what each stage computes.
            units: the model's graph and its units.
        """
        numbers = self.place.stages
        if units is not None:
            return [self.chained(number, *units) for number in numbers]
        return [self.whole(n, body) for n, body in zip(numbers, bodies, strict=True)]

    def whole(self, number: int, body: StageCall) -> LocalStage:
        """A stage that is compiled whole.

        Args:
            number: the stage.
            body: what it computes.
        """
        table = self.layout.partitioning
        weights = self.place.trained_by(number, self.layout)
        trained = [self.place.trained[position] for position in weights]
        # A stage that is not divided is a segment of one unit.
        again = None if self.recompute is None else "block"
        stage = self._stage(table, number, body, trained, again)
        return self._local(number, stage, weights)

    def chained(self, number: int, graph: FlatGraph, units: Units) -> LocalStage:
        """A stage of several units."""
        table = self.layout.partitioning
        weights = self.place.trained_by(number, self.layout)
        places = {id(self.place.trained[p]): place for place, p in enumerate(weights)}
        masked, in_units = self.layout.masked, masks.masked_inputs(graph, units.table)
        kind = SegmentedStage if self.recompute == "segments" else ChainedStage
        stage = kind(
            [self._unit(one, graph, units, places, in_units) for one in units.of_stage[number]],
            _inputs(table, number, masked),
            _outputs(table, number, masked),
            [edge.tensor for edge in table.gradient_inputs(number)],
            table.gradient_outputs(number),
            takes_data=number == 0,
            num_weights=len(weights),
        )
        return self._local(number, stage, weights)

    def _unit(
        self,
        number: int,
        graph: FlatGraph,
        units: Units,
        places: dict[int, int],
        masked: Masked,
    ) -> Unit:
        """One unit; `places` are those of weights among the stage's, by id."""
        table = units.table
        variables = graph.variables(table.operations(number))
        called = [graph.calls[index].operation for index in table.operations(number)]
        state = [self.local(v).value for v in variables] + self.statistics.sums(called)
        trained = [variable for variable in variables if id(variable) in places]
        body = graph_body(graph, table, number, masked, self.layout.sums)
        like = self.built.get(units.kinds[number])
        twin = None
        if like is not None:
            twin = Twin(like[0], like[1], state)
        stage = self._stage(table, number, body, trained, self.recompute, twin)
        self.built.setdefault(units.kinds[number], (stage, state))
        takes_masks = any((n, number) in masked for n in table.stage_inputs[number])
        return Unit(
            stage=stage,
            inputs=_inputs(table, number, masked),
            outputs=_outputs(table, number, masked),
            gradient_inputs=tuple(edge.tensor for edge in table.gradient_inputs(number)),
            gradient_outputs=tuple(table.gradient_outputs(number)),
            weights=tuple(places[id(variable)] for variable in trained),
            types=None if number == 0 or takes_masks else _types(graph, table, number),
        )

    def _stage(
        self,
        table: Partitioning,
        number: int,
        body: StageCall,
        trained: Sequence[Any],
        recompute: str | None,
        twin: Twin | None = None,
    ) -> Stage:
        """The calls of a stage, or of a unit, of `table`."""
        return Stage(
            self.around(body),
            [self.local(variable) for variable in trained],
            [table.stage_inputs[number].index(e.tensor) for e in table.gradient_inputs(number)],
            [table.stage_outputs[number].index(n) for n in table.gradient_outputs(number)],
            self.head if number == table.num_stages - 1 else None,
            eager=self.eager,
            jit_compile=self.jit_compile,
            aside=self.aside,
            twin=twin,
            recompute=recompute,
            rewriter=self.rewriter,
        )

    def _local(self, number: int, stage: Any, weights: Sequence[int]) -> LocalStage:
        layout, table = self.layout, self.layout.partitioning
        masked = masks.masked_outputs(table, layout.masked, number)
        types = None
        takes_masks = any((n, number) in layout.masked for n in table.stage_inputs[number])
        if number > 0 and layout.graph is not None and not takes_masks:
            types = _types(layout.graph, table, number)
        return LocalStage(number, stage, table, masked, weights, types)


def _mask(tensor: int) -> int:
    """The number of a tensor's mask among the tensors of units; -1 is that of the data."""
    return -2 - tensor


def _inputs(table: Partitioning, number: int, masked: Masked) -> tuple[int, ...]:
    """The numbers of what a stage takes: tensors, then masks."""
    taken = table.stage_inputs[number]
    return (*taken, *(_mask(n) for n in taken if (n, number) in masked))


def _outputs(table: Partitioning, number: int, masked: Masked) -> tuple[int, ...]:
    """The numbers of what a stage returns: tensors, then masks."""
    sent = masks.masked_outputs(table, masked, number)
    return (*table.stage_outputs[number], *(_mask(n) for n in sent))


def _types(graph: FlatGraph, table: Partitioning, number: int) -> list[Any]:
    """The types of the inputs of a stage."""
    tensors = [graph.tensors[n] for n in table.stage_inputs[number]]
    return [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in tensors]
