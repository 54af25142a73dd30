"""A trial of a step: compares its results for some rows at once with those for parts of them.

A gradient, a number that a step returns, or an update of a metric may be a mean over the rows of
its batch, a sum, or neither; nothing in a step says which. So the step runs on a few of its first
rows, on each half of them, and once more on one half. If a step is random, or rows depend on each
other, a half and sixteen copies of it tell a mean from a sum. The random numbers of a half are its
part of those of all rows (`hyparflow.engine.custom_steps.draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from hyparflow.pipeline.row_span import RowSpan

__all__ = [
    "ALL",
    "FEW",
    "MEAN",
    "NEITHER",
    "ROWS",
    "SUM",
    "UNKNOWN",
    "WEIGHTED_SUM",
    "Seen",
    "Verdict",
    "agreed",
    "few_rows",
    "tried",
]

MEAN = "mean"
SUM = "sum"
WEIGHTED_SUM = "weighted sum"  # times the number of rows, as in a metric of means
ROWS = "rows"
NEITHER = "neither"
UNKNOWN = "unknown"
FEW = 4  # rows of a half
ALL = 1 << 62
_COPIES = 16
Key = tuple[Any, ...]
_TOLERANCES = {"float64": 1e-8, "float32": 1e-4}


@dataclass
class Seen:
    """The values that one run of a step has computed.

    Attributes:
        values: by key: ("gradient", call, position), ("metric", variable), ("log", leaf).
        rows: how many rows each sparse gradient has looked up.
    """

    values: dict[Key, np.ndarray] = field(default_factory=dict)
    rows: dict[Key, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """The findings of a trial.

    Attributes:
        kinds: the kind of each value.
        scaled: calls of optimizers with gradients of a loss that the optimizer scales; None if
            something else depends on the scaled loss.
        common: sparse gradients that look up the same rows for all samples.
        coupled: values that are neither a mean over rows nor a sum.
        of_results: values that depend on metrics' results.
        error: why there was no trial.
    """

    kinds: dict[Key, str] = field(default_factory=dict)
    scaled: set[int] | None = field(default_factory=set)
    common: set[Key] = field(default_factory=set)
    coupled: set[Key] = field(default_factory=set)
    of_results: set[Key] = field(default_factory=set)
    error: str = ""


# (batch, places of its rows in the whole batch, whether metrics' results are made wrong) -> values
Run = Callable[[Any, RowSpan, bool], Seen]


def tried(run: Run, data: Any, dtype: str, most: int = FEW) -> Verdict:
    """Run a step on a few rows.

    Args:
        run: runs the step, and sets everything back.
        data: the replica's batch.
        dtype: the type in which the step computes.
        most: the largest number of rows of a half.
    """
    both, one, other = few_rows(data, most)
    half = len(next(x for x in keras.tree.flatten(one) if x is not None and len(x.shape)))
    first, second = RowSpan(0, half, 2 * half), RowSpan(half, half, 2 * half)
    whole = run(both, RowSpan(0, 2 * half, 2 * half), False)
    parts = [run(one, first, False), run(other, second, False)]
    disturbed = run(one, first, True)
    verdict = Verdict()
    limit = _TOLERANCES.get(dtype, 2e-2)
    floors = _floors(whole, limit)
    for key, value in whole.values.items():
        parted = [part.values.get(key) for part in parts]
        # Metrics, and values computed from them, may be of float32.
        bound = limit if key[0] == "gradient" else max(limit, _TOLERANCES["float32"])
        verdict.kinds[key] = _kind(value, parted, bound, floors.get(key, 0.0))
    verdict.common = {k for k, n in whole.rows.items() if parts[0].rows.get(k) == n}
    verdict.of_results = _changed(parts[0], disturbed, 1e-9)
    verdict.scaled = _halved(parts[0], disturbed, limit)
    unclear = {key for key, kind in verdict.kinds.items() if kind == NEITHER}
    if unclear:
        many = half * _COPIES
        copies = run(_joined([one] * _COPIES), RowSpan(0, many, many), False)
        few = run(one, RowSpan(0, half, many), False)
        for key in unclear:
            verdict.kinds[key] = _by_size(few.values.get(key), copies.values.get(key))
        verdict.coupled = unclear
    return verdict


def few_rows(data: Any, most: int = FEW) -> tuple[Any, Any, Any]:
    """A few rows of a batch, and each half of them, of at most `most` rows."""
    count = next(len(x) for x in keras.tree.flatten(data) if x is not None and len(x.shape))
    half = min(most, max(1, count // 2))
    one = _rows(data, range(half))
    other = _rows(data, [min(half + n, count - 1) for n in range(half)])
    return _joined([one, other]), one, other


def agreed(everyone: Iterable[Verdict]) -> Verdict:
    """One verdict from those of all replicas: for each value the first that is known."""
    total = Verdict()
    for verdict in everyone:
        for key, kind in verdict.kinds.items():
            if total.kinds.get(key, UNKNOWN) == UNKNOWN:
                total.kinds[key] = kind
        parts = total.scaled, verdict.scaled
        total.scaled = None if None in parts else set().union(*parts)  # type: ignore[arg-type]
        total.common |= verdict.common
        total.coupled |= verdict.coupled
        total.of_results |= verdict.of_results
        total.error = total.error or verdict.error
    return total


def _floors(seen: Seen, limit: float) -> dict[Key, float]:
    """For each gradient, the size up to which it is rounding, next to the others of its call."""
    gradients = {key: x for key, x in seen.values.items() if key[0] == "gradient"}
    sizes = {key: float(np.linalg.norm(x)) for key, x in gradients.items()}
    largest: dict[Any, float] = {}
    for key, size in sizes.items():
        call = key[1]
        largest[call] = max(size, largest.get(call, 0.0))
    return {key: largest[key[1]] * limit / 100 for key in sizes}


def _kind(whole: np.ndarray, parts: list[np.ndarray | None], limit: float, floor: float) -> str:
    """How the value for all rows follows from those for two halves."""
    one, other = parts
    if one is None or other is None:
        return UNKNOWN
    if whole.shape != one.shape:
        grows = whole.ndim and one.ndim and whole.shape[0] == one.shape[0] + other.shape[0]
        return ROWS if grows and whole.shape[1:] == one.shape[1:] else NEITHER
    size = max(float(np.linalg.norm(x)) for x in (whole, one, other))
    if not np.isfinite(size) or size <= floor:
        return UNKNOWN
    is_sum = float(np.linalg.norm(whole - (one + other))) <= limit * size
    is_mean = float(np.linalg.norm(whole - (one + other) / 2)) <= limit * size
    if is_sum and is_mean:
        return UNKNOWN
    if float(np.linalg.norm(whole - 2 * (one + other))) <= limit * size:
        return WEIGHTED_SUM
    return SUM if is_sum else MEAN if is_mean else NEITHER


def _by_size(few: np.ndarray | None, copies: np.ndarray | None) -> str:
    """The kind by size: a mean stays, or as noise shrinks to a quarter; a sum grows fourfold."""
    if few is None or copies is None or few.shape != copies.shape:
        return UNKNOWN
    before, after = float(np.linalg.norm(few)), float(np.linalg.norm(copies))
    if not np.isfinite(before + after) or before == 0:
        return UNKNOWN
    return SUM if after > 2 * before else MEAN


def _changed(first: Seen, second: Seen, limit: float) -> set[Key]:
    """The values that differ between two runs."""
    return {
        key
        for key, value in first.values.items()
        if key not in second.values
        or value.shape != second.values[key].shape
        or not np.allclose(value, second.values[key], rtol=limit, atol=0, equal_nan=True)
    }


def _halved(first: Seen, second: Seen, limit: float) -> set[int] | None:
    """The calls whose gradients a second run halves; None if it halves other values, too."""
    both: dict[Key, list[tuple[np.ndarray, np.ndarray]]] = {}
    for key, value in first.values.items():
        other = second.values.get(key, value)
        if value.shape == other.shape:
            group = key[:2] if key[0] == "gradient" else key
            both.setdefault(group, []).append((np.ravel(value), np.ravel(other)))
    halved = set()
    for group, pairs in both.items():
        value, other = (np.concatenate(column) for column in zip(*pairs, strict=True))
        size = float(np.linalg.norm(value))
        if np.isfinite(size) and size and float(np.linalg.norm(2 * other - value)) <= limit * size:
            halved.add(group)
    calls = {group[1] for group in halved if group[0] == "gradient"}
    return calls if len(calls) == len(halved) else None


def _rows(data: Any, numbers: Iterable[int]) -> Any:
    chosen = list(numbers)
    return _mapped(lambda x: keras.ops.take(x, chosen, axis=0), data)


def _joined(parts: list[Any]) -> Any:
    return keras.tree.map_structure(
        lambda *x: x[0] if x[0] is None or not len(x[0].shape) else keras.ops.concatenate(x, 0),
        *parts,
    )


def _mapped(function: Callable[[Any], Any], data: Any) -> Any:
    return keras.tree.map_structure(
        lambda x: x if x is None or not len(x.shape) else function(x), data
    )
