"""What tests of an optimizer's state that replicas share out look at."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyparflow.engine.weights.holdings import bytes_here

__all__ = ["bytes_held", "unlike"]


def unlike(found: Any, expected: Any) -> list[str]:
    """The arrays that differ from those expected, with their numbers."""
    pairs = list(zip(found, expected, strict=True))
    odd = [n for n, (a, b) in enumerate(pairs) if not np.allclose(a, b, rtol=1e-10, atol=1e-12)]
    return [f"{n}: {pairs[n][0]} not {pairs[n][1]}" for n in odd]


def bytes_held(model: Any) -> int:
    """The bytes of the optimizer's slots that this rank has memory for."""
    return sum(bytes_here(v) for v in model.optimizer.variables if len(v.shape))
