"""Random edges between stages."""

from __future__ import annotations

import random

from hyparflow.pipeline.actions import Edge

__all__ = ["random_edges"]


def random_edges(rng: random.Random, stages: int, first: int = 0) -> list[Edge]:
    """Tensors with several consumers, over several stages, some without a gradient.

    Args:
        rng: what draws them.
        stages: the number of stages.
        first: the number of the first tensor.
    """
    edges = []
    for tensor in range(first, first + rng.randint(0, 2 * stages)):
        producer = rng.randrange(stages)
        later = range(producer + 1, stages)
        consumers = sorted(rng.sample(later, rng.randint(0, len(later))))
        carries_gradient = rng.random() < 0.7
        edges += [Edge(tensor, producer, consumer, carries_gradient) for consumer in consumers]
    return edges
