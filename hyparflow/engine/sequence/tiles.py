"""Parts of a chunk that the last section takes one by one: its logits would not fit together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.pipeline.token_layout import Positions

__all__ = ["joined", "slicer", "tiles_of"]


def tiles_of(piece: Positions, most: int) -> list[Positions]:
    """A piece of positions in tiles, each of at most so many."""
    start, stop = piece
    return list(itertools.pairwise([*range(start, stop, most), stop]))


def slicer(piece: Positions, tile: Positions) -> Callable[[Any], Any]:
    """Takes a tile out of tensors of a piece of positions."""
    first, last, length = tile[0] - piece[0], tile[1] - piece[0], piece[1] - piece[0]

    def part(x: Any) -> Any:
        if piece == tile or x is None or x.shape.rank < 2 or x.shape[1] != length:
            return x
        return x[:, first:last]

    return part


def joined(parts: Sequence[Any]) -> Any:
    """What tiles or chunks made, one after another."""
    return parts[0] if len(parts) == 1 else tf.concat(parts, 1)
