"""A plan in place of the parallel arguments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hyparflow.formats.argument_checks import is_auto
from hyparflow.formats.text import shortened
from hyparflow.model.fingerprint import model_fingerprint
from hyparflow.options import is_given

if TYPE_CHECKING:
    from hyparflow.planning.plan import Plan

__all__ = ["as_plan", "planned"]


def as_plan(plan: Any) -> Plan:
    """The plan, or the one in the file of that path.

    Raises:
        ValueError: if it is neither.
    """
    from hyparflow.planning.plan import Plan

    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str | os.PathLike):
        return Plan.load(os.fspath(plan))
    raise ValueError(
        "`plan` must be what hyparflow.plan returned, or a file that Plan.save wrote. "
        f"Received: plan={shortened(plan)}"
    )


def planned(
    arguments: dict[str, Any], plan: Plan, model: Any, num_ranks: int | None
) -> dict[str, Any]:
    """`arguments` completed by those of `plan`.

    Args:
        arguments: the parallel arguments.
        plan: the plan.
        model: the model to train.
        num_ranks: the ranks of the job; None without a launcher.

    Raises:
        ValueError: if both give a value, or the plan is for another model or number of ranks.
    """
    given = [
        f"{name}={shortened(arguments[name])}"
        for name in ("strategy", *plan.arguments)
        if is_given(name, arguments[name]) and not (name == "strategy" and is_auto(arguments[name]))
    ]
    if given:
        raise ValueError(
            "A plan decides strategy, partitions, replicas, sequence shards and chunks, their "
            "store, micro-batches, schedule, lpp, "
            "recompute, shard_optimizer and expert_parallel. "
            f"Received: plan and {', '.join(given)}. Leave one of them out."
        )
    if num_ranks not in (None, plan.num_ranks):
        raise ValueError(
            f"A plan must be for the number of ranks of the job. Received: a plan for "
            f"{plan.num_ranks} ranks on {num_ranks}. Plan again with num_ranks={num_ranks}, or "
            f"start {plan.num_ranks} ranks."
        )
    if plan.fingerprint != model_fingerprint(model):
        raise ValueError(
            "A plan must be of the model that it is used for. Received: a plan of "
            f"'{plan.model}' for '{model.name}', whose layers, shapes or trainable weights are "
            "not the same. Plan again with this model."
        )
    return arguments | plan.arguments
