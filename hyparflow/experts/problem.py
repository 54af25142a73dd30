"""The placement of experts as numbers: how often tokens go where, and what a rank may compute.

A token is on the rank of the first expert that it had last. An expert that every rank holds moves
no token; so what counts is the way from an expert that one rank holds to the next of that kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from hyparflow.experts.trace import RoutingTrace

__all__ = ["PlacementProblem", "make_problem", "experts_to_place", "nearness_of", "slots_of"]


@dataclass(frozen=True, eq=False)
class PlacementProblem:
    """What a search for a placement knows.

    Each layer has the same number of experts to place, and as many slots. Nodes of the graph are
    first the ranks, on which tokens begin, and then these experts layer by layer.

    Attributes:
        num_ranks: the number of ranks.
        experts: layers x placed; the numbers of the experts to place.
        slots: layers x placed; the ranks that have room for them, once for each.
        nearness: ranks x ranks; 1 for the same rank, 0 for the farthest.
        pairs: for each layer, placed x nodes: how many tokens go from one to the other, or back.
        loads: layers x nodes; how many tokens of a layer a rank computes if it has the node: those
            of an expert in its own layer, and in others those that come from it and choose an
            expert that all ranks hold.
        own_loads: for each layer the part of `loads` that depends on it, loads x placed.
        other_loads: for each layer, of the same loads, the part that depends on others.
        limit: the most tokens of a rank in a layer.
    """

    num_ranks: int
    experts: np.ndarray
    slots: np.ndarray
    nearness: np.ndarray
    pairs: tuple[csr_array, ...]
    loads: csr_array
    own_loads: tuple[np.ndarray, ...]
    other_loads: tuple[csr_array, ...]
    limit: float

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return int(self.experts.shape[0])

    @property
    def num_placed(self) -> int:
        """The number of experts of a layer that are to be placed."""
        return int(self.experts.shape[1])

    @property
    def visits(self) -> np.ndarray:
        """Layers x placed; the tokens of each expert."""
        return np.stack(
            [self.loads[[n]].toarray()[0, self.nodes(n)] for n in range(self.num_layers)]
        )

    def nodes(self, layer: int) -> slice:
        """The nodes of a layer's experts."""
        start = self.num_ranks + layer * self.num_placed
        return slice(start, start + self.num_placed)


def nearness_of(num_ranks: int, nodes: int, node_cost: float) -> np.ndarray:
    """1 for the same rank, 0 for one of another node, and what is between for one of the same node.

    Args:
        num_ranks: the number of ranks, node by node.
        nodes: the number of nodes.
        node_cost: what a way to another node costs, if one within a node costs 1.
    """
    node = np.arange(num_ranks) // (num_ranks // nodes)
    same_node = 1.0 - 1.0 / node_cost if nodes > 1 else 0.0
    return np.maximum(np.eye(num_ranks), same_node * (node[:, None] == node[None, :]))


def experts_to_place(visits: np.ndarray, replicate: int) -> np.ndarray:
    """The experts that one rank is to hold; those that most tokens choose are left out.

    Args:
        visits: layers x experts.
        replicate: how many experts of a layer all ranks hold.

    Returns:
        Layers x placed, in ascending order.
    """
    return np.sort(np.argsort(-visits, axis=1, kind="stable")[:, replicate:], axis=1)


def slots_of(num_layers: int, placed: int, num_ranks: int) -> np.ndarray:
    """Room for equally many experts on each rank, layers x placed.

    Where they do not come out even, other ranks have one more in each layer.
    """
    turns = (np.arange(placed) + placed * np.arange(num_layers)[:, np.newaxis]) % num_ranks
    return np.sort(turns, axis=1)


def make_problem(
    trace: RoutingTrace,
    num_ranks: int,
    nearness: np.ndarray,
    replicate: int,
    max_load: float,
) -> PlacementProblem:
    """Count what the tokens of a trace do."""
    visits = trace.visits()
    experts = experts_to_place(visits, replicate)
    layers, placed = experts.shape
    index_of = np.full((layers, trace.num_experts), -1)
    np.put_along_axis(index_of, experts, np.arange(placed)[np.newaxis], axis=1)
    ways, loads = _followed(trace, index_of, num_ranks, placed)
    starts = num_ranks + placed * np.arange(layers)
    parts = [_parted(loads, slice(start, start + placed)) for start in starts]
    return PlacementProblem(
        num_ranks=num_ranks,
        experts=experts,
        slots=slots_of(layers, placed, num_ranks),
        nearness=nearness,
        pairs=tuple(ways[start : start + placed] for start in starts),
        loads=loads,
        own_loads=tuple(own for own, _ in parts),
        other_loads=tuple(other for _, other in parts),
        limit=_whole(max_load * trace.num_tokens * trace.top_k / num_ranks),
    )


def _whole(limit: float) -> float:
    """The most whole tokens within a limit, of which rounding may have taken a little."""
    return float(np.floor(limit * (1 + 1e-12)))


def _followed(
    trace: RoutingTrace, index_of: np.ndarray, num_ranks: int, placed: int
) -> tuple[csr_array, csr_array]:
    """The ways of all tokens, nodes x nodes in both directions; and loads, layers x nodes."""
    count = num_ranks + trace.num_layers * placed
    now = np.arange(trace.num_tokens) % num_ranks  # tokens begin on all ranks alike
    ways: list[tuple[np.ndarray, np.ndarray]] = []
    loads: list[tuple[np.ndarray, np.ndarray]] = []
    for layer in range(trace.num_layers):
        index = index_of[layer][trace.experts[:, layer]]
        is_placed = index >= 0
        token, _ = np.nonzero(is_placed)
        if layer:
            ways.append((now[token], num_ranks + layer * placed + index[is_placed]))
        nodes = np.where(is_placed, num_ranks + layer * placed + index, now[:, np.newaxis]).ravel()
        loads.append((np.full(len(nodes), layer), nodes))
        now = np.where(is_placed[:, 0], num_ranks + layer * placed + index[:, 0], now)
    found = _counts(ways, (count, count))
    return csr_array(found + found.T), _counts(loads, (trace.num_layers, count))


def _parted(loads: csr_array, nodes: slice) -> tuple[np.ndarray, csr_array]:
    """The loads that depend on these nodes: the part that does, and the part that does not."""
    mine = loads[:, nodes].toarray()
    which = np.flatnonzero(mine.any(axis=1))
    others = loads[which].tolil()
    others[:, nodes] = 0
    return mine[which], csr_array(others)


def _counts(pairs: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]) -> csr_array:
    """How often each pair of indices stands there, as a sparse matrix."""
    if not pairs:
        return csr_array(shape)
    rows, columns = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
