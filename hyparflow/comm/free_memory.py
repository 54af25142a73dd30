"""How much memory this process may still take: of the machine, of its cgroups, by its own limits.

A container, a Slurm job or a service has a memory cgroup, and `ulimit -v` or `-d` limit one
process. What exceeds a cgroup's limit is killed without a word.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "MemoryBound",
    "bounds_of_folder",
    "free_memory",
    "is_limited",
    "memory_bounds",
    "reserved_by_threads",
]

# Bytes of addresses that threads of TensorFlow and of the C library's memory reserve: in training,
# and while costs are measured before it.
_BY_THREADS, _WHILE_MEASURING = 1 << 29, 1 << 30

_MACHINE = "the machine's memory"
_CGROUP = "memory cgroup"
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # tells machines apart; containers share one
_MINE = Path("/proc/self/cgroup")
# Files of a cgroup, of version 2 and 1: limit, usage, and names of what the system can take back
# at once, and of what it can take back at all.
_VERSIONS = (
    ("memory.max", "memory.current", ("inactive_file",), ("active_file", "slab_reclaimable")),
    (
        *("memory.limit_in_bytes", "memory.usage_in_bytes"),
        *(("total_inactive_file",), ("total_active_file",)),
    ),
)
_SWAP = ("memory.swap.max", "memory.swap.current")  # of version 2; version 1 counts both together


@dataclass(frozen=True)
class MemoryBound:
    """A limit on memory.

    Attributes:
        size: how many bytes may still be taken.
        what: what limits them, in words.
        key: equal for processes, of whatever machine, that share these bytes.
    """

    size: int
    what: str
    key: str


def free_memory(sharers: Mapping[str, int]) -> int:
    """The bytes that each of several processes may still take, where all take as many.

    Args:
        sharers: key of a limit -> how many of them share it.
    """
    return min(bound.size // sharers.get(bound.key, 1) for bound in memory_bounds())


def reserved_by_threads(measuring: bool = False) -> int:
    """Addresses that threads to come reserve and hardly use, if `ulimit -v` counts them.

    Args:
        measuring: whether costs are measured first, by threads of their own.
    """
    limited = any(bound.what == "RLIMIT_AS" for bound in _own_limits(""))
    return (_WHILE_MEASURING if measuring else _BY_THREADS) * limited


def is_limited() -> bool:
    """Whether this process by itself may take only so much (`ulimit -v` or `-d`)."""
    return any(_own_limits(""))


def memory_bounds(at_most: bool = False) -> list[MemoryBound]:
    """All limits on the memory of this process.

    Args:
        at_most: whether to count all that may be taken at the utmost: swap, and the memory of all
            files that could be read again.
    """
    machine = _text_of(_BOOT).strip()
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    size = memory.available
    if at_most:
        cached = getattr(memory, "buffers", 0) + getattr(memory, "cached", 0)
        size = max(size, memory.free + cached) + swap.free
    found = [MemoryBound(size, _MACHINE, machine)]
    for folder in _cgroups():
        found += bounds_of_folder(folder, machine, swap.free if at_most else None)
    return [*found, *_own_limits(machine)]


def bounds_of_folder(folder: Path, machine: str, swap: int | None = None) -> Iterator[MemoryBound]:
    """The limit of one memory cgroup, if it has one.

    Args:
        folder: of the cgroup.
        machine: identifies the machine.
        swap: the machine's free swap, where all that may be taken at the utmost counts.
    """
    for limit, usage, soon, late in _VERSIONS:
        most, used = _number(folder / limit), _number(folder / usage)
        if most is None or used is None:
            continue
        known = _statistics(folder / "memory.stat")
        names = soon if swap is None else (*soon, *late)
        size = max(0, most - used + sum(known.get(name, 0) for name in names))
        if swap is not None:
            limit_of_swap, swapped = (_number(folder / name) for name in _SWAP)
            left = swap if limit_of_swap is None else limit_of_swap - (swapped or 0)
            size += max(0, min(swap, left))
        status = folder.stat()
        yield MemoryBound(size, _CGROUP, f"{machine}:{status.st_dev}:{status.st_ino}")


def _cgroups() -> Iterator[Path]:
    """The folders of this process's memory cgroups, and of those around them."""
    mounts = psutil.disk_partitions(all=True)
    for line in _text_of(_MINE).splitlines():
        _, controllers, path = line.split(":", 2)
        for mount in mounts:
            options = mount.opts.split(",")
            if controllers:
                fits = mount.fstype == "cgroup" and "memory" in options
                fits = fits and "memory" in controllers.split(",")
            else:
                fits = mount.fstype == "cgroup2"
            if fits:
                yield from _with_parents(Path(mount.mountpoint), path)


def _with_parents(mount: Path, path: str) -> Iterable[Path]:
    """A cgroup's folder and those around it, below `mount`.

    A container may see no more than its own cgroup, mounted at the top, under a path of the host's.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not mount.joinpath(*parts).is_dir():
        return [mount]
    return itertools.accumulate(parts, Path.joinpath, initial=mount)


def _own_limits(machine: str) -> Iterator[MemoryBound]:
    """What the limits of this process itself leave it (`ulimit`)."""
    process = psutil.Process()
    used = process.memory_info()
    for name, field in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
        number = getattr(psutil, name, None)  # of Linux and FreeBSD
        if number is None or not hasattr(used, field):
            continue
        soft, _ = process.rlimit(number)
        if soft not in (-1, psutil.RLIM_INFINITY):
            size = max(0, soft - getattr(used, field))
            yield MemoryBound(size, name, f"{machine}:{os.getpid()}:{name}")


def _text_of(file: Path) -> str:
    """What is in a file of the system's; nothing where it is not Linux."""
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""


def _number(file: Path) -> int | None:
    """The number in a file; None without a file, and for "max"."""
    text = _text_of(file).strip()
    return int(text) if text.isdigit() else None


def _statistics(file: Path) -> dict[str, int]:
    lines = (line.split() for line in _text_of(file).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
