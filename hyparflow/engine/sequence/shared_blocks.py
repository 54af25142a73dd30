"""Attention layers that compute the same, and so can share what is compiled for blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from hyparflow.engine.sequence.attention_blocks import AttentionBlocks
from hyparflow.engine.sequence.attention_core import AttentionCore

__all__ = ["SharedBlocks"]


class SharedBlocks:
    """The compiled blocks of attention of a rank: one `AttentionBlocks` for all layers of a kind.

    They capture no variables and take the seed of dropout as an argument, so that layers differ
    only by what `AttentionBlocks` is given and by the sizes of heads. Those are a part of the key
    though any would do: a function that takes several sizes knows none when it is compiled.
    """

    def __init__(self) -> None:
        self._made: dict[Any, AttentionBlocks] = {}

    def of(
        self,
        core: AttentionCore,
        sizes: tuple[int, int],
        group: int,
        first_head: int,
        dtype: Any,
        training: bool,
    ) -> AttentionBlocks:
        """The blocks of layers of a kind.

        Args:
            core: what the layer computes, whatever its name.
            sizes: of a head of keys, and of values.
            group, first_head, dtype, training: see `AttentionBlocks`.
        """
        # Without dropout training computes what inference does.
        core = dataclasses.replace(core.unnamed, dropout=core.dropout if training else 0.0)
        key = core, sizes, group, first_head, tf.as_dtype(dtype)
        if key not in self._made:
            self._made[key] = AttentionBlocks(core, group, first_head, dtype, training)
        return self._made[key]
