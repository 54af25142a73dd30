"""Whether ranks can share out the experts of a model evenly."""

from __future__ import annotations

from collections.abc import Sequence

from hyparflow.model.experts.expert_layers import ExpertLayer

__all__ = ["require_divisible"]


def require_divisible(layers: Sequence[ExpertLayer], count: int) -> None:
    """Check that there are experts, and as many for each replica.

    Raises:
        ValueError: if not.
    """
    if not layers:
        raise ValueError(
            "`expert_parallel` is for models with mixtures of experts: "
            "`hyparflow.layers.MixtureOfExperts`, or those of KerasHub that hyparflow knows. "
            "Received: a model without any. Leave it out."
        )
    odd = {one.layer.name: one.num_experts for one in layers if one.num_experts % count}
    if odd:
        raise ValueError(
            "With `expert_parallel` the number of experts of each layer must be a multiple of the "
            f"number of replicas. Received: {count} replicas and layers with "
            f"{', '.join(f'{number} ({name})' for name, number in odd.items())} experts. "
            "Use another number of replicas."
        )
