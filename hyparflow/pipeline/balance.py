"""Cuts a list of costs into contiguous parts of about equal cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["balance"]


def balance(
    costs: Sequence[float], num_stages: int, allowed: Sequence[bool] | None = None
) -> tuple[int, ...]:
    """The contiguous division whose most expensive stage is cheapest, by dynamic programming.

    Args:
        costs: cost of each operation, in order.
        num_stages: number of stages, at most ``len(costs)``.
        allowed: for each boundary 0..n, whether a cut may stand there.

    Returns:
        ``num_stages + 1`` boundaries, from 0 to n.

    Raises:
        ValueError: if too few cuts are allowed.
    """
    count = len(costs)
    cuttable = np.ones(count + 1, bool) if allowed is None else np.asarray(allowed, bool)
    before = np.concatenate([[0.0], np.cumsum(np.asarray(costs, float))])
    best = np.where(cuttable, before, np.inf)  # one stage over operations [0, j)
    best[0] = np.inf
    best[count] = before[count]
    previous = np.zeros((num_stages, count + 1), int)
    for stage in range(1, num_stages):
        following = np.full(count + 1, np.inf)
        for end in range(stage + 1, count + 1):
            if end < count and not cuttable[end]:
                continue
            slowest = np.maximum(best[:end], before[end] - before[:end])
            start = int(np.argmin(slowest))
            following[end], previous[stage, end] = slowest[start], start
        best = following
    if not np.isfinite(best[count]):
        raise ValueError(
            "Too few places to cut the model: operations that share changing state (a random "
            "seed, moving statistics) must stay in one partition. "
            f"Received: num_partitions={num_stages} for {count} operations with "
            f"{int(cuttable[1:count].sum())} possible cuts. Use fewer partitions."
        )
    ends = [count]
    for stage in range(num_stages - 1, 0, -1):
        ends.append(int(previous[stage, ends[-1]]))
    return (0, *reversed(ends))
