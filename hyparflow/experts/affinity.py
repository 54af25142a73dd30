"""How far the expert of a token tells the one that it has in the next layer."""

from __future__ import annotations

import numpy as np

from hyparflow.experts.trace import RoutingTrace

__all__ = ["foreseen", "ways_of"]


def ways_of(trace: RoutingTrace) -> np.ndarray:
    """Where the tokens of each expert go in the next layer.

    Returns:
        (layers - 1) x experts x experts: of the visits that follow an expert, the share of each
        expert of the next layer; 0 for experts without tokens.
    """
    counts = trace.affinity().astype(float)
    sums = counts.sum(axis=2, keepdims=True)
    return np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)


def foreseen(training: RoutingTrace, held_out: RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """How often the expert of a token is the one that was to be expected.

    Args:
        training: tokens of which the expectation is learnt.
        held_out: tokens that are looked at.

    Returns:
        Two arrays with a share of tokens for each layer after the first: those that have the expert
        that most tokens of their first expert before have, and those that have the one that most
        tokens of all have.
    """
    counts = training.affinity()
    likeliest, most = counts.argmax(axis=2), counts.sum(axis=1).argmax(axis=1)
    experts = held_out.experts
    known, blind = np.zeros(len(counts)), np.zeros(len(counts))
    for layer in range(len(counts)):
        expected = likeliest[layer][experts[:, layer, 0]]
        known[layer] = (experts[:, layer + 1] == expected[:, np.newaxis]).any(axis=1).mean()
        blind[layer] = (experts[:, layer + 1] == most[layer]).any(axis=1).mean()
    return known, blind
