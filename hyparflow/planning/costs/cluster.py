"""The machine on paper: its nodes and ranks, and what a message or an allreduce costs on it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

from hyparflow.formats.argument_checks import count_of
from hyparflow.formats.records import Amount, Count, made, read, schema_of
from hyparflow.formats.writing import write_text

__all__ = ["ALLREDUCES", "Cluster", "Link"]

ALLREDUCES = ("auto", "ring", "tree")
_FILE = "A cluster is a file that Cluster.save or `hyparflow doctor --network` wrote."


def _number(value: object) -> float | None:
    """As a plain float; None if it is no finite number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


@dataclass(frozen=True)
class Link:
    """What connects two ranks: a message of n bytes takes ``latency + n / bandwidth``.

    Attributes:
        latency: seconds.
        bandwidth: bytes per second, in one direction.
    """

    latency: Amount
    bandwidth: Amount

    def __post_init__(self) -> None:
        latency, bandwidth = _number(self.latency), _number(self.bandwidth)
        if latency is None or bandwidth is None or latency < 0 or bandwidth <= 0:
            raise ValueError(
                "A link needs a latency of at least 0 s and a bandwidth above 0 bytes/s. "
                f"Received: latency={self.latency!r}, bandwidth={self.bandwidth!r}"
            )
        object.__setattr__(self, "latency", latency)
        object.__setattr__(self, "bandwidth", bandwidth)

    def seconds(self, size: float) -> float:
        """The time of one message of `size` bytes."""
        return self.latency + size / self.bandwidth

    def shared(self, by: int) -> Link:
        """The link as each of `by` ranks has it that use it at the same time."""
        return Link(self.latency, self.bandwidth / max(1, by))


@dataclass(frozen=True)
class Cluster:
    """Nodes with ranks, rank after rank filled node after node.

    Attributes:
        nodes: number of nodes.
        ranks_per_node: ranks on each.
        within: the link between two ranks of a node.
        between: the link of a node to the others, shared by its ranks.
        speed: how much faster one rank computes than where the costs were measured.
        allreduce: how gradients are summed: "ring", "tree" or "auto", the faster of the two.
        sum_bandwidth: bytes per second of what has arrived that a rank adds to its own.
    """

    nodes: Count = 1
    ranks_per_node: Count = 1
    within: Link = field(default_factory=lambda: Link(5e-6, 3e9))
    between: Link = field(default_factory=lambda: Link(30e-6, 1.2e9))  # 10 Gbit/s over TCP
    speed: Amount = 1.0
    allreduce: str = "auto"
    sum_bandwidth: Amount = 2e9

    def __post_init__(self) -> None:
        for name in ("nodes", "ranks_per_node"):
            object.__setattr__(self, name, count_of(name, getattr(self, name)))
        for name in ("within", "between"):
            if not isinstance(getattr(self, name), Link):
                raise ValueError(
                    f"`{name}` must be a hyparflow.Link. Received: {name}={getattr(self, name)!r}"
                )
        for name in ("speed", "sum_bandwidth"):
            value = _number(getattr(self, name))
            if value is None or value <= 0:
                received = getattr(self, name)
                raise ValueError(
                    f"`{name}` must be a number above 0. Received: {name}={received!r}"
                )
            object.__setattr__(self, name, value)
        if not isinstance(self.allreduce, str) or self.allreduce not in ALLREDUCES:
            raise ValueError(
                f"`allreduce` must be one of {', '.join(map(repr, ALLREDUCES))}. "
                f"Received: allreduce={self.allreduce!r}"
            )

    @property
    def num_ranks(self) -> int:
        """All ranks."""
        return self.nodes * self.ranks_per_node

    def node(self, rank: int) -> int:
        """The node of `rank`."""
        return rank // self.ranks_per_node

    def link(self, rank: int, other: int) -> Link:
        """What connects two ranks."""
        return self.within if self.node(rank) == self.node(other) else self.between

    def allreduce_seconds(self, ranks: Sequence[int], size: float, groups: int = 1) -> float:
        """The time in which `ranks` sum `size` bytes.

        A ring (Patarasuk and Yuan 2009) sends the data twice around in parts: 2 (n - 1) messages
        of 1/n. A tree reduces and broadcasts whole buffers: 2 log2 n messages. Half of what a rank
        receives it adds up.

        Args:
            ranks: who takes part.
            size: bytes on each.
            groups: how many such sums go on at once, by other ranks of the same nodes; they share
                the nodes' links to each other.
        """
        count = len(ranks)
        if count < 2:
            return 0.0
        nodes = {self.node(rank) for rank in ranks}
        link = self.within if len(nodes) == 1 else self.between.shared(by=groups)
        part, levels = size / count, math.ceil(math.log2(count))
        ring = (count - 1) * (2 * link.seconds(part) + part / self.sum_bandwidth)
        tree = levels * (2 * link.seconds(size) + size / self.sum_bandwidth)
        return {"ring": ring, "tree": tree, "auto": min(ring, tree)}[self.allreduce]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, for `load`."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], **changes: object) -> Cluster:
        """What `save` or ``hyparflow doctor --network`` wrote, with `changes` to its attributes.

        Raises:
            ValueError: if the file holds no cluster.
        """

        def changed(values: Any) -> Cluster:
            return dataclasses.replace(made(values, cls), **changes)  # type: ignore[arg-type]

        return read(path, schema_of(cls), _FILE, changed)
