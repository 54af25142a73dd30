"""Costs of sequences that are longer than those that were measured.

What layers compute for each position grows as sequences do, attention as their square. So costs at
two lengths tell those at a third.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from hyparflow.model.graph import FlatGraph
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs.tensor_sizes import bytes_per_row

__all__ = ["LONG", "costs_at_length"]

LONG = 1024  # positions; costs of longer sequences are reckoned, and only these are divided


def costs_at_length(graph: FlatGraph, length: int, costs_of: Callable[[FlatGraph], Costs]) -> Costs:
    """The costs of a model's operations for sequences of this length.

    Args:
        graph: the model's.
        length: of sequences.
        costs_of: finds the costs of a graph without open lengths.
    """
    if length <= LONG:
        return dataclasses.replace(costs_of(graph.at_length(length)), length=length)
    short, long = (costs_of(graph.at_length(count)) for count in (LONG // 2, LONG))
    tensors = [bytes_per_row(x) for x in graph.at_length(length).tensors]
    return _continued(short, long, length, np.array(tensors, float))


def _continued(short: Costs, long: Costs, length: int, tensors: np.ndarray) -> Costs:
    """The costs at a length, from those at LONG // 2 and at LONG."""
    names = ("forward", "backward", "fused", "kept", "working")
    parts = [_parts(getattr(short, name), getattr(long, name), length) for name in names]
    sums = {name: linear + square for name, (linear, square) in zip(names, parts, strict=True)}
    shares = []
    for linear, square in parts:
        total = linear + square
        share = np.divide(linear, total, out=np.ones_like(total), where=total > 0)
        shares.append(share if share.ndim == 1 else share[:, -1])
    return dataclasses.replace(
        long, **sums, tensors=tensors, length=length, linear=np.array(shares)
    )


def _parts(short: np.ndarray, long: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """What grows as the length does, and what as its square, at this length."""
    each_short, each_long = short / (LONG // 2), long / LONG
    slope = np.maximum(0.0, (each_long - each_short) / (LONG - LONG // 2))
    constant = each_long - slope * LONG
    slope = np.where(constant < 0, each_long / LONG, slope)
    return np.maximum(0.0, constant) * length, slope * float(length) ** 2
