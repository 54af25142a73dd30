"""Refuses plans of mixtures of experts that training would refuse, before anything is measured."""

from __future__ import annotations

from typing import Any

from hyparflow.engine.experts.divisible import require_divisible
from hyparflow.model.experts.expert_checks import check_balance, check_experts
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.planning.search.problem import Constraints

__all__ = ["check_mixtures"]


def check_mixtures(model: Any, constraints: Constraints) -> None:
    """Check what the user fixed against the mixtures of experts of a model.

    Raises:
        ValueError: if training would refuse it.
    """
    options = constraints.options
    check_experts(model, options)
    if isinstance(options.num_microbatches, int):
        check_balance(model, "fit", options.num_microbatches)
    if options.expert_parallel:
        replicas = options.num_replicas
        if replicas is None and options.num_partitions is not None:
            replicas = constraints.num_ranks // options.num_partitions
        require_divisible(expert_layers(all_layers(model)), replicas or 1)
