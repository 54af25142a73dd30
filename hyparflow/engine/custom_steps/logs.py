"""Joins the values that a step of the model's own returns over all replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.custom_steps.kinds import ROWS, SUM
from hyparflow.engine.custom_steps.same_calls import Exchange, SameCalls

__all__ = ["joined_logs", "numbers_of", "paths_of"]


def numbers_of(logs: Any) -> list[np.ndarray | None]:
    """The leaves of what a step returned, as arrays; None for those that are no numbers."""
    return [_number(leaf) for leaf in keras.tree.flatten(logs)]


def paths_of(logs: Any) -> list[str]:
    """The names of those leaves."""
    return ["/".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(logs)]


def joined_logs(
    peers: Communicator, same: SameCalls, logs: Any, share: float, kinds: Sequence[str]
) -> Any:
    """The values that a step returned, joined over all replicas. Collective.

    Means are weighted by the replicas' shares of the batch, sums are added up, and values of rows
    are concatenated. Results of metrics are the same on all replicas already. Values that are no
    numbers are taken from the leader.

    Args:
        peers: the replicas.
        same: compares the structures that replicas return.
        logs: what the step returned on this replica.
        share: n / B, its part of the global batch.
        kinds: the kinds of the leaves, as far as they are known.
    """
    leaves = keras.tree.flatten(logs)
    values = numbers_of(logs)
    kinds = [kinds[n] if n < len(kinds) else "" for n in range(len(leaves))]
    names = [
        f"{path} {value.dtype} {value.shape[1:] if kind == ROWS else value.shape}"
        for path, value, kind in zip(paths_of(logs), values, kinds, strict=True)
        if value is not None
    ]
    same.require(Exchange("returns", names, names))
    flat = [
        np.ravel(value) * (1.0 if kind == SUM else share) if share else np.zeros(value.size)
        for value, kind in zip(values, kinds, strict=True)
        if value is not None and kind != ROWS
    ]
    total = np.concatenate([np.zeros(0), *flat])
    peers.sum(total, "the values that a step returns")
    results, start = [], 0
    for leaf, value, kind in zip(leaves, values, kinds, strict=True):
        if value is None:
            results.append(leaf)
        elif kind == ROWS:
            rows = value if share else value[:0]
            results.append(peers.all_gather_rows(np.ascontiguousarray(rows), "rows of a log"))
        else:
            part = total[start : start + value.size].reshape(value.shape)
            start += value.size
            results.append(part.astype(value.dtype) if value.dtype.kind == "f" else part)
    tensors = [x if x is None else tf.convert_to_tensor(x) for x in results]
    return keras.tree.pack_sequence_as(logs, tensors)


def _number(leaf: Any) -> np.ndarray | None:
    if leaf is None:
        return None
    value = np.asarray(leaf)
    if value.dtype.name == "bfloat16":
        value = value.astype(np.float32)
    return value if value.dtype.kind in "fiub" else None
