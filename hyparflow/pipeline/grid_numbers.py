"""How many partitions, replicas and shards there are, from what a user says. Pure integers."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["grid_numbers"]


def grid_numbers(
    size: int,
    strategy: str | None,
    partitions: int | None,
    replicas: int | None,
    shards: int | None,
    least: int,
    command: Callable[[int], str],
) -> tuple[int, int, int]:
    """The numbers of partitions, replicas, and shards of sequences.

    Args:
        size: the number of ranks.
        strategy: "data", "model", "hybrid", "sequence" or None.
        partitions, replicas, shards: what the user says of them.
        least: partitions, if the user says nothing.
        command: (ranks) -> the command that starts so many.

    Raises:
        ValueError: if they contradict each other.
    """
    if strategy == "sequence":
        partitions = _one("num_partitions", partitions, strategy)
        replicas = _one("num_replicas", replicas, strategy)
        shards = size if shards is None else shards
    shards = 1 if shards is None else shards
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
        partitions = max(1, size // shards // (replicas or 1))
    if replicas is None:
        replicas = max(1, size // shards // partitions)
    wanted = partitions * replicas * shards
    if wanted != size:
        more, of_shards = "", ""
        if shards > 1:
            more, of_shards = " x num_sequence_shards", f", num_sequence_shards={shards}"
        raise ValueError(
            f"The number of ranks must be num_partitions x num_replicas{more}. Received: "
            f"num_partitions={partitions}, num_replicas={replicas}{of_shards}, which is "
            f"{wanted}, but {size} rank{'s run' if size > 1 else ' runs'}. "
            f"Start it with: {command(wanted)}"
        )
    return partitions, replicas, shards


def _one(name: str, value: int | None, strategy: str) -> int:
    if value not in (None, 1):
        raise ValueError(
            f"`strategy={strategy!r}` has {name}=1; use strategy='hybrid' for both kinds of "
            f"parallelism. Received: {name}={value}"
        )
    return 1
