"""Whether tokens come home from their experts, or go on there: what is predicted to be faster."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from hyparflow.comm.leader import LEADER
from hyparflow.comm.log import STATUS
from hyparflow.comm.world import World
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.grid import Grid
from hyparflow.planning.costs.cluster import Cluster, cluster_of
from hyparflow.planning.costs.expert_exchanges import (
    ExpertTraffic,
    coherent_seconds,
    home_seconds,
)
from hyparflow.planning.costs.measure_network import measure_links
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.prepare import forget_share, kept_share
from hyparflow.serving.ranks.shared_experts import ExpertMode, SharedExperts

__all__ = ["given_cluster", "with_chosen_mode"]

_CHOSEN = "_hyparflow_expert_modes"  # the attribute of a model
_LARGEST = 1 << 22  # bytes of a message that shows the speed of the network


def given_cluster(cluster: Any, mode: ExpertMode | None, num_ranks: int) -> Cluster | None:
    """The network that a user has described.

    Raises:
        ValueError: if it is none, is not of these ranks, or nothing is to be chosen by it.
    """
    if cluster is None:
        return None
    if mode is not ExpertMode.AUTO:
        raise ValueError(
            "`cluster` is what is chosen by what tokens do that go to experts. Received: a cluster "
            "without expert_parallel='auto'. Pass both, or neither."
        )
    found = cluster_of(cluster)
    if found.num_ranks != num_ranks:
        raise ValueError(
            "`cluster` must have as many ranks as run. "
            f"Received: {found.num_ranks} of the cluster, and {num_ranks}. Measure it by "
            "`hyparflow doctor --network` with as many."
        )
    return found


def with_chosen_mode(
    model: Any,
    grid: Grid,
    world: World | None,
    experts: SharedExperts | None,
    rows: int,
    cluster: Cluster | None,
) -> SharedExperts | None:
    """The same experts, with a mode if the fastest one is asked for. Collective.

    Args:
        model: what is served.
        grid, world, experts: see `prepared_replicas`.
        rows: that compute at the same time.
        cluster: the network; None to measure it.
    """
    if experts is None or world is None or experts.mode is not ExpertMode.AUTO:
        return experts
    known = vars(model).setdefault(_CHOSEN, {})
    key = grid, experts, rows, cluster
    if key not in known:
        known[key] = _chosen(model, grid, world, experts, rows, cluster)
    found: SharedExperts = known[key]
    return found


def _chosen(
    model: Any,
    grid: Grid,
    world: World,
    experts: SharedExperts,
    rows: int,
    cluster: Cluster | None,
) -> SharedExperts:
    home, coherent = replace(experts, mode=ExpertMode.HOME), experts.coherent
    decoder = kept_share(model, grid, world, home).computes
    size = decoder.bytes_of_token if isinstance(decoder, Decoder) else 0
    traffic = _traffic(model, home, rows, size, grid.num_shards)
    network = cluster or measure_links(world, _LARGEST)
    seconds = home_seconds(traffic, network), coherent_seconds(traffic, network)
    chosen = home
    if seconds[1] < seconds[0]:
        forget_share(model, grid, home)
        # Layers that do more than to add what experts make are refused, on all ranks alike.
        with contextlib.suppress(ValueError):
            kept_share(model, grid, world, coherent)
            chosen = coherent
    if world.rank == LEADER:
        STATUS.info(
            "hyparflow: expert_parallel=%r. Exchanges of an iteration of %d rows would take "
            "%.2g ms if tokens came home, %.2g ms if they went on where their experts are.",
            *(chosen.mode.value, rows, *(1e3 * x for x in seconds)),
        )
    return chosen


def _traffic(
    model: Any, experts: SharedExperts, rows: int, cache_bytes: int, count: int
) -> ExpertTraffic:
    layers = expert_layers(all_layers(model))
    weight = next(w for w in layers[0].weights if len(w.shape) == 3)
    return ExpertTraffic(
        layers=len(layers),
        rows=rows,
        row_bytes=int(weight.shape[1]) * _bytes_of(layers[0].layer.compute_dtype),
        cache_bytes=cache_bytes,
        top_k=max(experts.top_k),
        away=1 - 1 / count,
        changes=experts.changes,
    )


def _bytes_of(dtype: str) -> int:
    return 8 if dtype == "float64" else 4 if dtype == "float32" else 2
