"""A trial of a step: compares its results for some rows at once with those for parts of them.

A gradient, a number that a step returns, or an update of a metric may be a mean over the rows of
its batch, a sum, or neither; nothing in a step says which. So the step runs on a few of its first
rows, on each half of them, and once more on one half. If a step is random, or rows depend on each
other, a half and sixteen copies of it tell a mean from a sum. The random numbers of a half are its
part of those of all rows (`hyparflow.engine.custom_steps.draws`).

What a batch adds to a metric is added up over replicas, so it must not depend on the metric's
state: one half is tried once more from the state after all rows. A maximum of batch means looks
like a mean in its first update, but not in that one.

Trials are repeated while the model trains. By then gradients may be no more than rounding, so what
is small next to the values of earlier trials tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import keras
import numpy as np

from hyparflow.engine.custom_steps.kinds import (
    NEITHER,
    UNKNOWN,
    Key,
    Seen,
    by_size,
    changed,
    floors,
    halved,
    is_sum_on_top,
    kind_of,
    of_state,
)
from hyparflow.pipeline.row_span import RowSpan

__all__ = [
    "ALL",
    "FEW",
    "Run",
    "Verdict",
    "agreed",
    "few_rows",
    "joined",
    "mapped",
    "row_count",
    "tried",
]

FEW = 4  # rows of a half
ALL = 1 << 62
_COPIES = 16
_LATER = 10  # tolerances of later trials: rounding is larger next to what is left of gradients
_TOLERANCES = {"float64": 1e-8, "float32": 1e-4}


@dataclass
class Verdict:
    """The findings of a trial.

    Attributes:
        kinds: the kind of each value.
        scaled: calls of optimizers with gradients of a loss that the optimizer scales; None if
            something else depends on the scaled loss.
        common: sparse gradients that look up the same rows for all samples.
        coupled: values that are neither a mean over rows nor a sum.
        changed: values of which a later trial found another kind.
        worst: words for rows made worse -> values that are coupled for such rows.
        sizes: the largest size of each value.
        of_results: values that depend on metrics' results.
        error: why there was no trial.
    """

    kinds: dict[Key, str] = field(default_factory=dict)
    scaled: set[int] | None = field(default_factory=set)
    common: set[Key] = field(default_factory=set)
    coupled: set[Key] = field(default_factory=set)
    changed: set[Key] = field(default_factory=set)
    of_results: set[Key] = field(default_factory=set)
    worst: dict[str, set[Key]] = field(default_factory=dict)
    sizes: dict[Key, float] = field(default_factory=dict)
    error: str = ""


class Run(Protocol):
    """Runs a step, and sets everything back."""

    def __call__(
        self,
        data: Any,
        span: RowSpan,
        disturbed: bool = False,
        state: dict[int, np.ndarray] | None = None,
    ) -> Seen:
        """The values that the step computes.

        Args:
            data: the batch.
            span: the places of its rows in the whole batch.
            disturbed: whether metrics' results are made wrong.
            state: the values with which variables of metrics begin; None: their initial ones.
        """


def tried(
    run: Run, data: Any, dtype: str, most: int = FEW, before: Verdict | None = None
) -> Verdict:
    """Run a step on a few rows.

    Args:
        run: runs the step.
        data: the replica's batch.
        dtype: the type in which the step computes.
        most: the largest number of rows of a half.
        before: that of earlier trials; None for the first.
    """
    both, one, other = few_rows(data, most)
    half = row_count(one)
    first, second = RowSpan(0, half, 2 * half), RowSpan(half, half, 2 * half)
    whole = run(both, RowSpan(0, 2 * half, 2 * half))
    parts = [run(one, first), run(other, second)]
    limit = _TOLERANCES.get(dtype, 2e-2) * (1 if before is None else _LATER)
    # Metrics, and values computed from them, may be of float32.
    bound = max(limit, _TOLERANCES["float32"])
    verdict = Verdict()
    _add_kinds(verdict, whole, parts, limit, bound, {} if before is None else before.sizes)
    verdict.common = {k for k, n in whole.rows.items() if parts[0].rows.get(k) == n}
    if before is None:
        disturbed = run(one, first, disturbed=True)
        verdict.of_results = changed(parts[0], disturbed, 1e-9)
        verdict.scaled = halved(parts[0], disturbed, limit)
    of_results = (before or verdict).of_results
    if any(key[0] == "metric" for key in whole.values):
        again = run(one, first, state=whole.state)
        verdict.coupled = of_state(parts[0], again, whole.state, bound) - of_results
    unclear = {key for key, kind in verdict.kinds.items() if kind == NEITHER}
    if unclear and before is None:
        many = half * _COPIES
        copies = run(joined([one] * _COPIES), RowSpan(0, many, many))
        few = run(one, RowSpan(0, half, many))
        for key in unclear:
            verdict.kinds[key] = by_size(few.values.get(key), copies.values.get(key))
    elif unclear:
        twice = run(joined([one, one]), RowSpan(0, 2 * half, 2 * half))
        for key in unclear:
            verdict.kinds[key] = UNKNOWN  # that of the first trial stays
        unclear -= {key for key in unclear if is_sum_on_top(key, whole, parts, twice, limit)}
    verdict.coupled |= unclear
    return verdict


def _add_kinds(
    verdict: Verdict,
    whole: Seen,
    parts: list[Seen],
    limit: float,
    bound: float,
    earlier: dict[Key, float],
) -> None:
    """Add the kinds and sizes of all values to a verdict.

    Args:
        verdict: the verdict.
        whole, parts: the values for all rows, and for each half.
        limit, bound: the largest differences, next to their size, of gradients and of others.
        earlier: the sizes of values in earlier trials.
    """
    least = floors(whole, limit, earlier)
    for key, value in whole.values.items():
        parted = [part.values.get(key) for part in parts]
        most = limit if key[0] == "gradient" else bound
        size = earlier.get(key, 0.0)
        verdict.kinds[key] = kind_of(value, parted, most, least.get(key, 0.0), size)
        known = [float(np.linalg.norm(x)) for x in (value, *parted) if x is not None]
        verdict.sizes[key] = max([size for size in known if np.isfinite(size)], default=0.0)


def few_rows(data: Any, most: int = FEW) -> tuple[Any, Any, Any]:
    """A few rows of a batch, and each half of them, of at most `most` rows."""
    count = row_count(data)
    half = min(most, max(1, count // 2))
    one = _rows(data, range(half))
    other = _rows(data, [min(half + n, count - 1) for n in range(half)])
    return joined([one, other]), one, other


def row_count(data: Any) -> int:
    """The number of rows of a batch."""
    return next(len(x) for x in keras.tree.flatten(data) if x is not None and len(x.shape))


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
        total.changed |= verdict.changed
        total.of_results |= verdict.of_results
        for words, keys in verdict.worst.items():
            total.worst[words] = total.worst.get(words, set()) | keys
        for key, size in verdict.sizes.items():
            total.sizes[key] = max(size, total.sizes.get(key, 0.0))
        total.error = total.error or verdict.error
    return total


def _rows(data: Any, numbers: Iterable[int]) -> Any:
    chosen = list(numbers)
    return mapped(lambda x: keras.ops.take(x, chosen, axis=0), data)


def joined(parts: list[Any]) -> Any:
    """Batches, one behind the other."""
    return keras.tree.map_structure(
        lambda *x: x[0] if x[0] is None or not len(x[0].shape) else keras.ops.concatenate(x, 0),
        *parts,
    )


def mapped(function: Callable[[Any], Any], data: Any) -> Any:
    """A batch with `function` applied to its arrays."""
    return keras.tree.map_structure(
        lambda x: x if x is None or not len(x.shape) else function(x), data
    )
