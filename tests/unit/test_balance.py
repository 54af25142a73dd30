"""The load balancer against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from hyparflow.pipeline.partition import balance


def slowest(costs: Sequence[float], boundaries: Sequence[int]) -> float:
    """Cost of the most expensive stage."""
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(boundaries))


def brute_force(costs: Sequence[float], stages: int, allowed: Sequence[bool]) -> float | None:
    """The best that any choice of allowed cuts gives; None if there is none."""
    cuts = [cut for cut in range(1, len(costs)) if allowed[cut]]
    choices = itertools.combinations(cuts, stages - 1)
    return min((slowest(costs, (0, *c, len(costs))) for c in choices), default=None)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_balance_equals_brute_force(stages: int) -> None:
    rng = random.Random(stages)
    impossible = 0
    for _ in range(150):
        count = rng.randint(stages, 9)
        costs = [float(rng.choice([0, 0, 1, 2, 3, 5, 10, 40])) for _ in range(count)]
        allowed = [rng.random() < 0.75 for _ in range(count + 1)]
        best = brute_force(costs, stages, allowed)
        if best is None:
            impossible += 1
            with pytest.raises(ValueError, match="Too few places to cut"):
                balance(costs, stages, allowed)
            continue
        boundaries = balance(costs, stages, allowed)
        assert boundaries[0] == 0 and boundaries[-1] == count
        assert len(boundaries) == stages + 1
        assert list(boundaries) == sorted(set(boundaries))
        assert all(allowed[cut] for cut in boundaries[1:-1])
        assert slowest(costs, boundaries) == best
    assert impossible < 75


def test_balance_without_forbidden_cuts() -> None:
    assert balance([1, 1, 1, 1, 4], 2) == (0, 4, 5)
    assert balance([0, 0, 0], 3) == (0, 1, 2, 3)


def test_too_few_cuts_message() -> None:
    with pytest.raises(ValueError) as caught:
        balance([1, 1, 1, 1], 3, [True, False, True, False, True])
    assert "Received: num_partitions=3 for 4 operations with 1 possible cuts." in str(caught.value)
    assert "Use fewer partitions." in str(caught.value)


def test_very_deep_models_are_cut_into_many_stages() -> None:
    rng = random.Random(7)
    costs = [rng.random() for _ in range(16_660)]
    boundaries = balance(costs, 64)
    assert len(boundaries) == 65
    # Each stage could hold its share, and no more than the last of its operations beyond it.
    assert slowest(costs, boundaries) <= sum(costs) / 64 + max(costs)
