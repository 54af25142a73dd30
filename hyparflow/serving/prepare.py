"""Makes a model ready to serve: how it decodes, tried once, and kept with the model."""

from __future__ import annotations

from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.world import World
from hyparflow.engine.weights.groups import groups_of
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.coherent.coherent_decoder import CoherentDecoder
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.self_test import Probed, logits_differ
from hyparflow.serving.decoding.text_inputs import require_text_inputs
from hyparflow.serving.ranks.agreeing_shards import AgreeingShards
from hyparflow.serving.ranks.build import Share, built_share
from hyparflow.serving.ranks.coherent_rows import CoherentRows
from hyparflow.serving.ranks.expert_rows import ExpertRows
from hyparflow.serving.ranks.following_rank import FollowingRank
from hyparflow.serving.ranks.replicas import OneReplica
from hyparflow.serving.ranks.replicas_on_ranks import ReplicasOnRanks
from hyparflow.serving.ranks.runner import LocalRunner, Runner
from hyparflow.serving.ranks.shared_experts import SharedExperts

__all__ = [
    "kept_share",
    "learned_positions",
    "prepared_replicas",
    "require_language_model",
    "require_length",
]

_KEPT = "_hyparflow_decoders"  # the attribute of a model


def prepared_replicas(
    model: Any, grid: Grid, world: World | None, experts: SharedExperts | None = None
) -> OneReplica | ReplicasOnRanks | FollowingRank:
    """What computes the windows of a model; a `FollowingRank` on other ranks than the leader.

    Collective.

    Args:
        model: what is served.
        grid: who holds what.
        world: all ranks; None if there is one.
        experts: how the grid's shards share experts out, if they do.

    Raises:
        ValueError: if it does not decode right.
    """
    share = kept_share(model, grid, world, experts)
    computes = share.computes
    runner: Runner = LocalRunner(computes) if isinstance(computes, Decoder) else computes
    if world is None:
        return OneReplica(runner)
    if share.experts is not None and isinstance(computes, CoherentDecoder):
        runner = CoherentRows(computes, share.experts, groups_of(grid, world).shards)
    elif share.experts is not None and isinstance(computes, Decoder):
        runner = ExpertRows(computes, share.experts, groups_of(grid, world).shards)
    elif grid.num_shards > 1:
        runner = AgreeingShards(runner, groups_of(grid, world).shards)
    kind = ReplicasOnRanks if world.rank == LEADER else FollowingRank
    return kind(runner, grid, world, share.traffic)


def kept_share(model: Any, grid: Grid, world: World | None, experts: SharedExperts | None) -> Share:
    """This rank's share of a model. Collective.

    It is kept with its model, until this has other variables, as after `quantize`.
    """
    kept, key = _kept(model, grid, experts)
    jit, *_, variables = key
    if key in kept:
        found: Share = kept[key]
        found.refresh()
        return found
    for old in [old for old in kept if old[-1] != variables]:
        del kept[old]
    is_whole = grid.num_partitions * grid.num_shards == 1 or not any(
        map(is_absent, model.variables)
    )
    if world is not None:
        is_whole = all(world.all_gather_objects(is_whole, "the ranks to look at their weights"))
    kept[key] = built_share(model, grid, world, jit, experts)
    try:
        _require_right(model, kept[key], world, is_whole)
    except ValueError:
        del kept[key]
        raise
    share: Share = kept[key]
    return share


def forget_share(model: Any, grid: Grid, experts: SharedExperts) -> None:
    """Give back what `kept_share` has made: it holds the weights of experts."""
    kept, key = _kept(model, grid, experts)
    kept.pop(key, None)


def _kept(model: Any, grid: Grid, experts: SharedExperts | None) -> tuple[dict[Any, Any], Any]:
    """What is kept with a model, and by which key."""
    jit = bool(model.jit_compile) and not model.run_eagerly
    variables = tuple(id(variable) for variable in model.variables)
    return vars(model).setdefault(_KEPT, {}), (jit, grid, experts, variables)


def _require_right(model: Any, share: Share, world: World | None, is_whole: bool) -> None:
    probed: Probed = share.computes
    broken = logits_differ(model, probed, int(model.backbone.vocabulary_size), is_whole)
    if broken and isinstance(probed, CoherentDecoder):
        broken = (
            "Tokens stay at the ranks of their experts in models whose layers add what their "
            f"experts make to what they compute besides. Received: '{model.name}' of class "
            f"'{type(model).__name__}', whose logits differ then. Use expert_parallel='home'."
        )
    if world is not None:
        said = world.all_gather_objects(broken, "the ranks to try the model")
        broken = next(filter(None, said), "")
    if broken:
        raise abort.mark_collective(ValueError(broken))


def require_language_model(model: Any) -> None:
    """Check that a model makes tokens.

    Raises:
        ValueError: if it does not.
    """
    import keras_hub

    if not isinstance(model, keras_hub.models.CausalLM):
        raise ValueError(
            "A model that generates must be a `keras_hub.models.CausalLM`. Received: "
            f"{type(model).__name__}"
        )
    require_text_inputs(model)


def require_length(model: Any, length: int) -> None:
    """Check that a model knows so many positions.

    Raises:
        ValueError: if it has learned fewer.
    """
    learned = learned_positions(model)
    if learned is not None and length > learned:
        raise ValueError(
            f"A prompt and what follows must fit into the {learned} positions that the model has "
            f"learned. Received: max_length={length} for '{model.name}'."
        )


def learned_positions(model: Any) -> int | None:
    """How many positions a model has learned; None if it computes them."""
    import keras_hub

    kind = keras_hub.layers.PositionEmbedding
    found = [layer.sequence_length for layer in all_layers(model) if isinstance(layer, kind)]
    return min(found, default=None)
