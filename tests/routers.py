"""Tokens of made-up routers, and what plain Python says of a placement."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from hyparflow.experts.placement import ExpertPlacement
from hyparflow.experts.trace import RoutingTrace


def likely_trace(
    num_experts: int,
    num_layers: int,
    tokens: int,
    seed: int = 0,
    liked: float = 0.7,
    top_k: int = 1,
) -> RoutingTrace:
    """Tokens of which most go from an expert to its one successor, and the others anywhere."""
    random = np.random.default_rng(seed)
    chosen = np.empty((tokens, num_layers, top_k), int)
    chosen[:, 0, 0] = random.integers(0, num_experts, tokens)
    for layer in range(1, num_layers):
        successor = random.permutation(num_experts)[chosen[:, layer - 1, 0]]
        anywhere = random.integers(0, num_experts, tokens)
        chosen[:, layer, 0] = np.where(random.random(tokens) < liked, successor, anywhere)
    for choice in range(1, top_k):
        chosen[:, :, choice] = (chosen[:, :, choice - 1] + 1) % num_experts
    return RoutingTrace(chosen, num_experts, "made-up")


@st.composite
def traces(
    draw: st.DrawFn, most_experts: int = 8, most_layers: int = 4, most_tokens: int = 30
) -> RoutingTrace:
    """Any trace, of any small size."""
    num_experts = draw(st.integers(1, most_experts))
    layers, tokens = draw(st.integers(1, most_layers)), draw(st.integers(1, most_tokens))
    top_k = draw(st.integers(1, min(3, num_experts)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    order = random.permuted(np.tile(np.arange(num_experts), (tokens, layers, 1)), axis=2)
    if draw(st.booleans()):  # some experts are chosen far more often
        order = (
            np.minimum(order[:, :, :1], random.integers(0, num_experts)) if top_k == 1 else order
        )
    return RoutingTrace(order[:, :, :top_k], num_experts)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def followed(placement: ExpertPlacement, trace: RoutingTrace) -> dict[str, float]:
    """What the tokens of a trace do, one after the other."""
    per_node = placement.num_ranks // placement.nodes
    ways = other_rank = other_node = 0
    loads = [[0] * placement.num_ranks for _ in range(placement.num_layers)]
    for token, choices in enumerate(trace.experts.tolist()):
        now = token % placement.num_ranks
        for layer, chosen in enumerate(choices):
            ends = [destination(placement, layer, expert, now) for expert in chosen]
            for end in ends:
                loads[layer][end] += 1
                ways += layer > 0
                other_rank += layer > 0 and end != now
                other_node += layer > 0 and end // per_node != now // per_node
            now = ends[0]
    return {
        "rank_changes": other_rank / ways if ways else 0.0,
        "node_changes": other_node / ways if ways else 0.0,
        "largest_load": max(max(row) * len(row) / sum(row) for row in loads),
    }


def destination(placement: ExpertPlacement, layer: int, expert: int, rank: int) -> int:
    """Where a token on a rank goes: nowhere if it can stay, else to the same node if it can."""
    per_node = placement.num_ranks // placement.nodes
    holders = placement.ranks[layer][expert]
    if rank in holders:
        return rank
    near = [holder for holder in holders if holder // per_node == rank // per_node]
    return (near or holders)[rank % len(near or holders)]


def all_layers(num_experts: int, num_ranks: int) -> Iterator[tuple[int, ...]]:
    """Each way to deal experts to ranks that hold equally many."""
    slots = [rank for rank in range(num_ranks) for _ in range(num_experts // num_ranks)]
    return iter(sorted(set(itertools.permutations(slots))))
