"""Checks that need several ranks: whether they see each other, and how fast messages are."""

from __future__ import annotations

import os
import platform
import statistics
import time

import numpy as np

from hyparflow.comm import launcher
from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.formats.text import counted
from hyparflow.launching.cores import Claim, crowded
from hyparflow.launching.doctor.finding import OK, PROBLEM, WARNING, Finding

__all__ = ["check_ranks"]

_ROUNDS = 20
_SUMMED = 1 << 24  # bytes
_ASK = "ask who runs the network"


def check_ranks(world: World) -> list[Finding]:
    """The findings of all ranks together, the same on each. Collective."""
    nodes = world.all_gather_objects(platform.node(), "the names of the nodes")
    count = len(set(nodes))
    several = f"{counted(world.size, 'rank', 'ranks')} on {counted(count, 'node', 'nodes')}"
    if world.size == 1:
        fix = "mpirun -n 2 hyparflow doctor"
        return [Finding("ranks", WARNING, f"{several}: nobody to talk to", fix)]
    return [_ring(world, several), _allreduce(world), _shares(world)]


def _ring(world: World, several: str) -> Finding:
    """Check messages: a token goes around all ranks, and each adds its number."""
    token = np.zeros(1, np.int64)
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        if world.rank == 0:
            token[0] = 0
            _send(world, token, after)
        world.wait_all(world.receive(token, before, Tag.RING), "the token of a ring")
        if world.rank:
            token += world.rank
            _send(world, token, after)
        times.append(time.perf_counter() - start)
    right = world.broadcast_object(int(token[0]), 0, "the end of the ring")
    if right != world.size * (world.size - 1) // 2:
        return Finding("ring", PROBLEM, f"{several}: messages arrived with wrong contents", _ASK)
    hop = world.broadcast_object(statistics.median(times) / world.size, 0, "the time of the ring")
    return Finding("ring", OK, f"{several}; {hop * 1e6:.1f} us from rank to rank")


def _send(world: World, token: np.ndarray, peer: int) -> None:
    world.wait_all(world.send(token, peer, Tag.RING), "the token of a ring")


def _allreduce(world: World) -> Finding:
    times = {}
    for size in (8, _SUMMED):
        mine = np.full(size // 4, world.rank + 1, np.float32)
        total = np.empty_like(mine)
        found = []
        for _ in range(5):
            start = time.perf_counter()
            world.sum(total, "a sum over all ranks", mine)
            found.append(time.perf_counter() - start)
        times[size] = min(found)
        wrong = bool((total != world.size * (world.size + 1) / 2).any())
        if any(world.all_gather_objects(wrong, "the results of a sum")):
            return Finding("allreduce", PROBLEM, "a sum over all ranks had a wrong result", _ASK)
    small, large = world.broadcast_object(list(times.values()), 0, "the times of sums")
    text = f"{small * 1e6:.1f} us for 8 bytes, {_SUMMED / large / 1e9:.2f} GB/s for 16 MiB"
    return Finding("allreduce", OK, text)


def _shares(world: World) -> Finding:
    chosen = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    threads = int(chosen) if chosen.isdigit() else len(launcher.usable_cores())
    claim = Claim(platform.node(), tuple(sorted(launcher.usable_cores())), threads)
    texts = crowded(world.all_gather_objects(claim, "the cores of all ranks"))
    if texts:
        said, _, fix = texts[0].partition(". ")
        return Finding("cores of ranks", WARNING, said, fix)
    return Finding("cores of ranks", OK, f"enough; rank 0 computes with {threads}")
