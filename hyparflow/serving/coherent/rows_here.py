"""The rows that are at this rank, while one iteration of a model is traced."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from hyparflow.engine.experts.travelling_mixture import TravellingMixture
from hyparflow.model.experts.expert_layers import ExpertLayer
from hyparflow.model.experts.expert_loop import Expert

__all__ = ["Mixtures", "RowsHere", "Visit", "leaving_out"]

# The layers with experts of a model, and how rows travel to these.
Mixtures = Sequence[tuple[ExpertLayer, TravellingMixture]]


@dataclass(frozen=True)
class Visit:
    """What a layer with experts was called with.

    Attributes:
        mixture: sends rows to its experts.
        given, routing, expert: see `TravellingMixture`.
    """

    mixture: TravellingMixture
    given: Any
    routing: Any
    expert: Expert


@dataclass
class RowsHere:
    """Rows, each with one new token.

    Attributes:
        numbers: tensor (n,) of int32: which rows are here now.
        tokens: tensor (rows, 1): the new tokens of all rows.
        positions: tensor (rows, 1): of the new tokens of all rows.
        caches: variables (all rows, ..., length, ...), with the tokens before.
        axes: of each cache, which counts tokens.
        written: number of a cache -> rows, and the keys or values of their new tokens.
    """

    numbers: Any
    tokens: Any
    positions: Any
    caches: Sequence[Any]
    axes: Sequence[int]
    written: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    _visits: list[Visit] = field(default_factory=list)

    @property
    def own_positions(self) -> Any:
        """Of the rows that are here, (n, 1)."""
        return tf.gather(self.positions, self.numbers)

    def cache(self, number: int) -> Any:
        """The rows of a cache that are here."""
        return tf.gather(self.caches[number], self.numbers)

    def keep(self, number: int, changed: Any) -> None:
        """Note what was written for the new tokens.

        Args:
            number: of the cache.
            changed: what `cache` returned, with the new tokens.
        """
        axis, places = self.axes[number], self.own_positions[:, 0]
        new = tf.gather(changed, places, axis=axis, batch_dims=1)
        self.written[number] = self.numbers, new

    def note(self, mixture: TravellingMixture, rows: Any, routing: Any, expert: Expert) -> None:
        """Note that a layer with experts was called; see `leaving_out`."""
        self._visits.append(Visit(mixture, rows, routing, expert))

    @property
    def is_called(self) -> bool:
        """Whether a layer with experts was called since the rows have travelled."""
        return bool(self._visits)

    def travel(self, values: Sequence[Any]) -> tuple[list[Any], Any]:
        """Go to the experts of the layer that was called. Collective.

        Args:
            values: tensors (n, 1, ...): all that is needed of the rows from here on.

        Returns:
            These of the rows that are here now; and what experts make, (n, 1, width).

        Raises:
            ValueError: if several layers with experts were called.
        """
        visits, self._visits = self._visits, []
        if len(visits) > 1:
            raise ValueError("there are several mixtures of experts in one layer")
        visit = visits[0]
        flat = [tf.reshape(x, [-1, _width(x)]) for x in values]
        self.numbers, flat, made = visit.mixture(
            self.numbers, visit.given, visit.routing, visit.expert, flat
        )
        shaped = [tf.reshape(x, [-1, *y.shape[1:]]) for x, y in zip(flat, values, strict=True)]
        return shaped, made[:, None]


@contextlib.contextmanager
def leaving_out(mixtures: Mixtures, note: Callable[..., None]) -> Iterator[None]:
    """While open, layers with experts add nothing.

    Args:
        mixtures: these layers.
        note: called with each layer's mixture, and what the layer was called with.
    """

    def nothing(mixture: TravellingMixture, rows: Any, routing: Any, expert: Expert) -> Any:
        note(mixture, rows, routing, expert)
        return tf.zeros_like(rows)

    with contextlib.ExitStack() as stack:
        for one, mixture in mixtures:
            stack.enter_context(one.computed_by(functools.partial(nothing, mixture)))
        yield


def _width(value: Any) -> int:
    count = 1
    for size in value.shape[1:]:
        count *= size
    return count
