"""Which cores the ranks of a node compute on, and a warning if they share them."""

from __future__ import annotations

import functools
import os
import platform
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hyparflow.comm import launcher
from hyparflow.comm.leader import LEADER
from hyparflow.comm.log import users_stack_level
from hyparflow.comm.world import World
from hyparflow.formats.text import counted

__all__ = ["Claim", "announce_cores", "crowded", "intra_op_threads"]


@functools.cache
def announce_cores(world: World) -> None:
    """Warn, on the leader, of ranks that share cores; if none do, keep cores busy. Collective."""
    mine = Claim(platform.node(), tuple(sorted(launcher.usable_cores())), intra_op_threads())
    claims = world.all_gather_objects(mine, "the cores of all ranks")
    texts = crowded(claims)
    if not texts:
        world.keep_cores_busy()
    elif world.rank == LEADER:
        for text in texts:
            warnings.warn(text, stacklevel=users_stack_level())


class Claim(NamedTuple):
    """The cores and threads that one rank uses on its node.

    Attributes:
        node: the node's name.
        cores: the cores that it may run on.
        threads: the number of threads that it computes with.
    """

    node: str
    cores: tuple[int, ...]
    threads: int


def crowded(claims: Sequence[Claim]) -> list[str]:
    """A warning for each node whose ranks compute with more threads than it has cores.

    Args:
        claims: of all ranks, in their order.
    """
    nodes: dict[str, dict[int, Claim]] = defaultdict(dict)
    for rank, claim in enumerate(claims):
        nodes[claim.node][rank] = claim
    return [text for node, ranks in nodes.items() if (text := _warning(node, ranks))]


def _warning(node: str, ranks: dict[int, Claim]) -> str:
    """The warning for a node; an empty string if each thread has a core."""
    load: dict[int, float] = defaultdict(float)
    for claim in ranks.values():
        for core in claim.cores:
            load[core] += claim.threads / len(claim.cores)
    full = {core for core, threads in load.items() if threads > 1.01}
    sharing = [rank for rank, claim in ranks.items() if full & set(claim.cores)]
    if not sharing:
        return ""
    threads = sum(ranks[rank].threads for rank in sharing)
    cores = {core for rank in sharing for core in ranks[rank].cores}
    remedy = f"Start at most {len(load)} ranks there, with TF_NUM_INTRAOP_THREADS=1"
    if len(ranks) <= len(load):
        remedy = (
            f"Give each rank cores of its own, {len(load) // len(ranks)} each (mpirun --map-by "
            f"slot:PE={len(load) // len(ranks)} --bind-to core, or srun --cpus-per-task), and "
            "leave TF_NUM_INTRAOP_THREADS to hyparflow"
        )
    return (
        f"Ranks slow each other down: ranks {_listed(sharing)} on node '{node}' compute with "
        f"{threads} threads on {counted(len(cores), 'core', 'cores')}. {remedy}."
    )


def _listed(ranks: Sequence[int]) -> str:
    """Ranks in words: the first few."""
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return ", ".join(map(str, ranks[:4])) + more


def intra_op_threads() -> int:
    """How many threads an operation may use in this process."""
    import tensorflow as tf

    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    set_ = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(chosen) or (int(set_) if set_.isdigit() else len(launcher.usable_cores()))
