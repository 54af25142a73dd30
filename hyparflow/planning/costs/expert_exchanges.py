"""How long ranks that share out experts exchange tokens, by latency and bandwidth.

An exchange takes the latency of a message and the time of the bytes that pass a link: the
alpha-beta model (Hockney, "The communication challenge for MPP", 1994). All messages of an exchange
are on their way at once, and those between nodes share the nodes' links.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.planning.costs.cluster import Cluster

__all__ = ["ExpertTraffic", "coherent_seconds", "home_seconds"]

# Bytes beside what experts read, of a row that stays with its expert: its number, expert, place and
# share.
_HEAD = 16


@dataclass(frozen=True)
class ExpertTraffic:
    """What one iteration of decoding exchanges.

    Attributes:
        layers: with experts.
        rows: of all ranks, each with one new token.
        row_bytes: what an expert reads of a row, and makes of it.
        cache_bytes: keys and values of one token, of all layers.
        top_k: how many experts a token has.
        away: the share of experts that are not on the rank where a token's request is.
        changes: the share of tokens that change rank from one expert to the next.
    """

    layers: int
    rows: int
    row_bytes: int
    cache_bytes: int
    top_k: int
    away: float
    changes: float


def home_seconds(traffic: ExpertTraffic, cluster: Cluster) -> float:
    """The exchanges of an iteration whose tokens come home: two all-to-alls of each layer."""
    each = traffic.rows / cluster.num_ranks
    given = each * traffic.top_k * traffic.away * traffic.row_bytes
    return 2 * traffic.layers * _exchange_seconds(given, cluster)


def coherent_seconds(traffic: ExpertTraffic, cluster: Cluster) -> float:
    """The exchanges of an iteration whose tokens go on where their experts are.

    An all-to-all of each layer, with what the expert reads and what that is added to; another one,
    if other experts' results follow; and one all-gather of new tokens, keys and values.
    """
    each, row = traffic.rows / cluster.num_ranks, traffic.row_bytes
    others = each * (traffic.top_k - 1) * traffic.away * row  # copies, and what comes of them
    there = each * traffic.changes * (2 * row + _HEAD) + others
    seconds = traffic.layers * _exchange_seconds(there, cluster)
    if traffic.top_k > 1:
        seconds += traffic.layers * _exchange_seconds(others, cluster)
    told = each * traffic.cache_bytes * (cluster.num_ranks - 1)
    return seconds + _exchange_seconds(told, cluster)


def _exchange_seconds(given: float, cluster: Cluster) -> float:
    """One exchange, in which each rank gives so many bytes to the others, to all alike."""
    others, mates = cluster.num_ranks - 1, cluster.ranks_per_node - 1
    if not others:
        return 0.0
    found = [0.0]
    if mates:
        found.append(cluster.within.seconds(given * mates / others))
    if cluster.nodes > 1:
        leaving = given * (others - mates) / others * cluster.ranks_per_node
        found.append(cluster.between.seconds(leaving))
    return max(found)
