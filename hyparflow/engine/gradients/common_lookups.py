"""Which embeddings are looked up once for all samples, as positions are, not by each sample.

The gradient of a lookup is sparse: rows and values. What each sample looks up is joined over
micro-batches and replicas, as one process would have it. What all samples have in common, one
process looks up once, so there the values must be added up: optimizers square values row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["common_lookups"]

_SAMPLES = (7, 11)  # two numbers of samples that no other size is likely to follow


def common_lookups(gradients: Callable[..., list[Any]], types: Any) -> frozenset[int]:
    """Positions of the weights that are looked up as often whatever the number of samples.

    Args:
        gradients: the gradients of the weights, to be traced for arguments of these types.
        types: a TensorSpec for each tensor that it takes; nothing is computed.
    """
    try:
        few, many = (_rows(gradients, types, samples) for samples in _SAMPLES)
    except Exception:  # a model that must run uncompiled: what it looks up cannot be known
        return frozenset()
    pairs = enumerate(zip(few, many, strict=True))
    return frozenset(position for position, (a, b) in pairs if a is not None and a == b)


def _rows(gradients: Callable[..., list[Any]], types: Any, samples: int) -> list[int | None]:
    """For each weight, how many of its rows are looked up; None where that cannot be told."""
    found: list[int | None] = []

    def trace(*args: Any) -> None:
        for gradient in gradients(*args):
            is_sparse = isinstance(gradient, tf.IndexedSlices)
            found.append(gradient.values.shape[0] if is_sparse else None)

    def with_samples(spec: Any) -> Any:
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
            return spec
        return tf.TensorSpec([samples, *spec.shape[1:]], spec.dtype)

    types = keras.tree.map_structure(with_samples, types)
    tf.function(trace, autograph=False).get_concrete_function(*types)
    return found
