"""Builds the stages that one rank executes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hyparflow.engine.compiled import choice
from hyparflow.engine.experts.expert_calls import ExpertCalls
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.loss.head import LossHead
from hyparflow.engine.sequence.sequence_builder import SequenceBuilder
from hyparflow.engine.sequence.sequence_stage import SequenceStage
from hyparflow.engine.stages.batchnorm import BatchStatistics
from hyparflow.engine.stages.local_stage import LocalStage
from hyparflow.engine.stages.stage_builder import StageBuilder
from hyparflow.engine.stages.stage_call import StageCall
from hyparflow.engine.weights.groups import groups_of
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.model.graph import FlatGraph
from hyparflow.model.layout import ModelCut
from hyparflow.model.untouched import fixed_moments, untouched
from hyparflow.options import Options
from hyparflow.pipeline.units import Units

__all__ = ["build_stages", "is_eager"]


def build_stages(
    model: Any,
    layout: ModelCut,
    place: Ownership,
    options: Options,
    statistics: BatchStatistics,
    experts: ExpertCalls,
    bodies: Sequence[StageCall],
    units: tuple[FlatGraph, Units] | None,
    head: LossHead | None,
) -> tuple[list[LocalStage], list[SequenceStage]]:
    """This rank's stages, and those of them whose sequences are divided.

    Args:
        model: the user's model.
        layout: how it is cut.
        place: what the rank holds.
        options: the parallel arguments.
        statistics: what BatchNormalization layers normalize by.
        experts: what layers with experts compute together with other replicas.
        bodies: what each stage computes.
        units: the graph and units, if blocks that repeat are compiled once.
        head: loss and metrics, if the rank has the last stage.
    """
    uses_xla = _uses_xla(model, statistics.exchanges or experts.exchanges)
    rewriter = _rewriter(options, uses_xla)
    if options.divides_sequences:
        pairs = SequenceBuilder(
            model=model,
            layout=layout,
            place=place,
            options=options,
            shards=groups_of(options.grid, place.world).shards,
            head=head,
            rewriter=rewriter,
        ).all(bodies)
        return [local for local, _ in pairs], [stage for _, stage in pairs]
    build = StageBuilder(
        layout=layout,
        place=place,
        statistics=statistics,
        around=lambda body: experts.around(statistics.around(body)),
        local=experts.local,
        head=head,
        eager=is_eager(model),
        jit_compile=uses_xla,
        aside=functools.partial(_aside, model, statistics, experts),
        recompute=options.recompute,
        rewriter=rewriter,
    )
    return build.all(bodies, units), []


def is_eager(model: Any) -> bool:
    """Whether a model is to run eagerly."""
    return bool(model.compiled and model.run_eagerly)


def _uses_xla(model: Any, exchanges: bool) -> bool:
    # "auto" may ask for XLA on GPUs; it cannot compile an exchange between ranks.
    return model.compiled and bool(model.jit_compile) and not exchanges


def _rewriter(options: Options, uses_xla: bool) -> Rewriter | None:
    """What puts in faster kernels, if anything does."""
    wanted = options.kernels == "auto" and choice.compiler().shares and not uses_xla
    return Rewriter() if wanted else None


@contextlib.contextmanager
def _aside(
    model: Any, statistics: BatchStatistics, experts: ExpertCalls
) -> Iterator[Callable[[], None]]:
    """A context for trial calls of the model: their effects are undone, replicas exchange nothing.

    Yields a function that undoes the effects of the calls so far.
    """
    statistics.aside = experts.aside = True
    try:
        with fixed_moments(model), untouched(model) as undo:
            yield undo
    finally:
        statistics.aside = experts.aside = False
