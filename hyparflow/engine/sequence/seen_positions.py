"""Which positions may count in the loss, where keys are left out as padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.pipeline.token_layout import Positions

__all__ = ["may_count", "require_right"]


def may_count(there: np.ndarray, cores: Sequence[AttentionCore], at_padding: bool) -> np.ndarray:
    """Which positions of each row are computed right.

    A query that sees no key at all is not: softmax of nothing is not defined, and Keras's layers
    give it the mean of all values, or zeros.

    Args:
        there: of each row and position, whether it is no padding.
        cores: the attention layers that leave padding out.
        at_padding: whether what is computed at positions of padding is right.
    """
    length = there.shape[1]
    count = np.concatenate([np.zeros((len(there), 1), int), there.cumsum(1)], 1)
    position = np.arange(length)
    may = there | at_padding
    for core in cores:
        first, last = core.pattern.distances
        start = position - last if last is not None else np.zeros_like(position)
        stop = position - first + 1 if first is not None else np.full_like(position, length)
        start, stop = (np.clip(x, 0, length) for x in (start, stop))
        may &= count[:, stop] > count[:, start]
    return may


def require_right(counted: Any, may: np.ndarray, positions: Positions) -> None:
    """Check that what counts in the loss is computed right.

    Args:
        counted: which of these positions count.
        may: from `may_count`, of all positions.
        positions: from, to.

    Raises:
        ValueError: naming a row and a position for which it is not.
    """
    start, stop = positions
    wrong = np.argwhere(np.asarray(counted) & ~may[:, start:stop])
    if len(wrong):
        row, position = wrong[0]
        raise ValueError(
            "Where sequences are divided, positions of padding, and those before the first that is "
            f"none, must not count in the loss. Received: position {start + position} of row {row} "
            "of a micro-batch, which counts. Pad sequences at their end, and pass sample weights "
            "that are 0 there."
        )
