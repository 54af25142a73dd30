"""How a value for all rows of a batch follows from its values for parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = [
    "MEAN",
    "NEITHER",
    "ROWS",
    "SUM",
    "UNKNOWN",
    "WEIGHTED_SUM",
    "Key",
    "Seen",
    "by_size",
    "changed",
    "floors",
    "group_of",
    "halved",
    "is_sum_on_top",
    "kind_of",
    "of_state",
]

MEAN = "mean"
SUM = "sum"
WEIGHTED_SUM = "weighted sum"  # times the number of rows, as in a metric of means
ROWS = "rows"
NEITHER = "neither"
UNKNOWN = "unknown"
Key = tuple[Any, ...]


@dataclass
class Seen:
    """The values that one run of a step has computed.

    Attributes:
        values: by key: ("gradient", call, position), ("metric", variable), ("log", leaf).
        rows: how many rows each sparse gradient has looked up.
        state: the values of metrics' variables after the run, by their number.
    """

    values: dict[Key, np.ndarray] = field(default_factory=dict)
    rows: dict[Key, int] = field(default_factory=dict)
    state: dict[int, np.ndarray] = field(default_factory=dict)


def group_of(key: Key) -> Key:
    """What is reported once: the gradients of one call of an optimizer, a metric's state, a log."""
    return key[:2] if key[0] == "gradient" else key


def floors(seen: Seen, limit: float, earlier: dict[Key, float]) -> dict[Key, float]:
    """For each gradient, the size up to which it is rounding, next to the others of its call."""
    gradients = {key: x for key, x in seen.values.items() if key[0] == "gradient"}
    sizes = {
        key: max(float(np.linalg.norm(x)), earlier.get(key, 0.0)) for key, x in gradients.items()
    }
    largest: dict[Any, float] = {}
    for key, size in sizes.items():
        call = key[1]
        largest[call] = max(size, largest.get(call, 0.0))
    return {key: largest[key[1]] * limit / 100 for key in sizes}


def kind_of(
    whole: np.ndarray,
    parts: Sequence[np.ndarray | None],
    limit: float,
    floor: float = 0.0,
    least: float = 0.0,
) -> str:
    """How the value for all rows follows from those for two halves.

    Args:
        whole, parts: the values.
        limit: the largest difference, next to the size of the values.
        floor: the size up to which values are rounding.
        least: the least size that differences are compared with.
    """
    one, other = parts
    if one is None or other is None:
        return UNKNOWN
    if whole.shape != one.shape:
        grows = whole.ndim and one.ndim and whole.shape[0] == one.shape[0] + other.shape[0]
        return ROWS if grows and whole.shape[1:] == one.shape[1:] else NEITHER
    size = max(float(np.linalg.norm(x)) for x in (whole, one, other))
    if not np.isfinite(size) or size <= floor:
        return UNKNOWN
    size = max(size, least)
    is_sum = float(np.linalg.norm(whole - (one + other))) <= limit * size
    is_mean = float(np.linalg.norm(whole - (one + other) / 2)) <= limit * size
    if is_sum and is_mean:
        return UNKNOWN
    if float(np.linalg.norm(whole - 2 * (one + other))) <= limit * size:
        return WEIGHTED_SUM
    return SUM if is_sum else MEAN if is_mean else NEITHER


def of_state(first: Seen, again: Seen, state: dict[int, np.ndarray], limit: float) -> set[Key]:
    """The metrics' variables to which the same rows add something else in another state."""
    found = set()
    for key, value in first.values.items():
        other, base = again.values.get(key), state.get(key[1])
        if key[0] != "metric" or other is None or base is None or value.shape != other.shape:
            continue
        were, are = np.isfinite(value), np.isfinite(other)
        size = max(float(np.linalg.norm(x[were & are])) for x in (value, other, base))
        differs = float(np.linalg.norm((value - other)[were & are])) > limit * size
        if differs or (are & ~were).any():  # a minimum may begin with infinity
            found.add(key)
    return found


def is_sum_on_top(key: Key, whole: Seen, parts: list[Seen], twice: Seen, limit: float) -> bool:
    """Whether a value is a sum over rows on top of what earlier steps have left in it.

    Gradients that a step adds up by itself over several steps are.
    """
    seen = [run.values.get(key) for run in (whole, *parts, twice)]
    if any(x is None or x.shape != seen[0].shape for x in seen):  # type: ignore[union-attr]
        return False
    total, one, other, copies = (np.asarray(x) for x in seen)
    size = max(float(np.linalg.norm(x)) for x in (total, one, other, copies))
    return float(np.linalg.norm(total - (other - one + copies))) <= limit * size


def by_size(few: np.ndarray | None, copies: np.ndarray | None) -> str:
    """The kind by size: a mean stays, or as noise shrinks to a quarter; a sum grows fourfold."""
    if few is None or copies is None or few.shape != copies.shape:
        return UNKNOWN
    before, after = float(np.linalg.norm(few)), float(np.linalg.norm(copies))
    if not np.isfinite(before + after) or before == 0:
        return UNKNOWN
    return SUM if after > 2 * before else MEAN


def changed(first: Seen, second: Seen, limit: float) -> set[Key]:
    """The values that differ between two runs."""
    return {
        key
        for key, value in first.values.items()
        if key not in second.values
        or value.shape != second.values[key].shape
        or not np.allclose(value, second.values[key], rtol=limit, atol=0, equal_nan=True)
    }


def halved(first: Seen, second: Seen, limit: float) -> set[int] | None:
    """The calls whose gradients a second run halves; None if it halves other values, too."""
    both: dict[Key, list[tuple[np.ndarray, np.ndarray]]] = {}
    for key, value in first.values.items():
        other = second.values.get(key, value)
        if value.shape == other.shape:
            both.setdefault(group_of(key), []).append((np.ravel(value), np.ravel(other)))
    found = set()
    for group, pairs in both.items():
        value, other = (np.concatenate(column) for column in zip(*pairs, strict=True))
        size = float(np.linalg.norm(value))
        if np.isfinite(size) and size and float(np.linalg.norm(2 * other - value)) <= limit * size:
            found.add(group)
    calls = {group[1] for group in found if group[0] == "gradient"}
    return calls if len(calls) == len(found) else None
