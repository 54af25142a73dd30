"""Which rank holds which part of a model that is served."""

from __future__ import annotations

from hyparflow.comm import launcher
from hyparflow.formats.argument_checks import count_of
from hyparflow.pipeline.grid import Grid

__all__ = ["serving_grid"]


def serving_grid(
    size: int,
    num_partitions: int | None,
    num_replicas: int | None,
    num_shards: int | None,
    shares_experts: bool = False,
) -> Grid:
    """The grid of ranks, whose innermost axis are the shards of tensors, or those of experts.

    Args:
        size: the number of ranks.
        num_partitions, num_replicas, num_shards: what the user says of them. Without a number of
            replicas there are as many as there are ranks for.
        shares_experts: whether these replicas share out experts: then they compute together, as
            shards of one.

    Raises:
        ValueError: if they do not fit the number of ranks.
    """
    counts = {"num_partitions": num_partitions, "num_shards": num_shards}
    partitions, shards = (1 if x is None else count_of(name, x) for name, x in counts.items())
    if num_replicas is None:
        replicas = max(1, size // (partitions * shards))
    else:
        replicas = count_of("num_replicas", num_replicas)
    wanted = partitions * replicas * shards
    if wanted != size:
        raise ValueError(
            "The number of ranks must be num_partitions x num_replicas x num_shards. Received: "
            f"num_partitions={partitions}, num_replicas={replicas}, num_shards={shards}, which is "
            f"{wanted}, but {size} rank{'s run' if size > 1 else ' runs'}. "
            f"Start it with: {launcher.describe_command(wanted)}"
        )
    if shares_experts and partitions * shards > 1:
        raise ValueError(
            "Experts are spread over replicas of the whole model. Received: expert_parallel=True "
            f"with num_partitions={partitions}, num_shards={shards}. Leave these out."
        )
    if shares_experts:
        return Grid(1, 1, num_shards=replicas)
    return Grid(partitions, replicas, num_shards=shards)
