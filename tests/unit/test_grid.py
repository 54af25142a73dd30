"""Rank <-> (replica, partition)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hyparflow.comm.leader import LEADER
from hyparflow.pipeline.grid import Grid

GRIDS = [Grid(p, r) for p, r in itertools.product(range(1, 6), range(1, 6))]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.num_partitions}x{g.num_replicas}")
def test_ranks_and_places_are_one_to_one(grid: Grid) -> None:
    places = set()
    for rank in range(grid.size):
        replica, partition = grid.replica(rank), grid.partition(rank)
        assert grid.rank(replica, partition) == rank
        assert 0 <= replica < grid.num_replicas and 0 <= partition < grid.num_partitions
        places.add((replica, partition))
    assert len(places) == grid.size == grid.num_partitions * grid.num_replicas


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.num_partitions}x{g.num_replicas}")
def test_readers_and_last_ranks(grid: Grid) -> None:
    ranks = range(grid.size)
    by_replica = [grid.replica_ranks(replica) for replica in range(grid.num_replicas)]
    assert list(itertools.chain(*by_replica)) == list(ranks)  # neighbours, in order
    assert [rank for rank in ranks if grid.is_reader(rank)] == [line[0] for line in by_replica]
    assert [rank for rank in ranks if grid.is_last(rank)] == [line[-1] for line in by_replica]
    assert grid.is_reader(LEADER) and grid.replica(LEADER) == 0


@pytest.mark.parametrize(("partitions", "replicas", "shards"), [(1, 1, 4), (2, 3, 2), (3, 1, 5)])
def test_shards(partitions: int, replicas: int, shards: int) -> None:
    grid = Grid(partitions, replicas, num_shards=shards)
    assert grid.size == partitions * replicas * shards
    for rank in range(grid.size):
        replica, partition, shard = grid.replica(rank), grid.partition(rank), grid.shard(rank)
        assert grid.rank(replica, partition, shard) == rank
        assert grid.peer_rank(grid.peer(rank), partition) == rank
    # Those that share sequences are neighbours; peers hold the same weights.
    assert [grid.shard(rank) for rank in range(shards)] == list(range(shards))
    for partition in range(partitions):
        peers = [grid.peer_rank(peer, partition) for peer in range(grid.num_peers)]
        assert [grid.partition(rank) for rank in peers] == [partition] * replicas * shards
        assert peers == sorted(peers)
    assert [grid.last_rank(0, shard) for shard in range(shards)] == [
        (partitions - 1) * shards + shard for shard in range(shards)
    ]
    assert grid.describe(1).endswith("sequence shard 1)")


def test_layout() -> None:
    grid = Grid(num_partitions=3, num_replicas=2)
    assert [(grid.replica(r), grid.partition(r)) for r in range(6)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert grid.describe(4) == "rank 4 (replica 1, partition 1)"


def test_grids_can_be_compared_and_be_keys() -> None:
    assert Grid(2, 3) == Grid(2, 3) != Grid(3, 2)
    assert {Grid(2, 3): "built"}[Grid(2, 3)] == "built"


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["num_partitions", "num_replicas", "num_shards"])
def test_bad_numbers(name: str, value: int) -> None:
    arguments: dict[str, Any] = {"num_partitions": 1, "num_replicas": 1, name: value}
    with pytest.raises(ValueError) as caught:
        Grid(**arguments)
    assert str(caught.value) == f"`{name}` must be a positive integer. Received: {name}={value}"
