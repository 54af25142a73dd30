"""What a placement costs: how many tokens go to another rank between layers, and how ranks load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyparflow.experts.trace import RoutingTrace
from hyparflow.formats.records import Amount, Count, Share

__all__ = ["PlacementReport", "PlacementScore", "mean_score", "score_of"]


@dataclass(frozen=True)
class PlacementScore:
    """What tokens do under a placement.

    A token is on the rank of the first expert that it had last. Each expert of the next layer that
    it goes to counts once: as near if that rank holds it, as far if another does.

    Attributes:
        rank_changes: Float from 0 to 1. The share that goes to another rank.
        node_changes: Float from 0 to 1. The share that goes to another node.
        largest_load: Float. The tokens of the rank that has most in any layer, by the mean.
        by_layer: Tuple of floats. The share that goes to another rank, to reach each layer after
            the first.
        traffic: Tuple of tuples of floats. From rank to rank: the share that goes that way.
    """

    rank_changes: Share
    node_changes: Share
    largest_load: Amount
    by_layer: tuple[Share, ...]
    traffic: tuple[tuple[Share, ...], ...]


@dataclass(frozen=True)
class PlacementReport:
    """What is known of a placement that `hyparflow.place_experts` made.

    All scores but `training` are of tokens that the search has not seen.

    Attributes:
        tokens: Integer. The number of tokens that it was learnt from.
        held_out_tokens: Integer. The number of tokens that it is judged by.
        top_k: Integer. The number of experts of a token in a layer.
        rounds: Integer. How many placements the search went through.
        training: A score. On the tokens that it was learnt from, which flatters it.
        held_out: A score. On those held out.
        contiguous: A score. Of experts that are dealt to ranks in their order.
        random: A score. The mean over random placements.
    """

    tokens: Count
    held_out_tokens: Count
    top_k: Count
    rounds: Count
    training: PlacementScore
    held_out: PlacementScore
    contiguous: PlacementScore
    random: PlacementScore


def score_of(destinations: np.ndarray, nodes: int, trace: RoutingTrace) -> PlacementScore:
    """Follow the tokens of a trace from layer to layer.

    Args:
        destinations: layers x experts x ranks; where a token on a rank goes for an expert.
        nodes: the number of nodes.
        trace: the tokens.
    """
    layers, _, num_ranks = destinations.shape
    now = np.arange(trace.num_tokens) % num_ranks  # tokens begin on all ranks alike
    traffic = np.zeros((layers - 1, num_ranks, num_ranks))
    largest = 0.0
    for layer in range(layers):
        there = destinations[layer][trace.experts[:, layer], now[:, np.newaxis]]
        loads = np.bincount(there.ravel(), minlength=num_ranks)
        largest = max(largest, float(loads.max() / loads.mean()))
        if layer:
            ways = np.bincount(
                (now[:, np.newaxis] * num_ranks + there).ravel(), minlength=num_ranks**2
            )
            traffic[layer - 1] = ways.reshape(num_ranks, num_ranks) / ways.sum()
        now = there[:, 0]
    node = np.arange(num_ranks) // (num_ranks // nodes)
    mean = traffic.mean(axis=0) if layers > 1 else np.zeros((num_ranks, num_ranks))
    return PlacementScore(
        rank_changes=float(mean[~np.eye(num_ranks, dtype=bool)].sum()),
        node_changes=float(mean[node[:, np.newaxis] != node].sum()),
        largest_load=largest,
        by_layer=tuple(float(ways.sum() - ways.trace()) for ways in traffic),
        traffic=tuple(tuple(row) for row in mean.tolist()),
    )


def mean_score(scores: Sequence[PlacementScore]) -> PlacementScore:
    """The mean of several scores."""
    return PlacementScore(
        rank_changes=float(np.mean([score.rank_changes for score in scores])),
        node_changes=float(np.mean([score.node_changes for score in scores])),
        largest_load=float(np.mean([score.largest_load for score in scores])),
        by_layer=tuple(np.mean([score.by_layer for score in scores], axis=0).tolist()),
        traffic=tuple(map(tuple, np.mean([score.traffic for score in scores], axis=0).tolist())),
    )
