"""The tensors in nested structures, and structures of other tensors. Public API of TensorFlow only;
without it structures would have to be flat everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["packed_like", "tensors_of", "unique"]


def tensors_of(structure: Any) -> list[Any]:
    """The tensors in `structure`, those of composite ones too."""
    flat = tf.nest.flatten(structure, expand_composites=True)
    return [x for x in flat if isinstance(x, tf.Tensor | tf.TensorSpec)]


def packed_like(structure: Any, tensors: Sequence[Any]) -> Any:
    """`structure` with these in place of its tensors."""
    following = iter(tensors)
    flat = [
        next(following) if isinstance(x, tf.Tensor) else x
        for x in tf.nest.flatten(structure, expand_composites=True)
    ]
    return tf.nest.pack_sequence_as(structure, flat, expand_composites=True)


def unique(tensors: Sequence[Any]) -> list[Any]:
    """Each tensor once, in order."""
    return list({x.ref(): x for x in tensors}.values())
