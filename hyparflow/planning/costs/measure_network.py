"""Measures the network between ranks, with the MPI that training uses."""

from __future__ import annotations

import dataclasses
import platform
import time

import numpy as np

from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.planning.costs.cluster import Cluster, Link

__all__ = ["measure_links", "measure_network"]

# Bytes of messages that show latency and bandwidth, and of a sum; caches hold no such sum.
_SMALL, _LARGE, _SUMMED = 8, 1 << 25, 1 << 25
_LEAST = 0.1  # least share of a sum's time that is spent on adding
_TIMES = 25


def measure_network(world: World) -> Cluster:
    """The cluster that `world` runs on, with measured links. Collective.

    Rank 0 exchanges messages with a rank of its node and with one of another node, and makes sums
    with the former. A link without such a rank keeps its default.

    Args:
        world: all ranks.

    Returns:
        The cluster, the same on every rank.
    """
    cluster = measure_links(world, _LARGE)
    names = world.all_gather_objects(platform.node(), "the names of the nodes")
    mates = [rank for rank in range(1, world.size) if names[rank] == names[0]]
    if not mates:
        return cluster
    adding = _measure_sum(world, mates[0], cluster.within)
    adding = world.broadcast_object(adding, 0, "the measured sum")
    return dataclasses.replace(cluster, sum_bandwidth=adding)


def measure_links(world: World, largest: int) -> Cluster:
    """The same without sums, by messages of so many bytes at most. Collective."""
    names = world.all_gather_objects(platform.node(), "the names of the nodes")
    nodes = list(dict.fromkeys(names))
    default = Cluster()
    links = {}
    for kind, same in (("within", True), ("between", False)):
        peers = [r for r in range(1, world.size) if (names[r] == names[0]) is same]
        link = _measure(world, peers[0], largest) if peers else getattr(default, kind)
        links[kind] = world.broadcast_object(link, 0, "the measured link")
    per_node = max(names.count(name) for name in nodes)
    return Cluster(len(nodes), per_node, links["within"], links["between"])


def _measure_sum(world: World, peer: int, link: Link) -> float | None:
    """How many bytes per second rank 0 adds up while `peer` does the same; known on rank 0."""
    pair = world.group(int(world.rank in (0, peer)))
    found = []
    if world.rank in (0, peer):
        mine, total = np.ones(_SUMMED // 4, np.float32), np.empty(_SUMMED // 4, np.float32)
        for _ in range(_TIMES // 3):
            start = time.perf_counter()
            pair.sum(total, "a sum that measures", mine)
            found.append(time.perf_counter() - start)
    pair.free()
    if world.rank != 0:
        return None
    half, fastest = _SUMMED / 2, min(found)  # each of the two sends a half twice, and adds up one
    return half / max(fastest - 2 * link.seconds(half), _LEAST * fastest)


def _measure(world: World, peer: int, largest: int) -> Link | None:
    """The link between rank 0 and `peer`; known on rank 0."""
    latency = _one_way(world, peer, _SMALL)
    long = _one_way(world, peer, largest)
    return Link(latency, largest / max(long - latency, 1e-9)) if world.rank == 0 else None


def _one_way(world: World, peer: int, size: int) -> float:
    """Half of the least time of a message of `size` bytes to `peer` and back."""
    data = np.zeros(size, np.uint8)
    found = []
    for _ in range(_TIMES if world.rank in (0, peer) else 0):
        start = time.perf_counter()
        for first in (True, False):
            if (world.rank == 0) is first:
                requests = world.send(data, peer if world.rank == 0 else 0, Tag.NETWORK)
            else:
                requests = world.receive(data, peer if world.rank == 0 else 0, Tag.NETWORK)
            world.wait_all(requests, "a message that measures the network")
        found.append((time.perf_counter() - start) / 2)
    return min(found, default=0.0)
