"""Which rank has each expert of a model whose experts ranks share out."""

from __future__ import annotations

from typing import Any

from hyparflow.engine.experts.divisible import require_divisible
from hyparflow.experts.given_placement import given_placement
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.experts.routing_recorder import names_of_layers
from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["Placed", "placed_experts"]

Placed = tuple[tuple[int, ...], ...]  # for each layer with experts, and each of these, its rank


def placed_experts(model: Any, count: int, placement: Any, is_shared: bool) -> Placed | None:
    """For each layer with experts, and each of these, the rank that has it.

    Args:
        model: the model.
        count: how many ranks share the experts.
        placement: an `ExpertPlacement`, the path of one, or None for experts in their order.
        is_shared: whether ranks share experts; if not, there may be no placement.

    Returns:
        None if ranks do not share experts, or there is one rank.

    Raises:
        ValueError: if the model has no experts, the ranks do not divide them, or the placement is
            another model's.
    """
    if not is_shared and placement is not None:
        raise ValueError(
            "`placement` says which ranks have which experts. Received: a placement without "
            "expert_parallel=True. Pass both, or neither."
        )
    if not is_shared:
        return None
    layers = expert_layers(all_layers(model))
    require_divisible(layers, count)
    if placement is None and count == 1:
        return None
    if placement is None:
        return tuple(
            tuple(n * count // one.num_experts for n in range(one.num_experts)) for one in layers
        )
    given = given_placement("placement", placement)
    numbers = {one.num_experts for one in layers}
    names = names_of_layers([one.layer for one in layers])
    given.require_fits(len(layers), max(numbers), model.name, num_ranks=count)
    if len(numbers) > 1 or any(len(holders) > 1 for row in given.ranks for holders in row):
        raise ValueError(
            "Ranks that share out experts have each of them once, and as many of each layer. "
            f"Received: {given!r}, where some have several ranks, for layers of {sorted(numbers)} "
            "experts. Make a placement without `replicate`."
        )
    by_name = dict(zip(given.layers, given.ranks, strict=True))
    rows = [by_name[name] for name in names] if set(names) == set(by_name) else given.ranks
    placed = tuple(tuple(holders[0] for holders in row) for row in rows)
    if any(row.count(rank) * count != len(row) for row in placed for rank in range(count)):
        raise ValueError(
            "Ranks that share out experts have each of them once, and as many of each layer. "
            f"Received: {given!r}, where ranks have different numbers of experts. "
            "Make one by hyparflow.place_experts."
        )
    return placed if count > 1 else None
