"""Checks of calls whose models have mixtures of experts; errors are the same on every rank."""

from __future__ import annotations

from typing import Any

from hyparflow.model.experts.balanced_layers import BalancedLayers
from hyparflow.model.keras_internals.compiled import asked_for_xla, own_step
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.options import Options

__all__ = ["check_balance", "check_experts"]


def check_experts(model: Any, options: Options) -> None:
    """Check that replicas may share out experts, if that is asked for.

    Raises:
        ValueError: if they may not.
    """
    balanced = BalancedLayers(all_layers(model)).names
    if balanced and options.divides_sequences:
        raise ValueError(
            "A loss that balances experts is of all tokens of a batch, which divided sequences do "
            f"not have at once. Received: the layers {balanced} and sequences in parts. Leave "
            "`num_sequence_shards` and `num_sequence_chunks` out, or that loss (load_balancing=0)."
        )
    if not options.expert_parallel:
        return
    own = next((own for step in ("train_step", "test_step") if (own := own_step(model, step))), "")
    reasons = {
        "shard_optimizer=True": options.shard_optimizer,
        "jit_compile=True": asked_for_xla(model),
        "divided sequences": options.divides_sequences,
        f"its own `{own}`": bool(own),
    }
    if broken := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(
            "`expert_parallel` is for models whose steps are Keras's, compiled without XLA. "
            f"Received: model of class '{type(model).__name__}' with {' and '.join(broken)}. "
            "Leave that out, or expert_parallel."
        )


def check_balance(model: Any, method: str, num_microbatches: int) -> None:
    """Check that losses which balance experts see a whole batch at once.

    Raises:
        ValueError: if they would see parts.
    """
    balanced = BalancedLayers(all_layers(model)).names
    if balanced and method == "fit" and num_microbatches > 1:
        raise ValueError(
            "A loss that balances experts is a product of means over all tokens of a batch, which "
            f"micro-batches do not have at once. Received: the layers {balanced} with "
            f"{num_microbatches} micro-batches. Use num_microbatches=1, or leave that loss out "
            "(load_balancing=0; KerasHub's router_aux_loss_coefficient=0)."
        )
