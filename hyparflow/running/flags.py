"""How many ranks, where, and how that is said to each launcher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyparflow import launcher
from hyparflow.running.mpi import INTEL, MPICH, OPEN_MPI, Mpi
from hyparflow.text import counted

__all__ = ["Request", "environment", "flags", "physical_cores"]

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
# What ranks on other hosts must be told; MPICH and Intel MPI tell them everything.
_TOLD = ("HYPARFLOW_", "TF_", "OMP_", "KERAS_", "PYTHON", "CUDA_", "XLA_", "MPI4PY_")


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        ranks: how many.
        hosts: names with numbers of ranks, "a:2,b:2"; None for this machine.
        hostfile: a file of hosts for the launcher; None for none.
        oversubscribe: whether there may be more ranks than cores.
        is_allocated: whether a batch system tells the launcher of several hosts.
    """

    ranks: int
    hosts: str | None = None
    hostfile: str | None = None
    oversubscribe: bool = False
    is_allocated: bool = False

    @property
    def is_local(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.hosts is None and self.hostfile is None and not self.is_allocated

    @property
    def ranks_per_host(self) -> int | None:
        """The most ranks of a host; None if that is not known.

        Raises:
            ValueError: if hosts are not written so, have too few ranks, or are given twice.
        """
        if self.hosts is not None and self.hostfile is not None:
            raise ValueError(
                "Hosts are given by --hosts or by --hostfile. Received: both, "
                f"{self.hosts} and {self.hostfile}"
            )
        if self.hosts is None:
            return self.ranks if self.is_local else None
        counts = []
        for part in self.hosts.split(","):
            name, _, count = part.partition(":")
            if not name or (count and not (count.isdigit() and int(count))):
                raise ValueError(
                    "Hosts are written as names with numbers of ranks, 'a:2,b:2'. "
                    f"Received: {self.hosts}"
                )
            counts.append(int(count or 1))
        if sum(counts) < self.ranks:
            raise ValueError(
                "Hosts must have room for all ranks. "
                f"Received: {self.ranks} ranks, {sum(counts)} in {self.hosts}"
            )
        return max(counts)


def physical_cores() -> int:
    """The cores that this process may use, two threads of one core counted once."""
    siblings = set()
    for core in launcher.usable_cores():
        try:
            siblings.add(Path(_TOPOLOGY.format(core)).read_text())
        except OSError:
            siblings.add(str(core))
    return len(siblings)


def cores_per_rank(request: Request) -> int | None:
    """How many cores each rank has to itself; None where they share, or hosts are not known.

    Raises:
        ValueError: if there are more ranks than cores, and that was not asked for.
    """
    per_host = request.ranks_per_host
    if per_host is None:
        return None
    cores = physical_cores()
    if per_host <= cores:
        return cores // per_host
    if not request.oversubscribe and request.is_local:
        raise ValueError(
            f"Each rank needs a core. Received: {request.ranks} ranks on "
            f"{counted(cores, 'core', 'cores')}. Start fewer, or allow it by --oversubscribe "
            "(in Python oversubscribe=True); ranks that share a core slow each other down."
        )
    return None


def flags(mpi: Mpi, request: Request) -> list[str]:
    """The launcher's flags for `request`."""
    cores = cores_per_rank(request)
    return _FLAGS[mpi.vendor](request, cores)


def _who_and_where(request: Request, hosts: str, hostfile: str) -> list[str]:
    """How many ranks, and on which hosts, by the names that a launcher's flags have."""
    named = ((hosts, request.hosts), (hostfile, request.hostfile))
    given = [word for flag, value in named if value for word in (flag, value)]
    return ["-n", str(request.ranks), *given]


def _open_mpi(request: Request, cores: int | None) -> list[str]:
    found = _who_and_where(request, "--host", "--hostfile")
    if cores is not None:
        return [*found, "--map-by", f"slot:PE={cores}", "--bind-to", "core"]
    if request.oversubscribe:
        found += ["--map-by", ":OVERSUBSCRIBE"]
    return [*found, "--bind-to", "none"]


def _mpich(request: Request, cores: int | None) -> list[str]:
    bound = "none" if cores is None else f"core:{cores}"
    return [*_who_and_where(request, "-hosts", "-f"), "-bind-to", bound]


def _intel(request: Request, cores: int | None) -> list[str]:
    pinned = ["I_MPI_PIN", "off"] if cores is None else ["I_MPI_PIN_DOMAIN", str(cores)]
    return [*_who_and_where(request, "-hosts", "-f"), "-genv", *pinned]


_FLAGS = {OPEN_MPI: _open_mpi, MPICH: _mpich, INTEL: _intel}


def environment(mpi: Mpi, request: Request, known: dict[str, str]) -> dict[str, str]:
    """What the launcher's environment needs beside `known`."""
    found = dict(known)
    cores = cores_per_rank(request)
    per_host = request.ranks_per_host or 1
    launcher.set_threads(found, cores or max(1, physical_cores() // per_host), keep=True)
    if mpi.vendor == OPEN_MPI and os.geteuid() == 0:
        found |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {name: value for name, value in found.items() if known.get(name) != value}


def passed_on(mpi: Mpi, request: Request, names: Sequence[str]) -> list[str]:
    """Flags that tell ranks on other hosts the variables of these names that concern them."""
    if request.is_local or mpi.vendor != OPEN_MPI:
        return []
    return [word for name in names if name.startswith(_TOLD) for word in ("-x", name)]
