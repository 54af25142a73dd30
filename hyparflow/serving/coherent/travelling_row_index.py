"""Models that decode by `call_with_cache`, whose rows go on to other ranks within an iteration.

A layer of the backbone that has experts is called without what these add. So it makes what they are
added to, which is all that later layers need of a row: that travels to the row's expert, and there
the expert's part is added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.patched import patched
from hyparflow.model.keras_internals.row_index import RowIndex, StackedCaches, row_indices
from hyparflow.serving.coherent.rows_here import Mixtures, RowsHere, leaving_out
from hyparflow.serving.decoding.cached_model import Around
from hyparflow.serving.decoding.row_index_model import RowIndexModel, parts_of

__all__ = ["TravellingRowIndexModel"]


class _Numbered:
    """Stands for a cache, of which a layer gets the rows that are here.

    Attributes:
        number: of the cache.
    """

    def __init__(self, number: int) -> None:
        self.number = number


class TravellingRowIndexModel(RowIndexModel):
    """See `TravellingModel`.

    Args:
        model: the model.
        around: see `Around`; for calls in which tokens come home.
        mixtures: its layers with experts.
    """

    def __init__(self, model: Any, around: Around, mixtures: Mixtures) -> None:
        super().__init__(model, around)
        self._mixtures = mixtures

    def iterate(self, rows: RowsHere) -> Any:
        """See `TravellingModel.iterate`."""
        cache = self._nested([_Numbered(n) for n in range(len(self.cache_sizes))])
        with contextlib.ExitStack() as stack:
            stack.enter_context(leaving_out(self._mixtures, rows.note))
            for layer in self._model.backbone.layers:
                call = type(layer).call.__get__(layer)
                stack.enter_context(patched(layer, call=_travelling(call, rows)))
            stack.enter_context(row_indices(self._model))
            index = RowIndex(rows.own_positions)
            tokens = tf.gather(rows.tokens, rows.numbers)
            logits, *_ = self._model.call_with_cache(tokens, cache, index)
        return logits


def _travelling(call: Callable[..., Any], rows: RowsHere) -> Callable[..., Any]:
    """The call of a layer of the backbone, after which rows are where their experts are."""

    def called(*args: Any, **named: Any) -> Any:
        stands: list[Any] = []

        def filled(given: Any) -> Any:
            if isinstance(given, RowIndex):
                return RowIndex(rows.own_positions)
            if isinstance(given, StackedCaches | _Numbered):
                stands.append(given)
                return _of_rows(given, rows)
            return given

        made = call(*map(filled, args), **{name: filled(x) for name, x in named.items()})
        if not stands:
            return made
        (stand,), (value, changed, *rest) = stands, made
        numbers = [x.number for x in _flat(stand)]
        for number, part in zip(numbers, parts_of(changed, _depth(stand)), strict=True):
            rows.keep(number, part)
        if rows.is_called:
            (value,), mixed = rows.travel([value])
            value += tf.cast(mixed, value.dtype)
        return (value, stand, *rest)

    return called


def _flat(stand: Any) -> list[_Numbered]:
    if isinstance(stand, StackedCaches):
        return [x for part in stand.parts for x in _flat(part)]
    return [stand]


def _depth(stand: Any) -> int:
    """How many axes of a cache lie between rows and tokens."""
    return 1 + _depth(stand.parts[0]) if isinstance(stand, StackedCaches) else 0


def _of_rows(stand: Any, rows: RowsHere) -> Any:
    if isinstance(stand, StackedCaches):
        return StackedCaches([_of_rows(part, rows) for part in stand.parts])
    return rows.cache(stand.number)
