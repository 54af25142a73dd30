"""Predictions in the order of their times; no more of them are played than the order needs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from hyparflow.planning.search.predict import Prediction

__all__ = ["best_first", "fastest"]

_EDGE = 1.02


def best_first(predictions: Sequence[Prediction]) -> Iterator[Prediction]:
    """Yield the fastest prediction first; of those that are as fast, in the order given.

    A prediction is played once no other can be faster than its lower bound.
    """
    waiting = [(_weighted(p, p.least_seconds), False, n) for n, p in enumerate(predictions)]
    heapq.heapify(waiting)
    while len(waiting) > 1:
        _, is_played, number = waiting[0]
        prediction = predictions[number]
        if is_played:
            heapq.heappop(waiting)
            yield prediction
        else:
            seconds = _weighted(prediction, prediction.step_seconds)
            heapq.heapreplace(waiting, (seconds, True, number))
    if waiting:
        yield predictions[waiting[0][-1]]


def fastest(predictions: Sequence[Prediction]) -> Prediction:
    """The first prediction of `best_first`."""
    return next(best_first(predictions))


def _weighted(prediction: Prediction, seconds: float) -> float:
    """The seconds; what computes again must be faster by more than predictions are exact."""
    return seconds * (1.0 if prediction.saving.recompute is None else _EDGE)
