"""Tokens of a made-up router: each expert has two successors that its tokens like to go on to."""

import numpy as np

from hyparflow.experts.trace import RoutingTrace

__all__ = ["made_up_traces"]

LIKED = 0.6  # of an expert's tokens, by its two successors; the rest is spread over all at random


def made_up_traces(
    num_experts: int, num_layers: int, tokens: int, seed: int
) -> tuple[RoutingTrace, RoutingTrace]:
    """Two traces of one router, drawn apart: to learn from, and to judge by."""
    random = np.random.default_rng(seed)
    ways = (1 - LIKED) * random.dirichlet(np.ones(num_experts), (num_layers - 1, num_experts))
    for layer in ways:
        for expert in layer:
            successors = random.choice(num_experts, 2, replace=False)
            expert[successors] += LIKED * random.dirichlet([1, 1])
    return tuple(_drawn(ways, tokens, np.random.default_rng([seed, part])) for part in (1, 2))


def _drawn(ways: np.ndarray, tokens: int, random: np.random.Generator) -> RoutingTrace:
    layers, num_experts, _ = ways.shape
    chosen = np.empty((tokens, layers + 1), int)
    chosen[:, 0] = random.integers(0, num_experts, tokens)
    for layer in range(layers):
        sums = ways[layer].cumsum(axis=1)[chosen[:, layer]]
        at = random.random(tokens)[:, np.newaxis] * sums[:, -1:]
        chosen[:, layer + 1] = (at >= sums).sum(axis=1)
    return RoutingTrace(chosen, num_experts)
