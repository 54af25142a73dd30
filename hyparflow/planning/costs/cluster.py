"""A model of a machine: nodes and ranks, and the times of messages and allreduces."""

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
from hyparflow.formats.text import shortened
from hyparflow.formats.writing import write_text

__all__ = ["ALLREDUCES", "Cluster", "Link", "cluster_of"]

ALLREDUCES = ("auto", "ring", "tree")
_FILE = "A cluster is a file that Cluster.save or `hyparflow doctor --network` wrote."


def _number(value: object) -> float | None:
    """`value` as a plain float; None if it is no finite number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


@dataclass(frozen=True)
class Link:
    """The connection of two ranks: a message of n bytes takes `latency + n / bandwidth`.

    Args:
        latency: Float. The time of an empty message, in seconds.
        bandwidth: Float. Bytes per second, in one direction.

    Raises:
        ValueError: If a value is not a finite number, or the bandwidth is not above 0.
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
        """The link for each of `by` ranks that use it at the same time."""
        return Link(self.latency, self.bandwidth / max(1, by))


@dataclass(frozen=True)
class Cluster:
    """A machine to plan for: nodes with ranks, and the network between them.

    Ranks are numbered node by node. ``mpirun -n 2 hyparflow doctor --network FILE`` measures a
    machine and writes it to a file for `load`.

    Args:
        nodes: Integer. The number of nodes.
        ranks_per_node: Integer. The number of ranks on each node.
        within: A `hyparflow.Link`. The connection of two ranks of one node; 5 us and 3 GB/s if not
            given.
        between: A `hyparflow.Link`. The connection of a node to the others, which its ranks share;
            30 us and 1.2 GB/s (10 Gbit/s over TCP) if not given.
        speed: Float. How many times as fast a rank computes as the machine on which the costs were
            measured.
        allreduce: String. The algorithm by which gradients are summed: `"ring"`, `"tree"`, or
            `"auto"` for the faster of the two.
        sum_bandwidth: Float. The bytes per second that a rank adds to its own numbers.

    Raises:
        ValueError: If an argument is not valid.
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
        """Integer. The number of ranks of all nodes together."""
        return self.nodes * self.ranks_per_node

    def node(self, rank: int) -> int:
        """The node of `rank`."""
        return rank // self.ranks_per_node

    def link(self, rank: int, other: int) -> Link:
        """The link between two ranks."""
        return self.within if self.node(rank) == self.node(other) else self.between

    def allreduce_seconds(self, ranks: Sequence[int], size: float, groups: int = 1) -> float:
        """The time in which `ranks` sum `size` bytes.

        A ring (Patarasuk and Yuan 2009) sends the data twice around in parts: 2 (n - 1) messages
        of 1/n. A tree reduces and broadcasts whole buffers: 2 log2 n messages. A rank
        adds up half of the data that it receives.

        Args:
            ranks: the ranks that take part.
            size: bytes on each.
            groups: how many such sums the ranks of these nodes make at the same time; they share
                the links between nodes.
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
        """Write the description to a file, as JSON.

        Args:
            path: String or path. The file to write.
        """
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], **changes: object) -> Cluster:
        """Read a description that `save` or ``hyparflow doctor --network`` wrote.

        Args:
            path: String or path. The file to read.
            **changes: Arguments of `Cluster` to change, for example `nodes=4`.

        Returns:
            The `Cluster`.

        Raises:
            ValueError: If the file holds no cluster, or a change is not valid.
        """

        def changed(values: Any) -> Cluster:
            return dataclasses.replace(made(values, cls), **changes)  # type: ignore[arg-type]

        return read(path, schema_of(cls), _FILE, changed)


def cluster_of(given: Any) -> Cluster:
    """A cluster, or the one that a file holds.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(given, Cluster):
        return given
    if isinstance(given, str | os.PathLike):
        return Cluster.load(os.fsdecode(given))
    raise ValueError(
        "`cluster` must be a hyparflow.Cluster, or a file that Cluster.save or `hyparflow "
        f"doctor --network` wrote. Received: cluster={shortened(given)}"
    )
