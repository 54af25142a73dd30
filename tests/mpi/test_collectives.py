"""Exchanges among all ranks, and what the ledger counts of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hyparflow as hf
from hyparflow.comm import byte_chunks
from hyparflow.comm.ledger import Collective
from hyparflow.comm.ranks import world


@pytest.fixture
def ranks() -> Any:
    """A communicator of all ranks, with an empty ledger; None where there is one rank."""
    everyone = world()
    if everyone is None:
        pytest.skip("one rank has nobody to talk to")
    group = everyone.group(0)
    yield group
    group.free()


def message(sender: int, receiver: int, sizes: list[int]) -> np.ndarray:
    """What one rank gives to another: bytes that tell who gave them to whom."""
    size = sizes[(sender + 2 * receiver) % len(sizes)]
    return np.random.default_rng([sender, receiver]).integers(0, 256, size, np.uint8)


@pytest.mark.parametrize("sizes", [[0], [0, 7, 1000], [63, 64, 65, 128, 129], [5_000_000, 3]])
@pytest.mark.parametrize("chunk", [64, None])
def test_sizes_need_not_be_known(
    ranks: Any, sizes: list[int], chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in pieces, of which the last may be full, and several exchanges one after another."""
    if chunk is not None:
        if max(sizes) > 1000:
            pytest.skip("too many pieces")
        monkeypatch.setattr(byte_chunks, "_CHUNK", chunk)
    for _ in range(3):
        sent = [message(ranks.rank, peer, sizes) for peer in range(ranks.size)]
        received = ranks.all_to_all_unsized(sent, "a test")
        for peer, found in enumerate(received):
            np.testing.assert_array_equal(found, message(peer, ranks.rank, sizes))
    entry = ranks.ledger.total(Collective.ALL_TO_ALL, "a test")
    payload = 3 * sum(array.nbytes for array in sent)
    assert (entry.calls, entry.payload) == (3, payload)
    assert entry.off_rank == payload - 3 * sent[ranks.rank].nbytes


def test_arrays_of_any_type_and_shape(ranks: Any) -> None:
    mine = [np.full((peer, 3), ranks.rank + peer / 8) for peer in range(ranks.size)]
    received = ranks.all_to_all_unsized(mine, "a test")
    for peer, found in enumerate(received):
        rows = found.view(np.float64).reshape(-1, 3)
        np.testing.assert_array_equal(rows, np.full((ranks.rank, 3), peer + ranks.rank / 8))


def test_the_ledger_counts_collectives(ranks: Any) -> None:
    array = np.arange(12.0)
    ranks.broadcast(array, 0, "numbers")
    ranks.sum(array, "a sum")
    ranks.sum(array, "a sum")
    joined = ranks.all_gather_rows(array[: ranks.rank], "rows")
    assert len(joined) == sum(range(ranks.size))
    into = [np.zeros(2) for _ in range(ranks.size)]
    ranks.all_to_all([array[:2]] * ranks.size, into, "pairs")
    others, sent = ranks.size - 1, 96 if ranks.rank == 0 else 0
    expected = {
        (Collective.BROADCAST, "numbers"): (1, sent, sent * others),
        (Collective.SUM, "a sum"): (2, 192, 192 if others else 0),
        (Collective.ALL_GATHER, "rows"): (1, 8 * ranks.rank, 8 * ranks.rank * others),
        (Collective.ALL_TO_ALL, "pairs"): (1, 16 * ranks.size, 16 * others),
    }
    found = {
        key: (entry.calls, entry.payload, entry.off_rank)
        for key, entry in ranks.ledger.entries.items()
    }
    assert found == expected
    ranks.ledger.clear()
    assert ranks.ledger.total(Collective.SUM).calls == 0
    assert hf.size() == ranks.size
