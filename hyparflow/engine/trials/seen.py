"""The user's first labels and sample weights, on which losses and metrics are tried, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

__all__ = ["Look", "SeenLabels", "seen_labels"]


@dataclass
class SeenLabels:
    """Rows of the data, as arrays in the user's structure.

    Attributes:
        y: labels.
        sample_weight: sample weights, or None.
    """

    y: Any
    sample_weight: Any

    def values(self) -> list[float]:
        """Labels that may have a meaning of their own: the least, the greatest, rare and frequent.

        Among labels of which nearly each is another number, one that is there twice is the
        value for a missing label.
        """
        found: list[float] = []
        for leaf in keras.tree.flatten(self.y):
            if leaf is None or leaf.dtype.kind not in "iufb" or not leaf.size:
                continue
            numbers = np.asarray(leaf, float)
            values, counts = np.unique(numbers[np.isfinite(numbers)], return_counts=True)
            if len(values):
                order = values[np.argsort(counts, kind="stable")]
                found += [values[0], values[-1], order[-1], order[0]]
        return list(dict.fromkeys(map(float, found)))


Look = Callable[[], SeenLabels | None]  # gives the user's first labels, or None


def seen_labels(parts: tuple[Any, Any] | None) -> SeenLabels | None:
    """The labels and sample weights in `parts`; None if there are no labels."""
    if parts is None or all(leaf is None for leaf in keras.tree.flatten(parts[0])):
        return None
    return SeenLabels(*parts)
