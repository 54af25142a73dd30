"""How ranks share out the experts of a language model: which has which, and what tokens do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from hyparflow.engine.experts.placed_experts import Placed, placed_experts
from hyparflow.experts.given_placement import given_placement
from hyparflow.formats.text import shortened
from hyparflow.model.experts.expert_layers import expert_layers, experts_of_token
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.grid import Grid

__all__ = ["ExpertMode", "SharedExperts", "dealt_to", "expert_mode", "shared_experts"]


class ExpertMode(Enum):
    """What tokens do that go to the rank of their expert (Yao et al., "ExFlow")."""

    HOME = "home"  # what the expert makes comes home
    COHERENT = "coherent"  # the token goes on there, until all ranks are told
    RETURNING = "coherent-returning"  # the same, and what its other experts make comes to it
    AUTO = "auto"  # what is predicted to take less time


@dataclass(frozen=True)
class SharedExperts:
    """What is said of them.

    Attributes:
        rank_of: for each layer with experts, and each of these, its rank.
        top_k: for each layer with experts, to how many of them a token goes, at most.
        changes: the share of tokens that change rank from one expert to the next.
        mode: what tokens do.
    """

    rank_of: Placed
    top_k: tuple[int, ...]
    changes: float
    mode: ExpertMode

    @property
    def stay(self) -> bool:
        """Whether tokens go on where their expert is."""
        return self.mode in (ExpertMode.COHERENT, ExpertMode.RETURNING)

    @property
    def coherent(self) -> SharedExperts:
        """The same, of tokens that go on there."""
        mode = ExpertMode.COHERENT if max(self.top_k) == 1 else ExpertMode.RETURNING
        return replace(self, mode=mode)


def expert_mode(given: Any) -> ExpertMode | None:
    """What `expert_parallel` says; None if each rank has all experts.

    Raises:
        ValueError: if it is neither a boolean nor the name of a mode.
    """
    if given is False or given is None:
        return None
    if given is True:
        return ExpertMode.HOME
    names = [mode.value for mode in ExpertMode]
    if given not in names:
        raise ValueError(
            f"`expert_parallel` must be True, False or one of {', '.join(map(repr, names))}. "
            f"Received: expert_parallel={shortened(given)}"
        )
    return ExpertMode(given)


def dealt_to(grid: Grid, experts: SharedExperts | None) -> int:
    """Into how many groups the rows of a replica are dealt: each partition, or rank, has one."""
    return grid.num_partitions if experts is None else grid.num_shards


def shared_experts(
    model: Any, count: int, placement: Any, mode: ExpertMode | None
) -> SharedExperts | None:
    """How ranks share out experts; None if they do not, or there is one rank.

    Args:
        model: what is served.
        count: how many ranks share the experts.
        placement: see `placed_experts`.
        mode: what tokens do.

    Raises:
        ValueError: if they cannot share them out so.
    """
    placed = placed_experts(model, count, placement, mode is not None)
    if mode is None:
        return None
    layers = all_layers(model)
    top_k = tuple(experts_of_token(one, layers) for one in expert_layers(layers))
    if mode is ExpertMode.COHERENT and max(top_k) > 1:
        raise ValueError(
            "In expert_parallel='coherent' a token stays where its expert is, so it has one. "
            f"Received: '{model.name}', where a token has up to {max(top_k)}. Use "
            "expert_parallel='home'; or 'coherent-returning', in which what other experts make "
            "follows the token by a second all-to-all of each layer."
        )
    if placed is None:
        return None
    report = given_placement("placement", placement).report if placement is not None else None
    changes = 1 - 1 / count if report is None else report.held_out.rank_changes
    return SharedExperts(placed, top_k, changes, mode)
