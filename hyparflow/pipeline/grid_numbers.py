"""How many partitions and replicas there are, from what a user says of them. Pure integers."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["grid_numbers"]


def grid_numbers(
    size: int,
    strategy: str | None,
    partitions: int | None,
    replicas: int | None,
    least: int,
    command: Callable[[int], str],
) -> tuple[int, int]:
    """The numbers of partitions and replicas.

    Args:
        size: the number of ranks.
        strategy: "data", "model", "hybrid" or None.
        partitions, replicas: what the user says of them.
        least: partitions, if the user says nothing.
        command: (ranks) -> the command that starts so many.

    Raises:
        ValueError: if they contradict each other.
    """
    if strategy == "data":
        partitions = _one("num_partitions", partitions, strategy)
    elif strategy == "model":
        replicas = _one("num_replicas", replicas, strategy)
    elif strategy == "hybrid" and partitions is None and replicas is None:
        raise ValueError(
            "`strategy='hybrid'` needs `num_partitions`, `num_replicas` or both. "
            "Received: num_partitions=None, num_replicas=None"
        )
    if partitions is None and replicas is None:
        partitions = max(1, least)
    if partitions is None:
        partitions = max(1, size // (replicas or 1))
    if replicas is None:
        replicas = max(1, size // partitions)
    if partitions * replicas != size:
        raise ValueError(
            "The number of ranks must be num_partitions x num_replicas. Received: "
            f"num_partitions={partitions}, num_replicas={replicas}, which is "
            f"{partitions * replicas}, but {size} rank{'s run' if size > 1 else ' runs'}. "
            f"Start it with: {command(partitions * replicas)}"
        )
    return partitions, replicas


def _one(name: str, value: int | None, strategy: str) -> int:
    if value not in (None, 1):
        raise ValueError(
            f"`strategy={strategy!r}` has {name}=1; use strategy='hybrid' for both kinds of "
            f"parallelism. Received: {name}={value}"
        )
    return 1
