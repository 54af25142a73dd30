"""Whether the fields of a plan fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyparflow.pipeline.actions import NAMES
from hyparflow.pipeline.schedules import SCHEDULES

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan

__all__ = ["check"]


def check(plan: Plan) -> None:
    """Refuse a plan that contradicts itself.

    Raises:
        ValueError: naming the field.
    """
    if plan.schedule not in SCHEDULES:
        _require(f"one of {', '.join(map(repr, SCHEDULES))}", "schedule", repr(plan.schedule))
    if plan.recompute not in (None, "block", "segments"):
        _require("'block', 'segments' or null", "recompute", repr(plan.recompute))
    stages = plan.num_partitions * plan.stages_per_partition
    for name, expected in (("partitions", plan.num_partitions), ("lpp", stages)):
        found = len(getattr(plan, name))
        if found != expected:
            _require(f"`array` of {expected}", name, f"one of {found}")
    for number, part in enumerate(plan.partitions):
        layers = sum(plan.lpp[stage] for stage in plan.placement.stages(number))
        if len(part.layers) != layers:
            where = f"partitions[{number}].layers"
            _require(f"`array` of {layers}, as `lpp` says", where, f"one of {len(part.layers)}")
        if peer := next((n for n in part.sent if n >= plan.num_partitions), None):
            _require(f"a partition < {plan.num_partitions}", f"partitions[{number}].sent", peer)
    _check_work(plan, stages)


def _check_work(plan: Plan, stages: int) -> None:
    if not any(plan.work):
        _require("an array that is not empty", "work", "nothing")
    for number, works in enumerate(plan.work):
        for index, work in enumerate(works):
            where = f"work[{number}][{index}]"
            if work.kind not in NAMES:
                _require(f"one of {', '.join(map(repr, NAMES))}", f"{where}.kind", repr(work.kind))
            if work.stage >= stages:
                _require(f"`int` < {stages}", f"{where}.stage", work.stage)
            if work.end < work.start:
                _require(f"`float` >= {work.start}", f"{where}.end", work.end)


def _require(what: str, field: str, received: object) -> None:
    raise ValueError(f"Expected {what}, got {received} - at `$.{field}`")
