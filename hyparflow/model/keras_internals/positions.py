"""Position encodings of KerasHub, for a part of a sequence that does not begin at its start."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

from keras import ops

from hyparflow.model.keras_internals.patched import patched

__all__ = ["position_tables", "positions_from", "rotary_layers"]


@contextlib.contextmanager
def positions_from(start: Any) -> Iterator[None]:
    """While open, layers that encode positions begin to count at `start`, a scalar.

    They are KerasHub's RotaryEmbedding, PositionEmbedding and SinePositionEncoding, and those
    derived from them. Rows of a table of positions are looked up one by one, so that its gradient
    has these rows only.
    """
    hub = sys.modules.get("keras_hub")
    if hub is None:  # then no model has layers of it
        yield
        return
    rotary, table, sine = (
        hub.layers.RotaryEmbedding,
        hub.layers.PositionEmbedding,
        hub.layers.SinePositionEncoding,
    )
    turned, looked_up, waves = rotary._compute_positions, table.call, sine.call

    @functools.wraps(turned)
    def rotated(self: Any, inputs: Any, start_index: Any = 0) -> Any:
        counted = turned(self, inputs, start_index)
        return counted + ops.cast(start, counted.dtype)

    @functools.wraps(looked_up)
    def rows(self: Any, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
        if positions is None:
            positions = ops.arange(ops.shape(inputs)[-2]) + start_index + start
        return looked_up(self, inputs, positions=positions)

    @functools.wraps(waves)
    def shifted(self: Any, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
        return waves(self, inputs, start_index + start, positions)

    with (
        patched(rotary, _compute_positions=rotated),
        patched(table, call=rows),
        patched(sine, call=shifted),
    ):
        yield


def rotary_layers(layers: list[Any]) -> list[Any]:
    """The layers that rotate queries and keys by their positions."""
    hub = sys.modules.get("keras_hub")
    return [] if hub is None else [x for x in layers if isinstance(x, hub.layers.RotaryEmbedding)]


def position_tables(layers: list[Any]) -> list[Any]:
    """The weights of PositionEmbedding layers, whose gradients Keras takes of the whole table."""
    hub = sys.modules.get("keras_hub")
    if hub is None:
        return []
    kind = hub.layers.PositionEmbedding
    return [layer.position_embeddings for layer in layers if isinstance(layer, kind)]
