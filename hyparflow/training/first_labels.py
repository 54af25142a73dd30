"""The labels that a rank can look at before it trains, without reading more than training does."""

from __future__ import annotations

from typing import Any

from hyparflow.model.keras_internals.data import open_stream
from hyparflow.training.call import Call

__all__ = ["first_labels"]


def first_labels(call: Call, stream: Any, rank: int) -> Any:
    """The first rows of (y, sample weights), as arrays; None where this rank reads none.

    Args:
        call: whose arrays or shards are looked at; a shard is opened.
        stream: the opened stream that this rank reads, or None.
        rank: this rank.
    """
    try:
        if "train" in call.sources:
            return call.sources["train"].first_labels()
        if "train" in call.shards and call.options.grid.is_reader(rank):
            shard, reading = call.shards["train"]
            stream = open_stream(shard, **reading)
            call.shards["train"] = (stream, reading)
        return None if stream is None else stream.first_labels()
    except Exception:  # training will show the error
        return None
