"""How long experts' exchanges take, by hand."""

from __future__ import annotations

import dataclasses

import pytest

import hyparflow as hf
from hyparflow.planning.costs.expert_exchanges import (
    ExpertTraffic,
    coherent_seconds,
    home_seconds,
)

TRAFFIC = ExpertTraffic(
    layers=8, rows=32, row_bytes=512, cache_bytes=8192, top_k=1, away=0.5, changes=0.25
)
FAST, SLOW = hf.Link(0.0, 1e12), hf.Link(50e-6, 125e6)  # SLOW: 1 Gbit/s


def test_two_hosts_of_one_rank() -> None:
    cluster = hf.Cluster(2, 1, FAST, SLOW)
    # A rank has 16 rows: 8 of 512 bytes leave it; 4 of 1040 bytes; keys and values of 16.
    home = 16 * (50e-6 + 8 * 512 / 125e6)
    coherent = 8 * (50e-6 + 4 * 1040 / 125e6) + 50e-6 + 16 * 8192 / 125e6
    assert home_seconds(TRAFFIC, cluster) == pytest.approx(home)
    assert coherent_seconds(TRAFFIC, cluster) == pytest.approx(coherent)


def test_ranks_of_a_node_share_its_link() -> None:
    cluster = hf.Cluster(2, 2, FAST, SLOW)
    # A rank has 8 rows, of which 4 leave it, two thirds of these for the other node; so do those of
    # the rank beside it.
    leaving = 2 * 4 * 512 * 2 / 3
    assert home_seconds(TRAFFIC, cluster) == pytest.approx(16 * (50e-6 + leaving / 125e6))


def test_one_node_and_one_rank() -> None:
    link = hf.Link(5e-6, 1e9)
    assert home_seconds(TRAFFIC, hf.Cluster(1, 1, link)) == 0
    found = home_seconds(TRAFFIC, hf.Cluster(1, 4, link))
    assert found == pytest.approx(16 * (5e-6 + 4 * 512 / 1e9))


def test_other_experts_of_a_token_cost_a_second_exchange() -> None:
    cluster, two = hf.Cluster(2, 1, FAST, SLOW), dataclasses.replace(TRAFFIC, top_k=2)
    more = 8 * (16 * 0.5 * 512 / 125e6) + 8 * (50e-6 + 16 * 0.5 * 512 / 125e6)
    assert coherent_seconds(two, cluster) == pytest.approx(
        coherent_seconds(TRAFFIC, cluster) + more
    )
