"""Positions of sequences over chunks and shards, and who attends to whom."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyparflow.pipeline.attention_pattern import AttentionPattern
from hyparflow.pipeline.token_layout import TokenLayout


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 50))
def test_each_position_is_in_one_piece(chunks: int, shards: int, more: int) -> None:
    layout = TokenLayout(chunks * shards + more, chunks, shards)
    pieces = [layout.piece(c, s) for c in range(chunks) for s in range(shards)]
    found = [p for start, stop in pieces for p in range(start, stop)]
    assert found == list(range(layout.length))
    assert {stop - start for start, stop in pieces} <= {
        layout.length // len(pieces) + n for n in (0, 1)
    }  # noqa: E501
    for chunk in range(chunks):
        own = [layout.piece(chunk, shard) for shard in range(shards)]
        assert layout.chunk(chunk) == (own[0][0], own[-1][1])
        assert layout.lengths(chunk) == [stop - start for start, stop in own]
    assert sum(layout.shard_length(shard) for shard in range(shards)) == layout.length


def test_too_short_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 positions for 3 chunks x 2 shards"):
        TokenLayout(5, 3, 2)


PATTERNS = [AttentionPattern(c, w) for c in (True, False) for w in (None, 1, 2, 5)]


@settings(deadline=None)
@given(st.sampled_from(PATTERNS), *[st.integers(0, 12)] * 2, *[st.integers(1, 6)] * 2)
def test_patterns_of_chunks(
    pattern: AttentionPattern, query: int, key: int, queries: int, keys: int
) -> None:
    """Against each pair of positions."""

    def sees(t: int, s: int) -> bool:
        near = pattern.window is None or abs(t - s) < pattern.window
        return near and (s <= t or not pattern.causal)

    pairs = itertools.product(range(query, query + queries), range(key, key + keys))
    seen = [sees(t, s) for t, s in pairs]
    chunks = (query, query + queries), (key, key + keys)
    assert pattern.attends(*chunks) == any(seen)
    assert pattern.attends_to_all(*chunks) == all(seen)


def test_patterns_in_words() -> None:
    words = [str(AttentionPattern(*given)) for given in ((True,), (False,), (True, 3))]
    assert words == ["causal", "full", "causal, window of 3"]
    assert np.array_equal(AttentionPattern(False, 3).distances, (-2, 2))
