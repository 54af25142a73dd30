"""How many ranks to start and where, and the flags for it of each launcher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from hyparflow.comm import launcher
from hyparflow.formats.text import counted
from hyparflow.launching.mpi_library import INTEL, MPICH, OPEN_MPI, Mpi, home, temporary

__all__ = [
    "LaunchRequest",
    "environment",
    "flags",
    "has_shared_memory",
    "passed_on",
    "physical_cores",
]

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
# Variables to pass to ranks on other hosts; MPICH and Intel MPI pass all.
_LOOPBACK = ("lo", "lo0")
_SHARED = "/dev/shm"
_SEGMENT = 32 << 20  # bytes of shared memory with which a rank needs no TCP
_TOLD = ("HYPARFLOW_", "TF_", "OMP_", "KERAS_", "PYTHON", "CUDA_", "XLA_", "MPI4PY_")
_HOSTS_RULE = "Hosts are written as names with numbers of ranks, 'a:2,b:2'"
_LEAST_MEMORY = 16 << 20  # bytes that a rank takes, whatever it does


@dataclass(frozen=True)
class LaunchRequest:
    """The ranks that a user asks for.

    Attributes:
        ranks: the number of ranks.
        hosts: names with numbers of ranks, "a:2,b:2"; None for this machine.
        hostfile: a file of hosts for the launcher; None for none.
        oversubscribe: whether there may be more ranks than cores.
        is_allocated: whether a batch system gives the launcher several hosts.
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
            ValueError: if the text of `hosts` is wrong, hosts have too few ranks, or stand twice.
        """
        if self.hosts is not None and self.hostfile is not None:
            raise ValueError(
                "Hosts are given by --hosts or by --hostfile. Received: both, "
                f"{self.hosts} and {self.hostfile}"
            )
        if self.hosts is None:
            return self.ranks if self.is_local else None
        if not isinstance(self.hosts, str):
            raise ValueError(f"{_HOSTS_RULE}. Received: {self.hosts!r}")
        counts = []
        for part in self.hosts.split(","):
            name, _, count = part.partition(":")
            if not name or (count and not (count.isdigit() and int(count))):
                raise ValueError(f"{_HOSTS_RULE}. Received: {self.hosts}")
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


def cores_per_rank(request: LaunchRequest) -> int | None:
    """How many cores each rank has to itself; None where they share, or hosts are not known.

    Raises:
        ValueError: if there are more ranks than cores, and `oversubscribe` is False.
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
    memory = psutil.virtual_memory().total
    if request.is_local and per_host > memory // _LEAST_MEMORY:
        raise ValueError(
            f"Ranks must fit in memory. Received: {request.ranks} ranks on a machine with "
            f"{memory / 2**30:.0f} GiB. Start fewer."
        )
    return None


def flags(mpi: Mpi, request: LaunchRequest) -> list[str]:
    """The launcher's flags for `request`."""
    cores = cores_per_rank(request)
    return _FLAGS[mpi.vendor](request, cores)


def _who_and_where(request: LaunchRequest, hosts: str, hostfile: str) -> list[str]:
    """Flags for the number of ranks and their hosts, with the launcher's names of flags."""
    named = ((hosts, request.hosts), (hostfile, request.hostfile))
    given = [word for flag, value in named if value for word in (flag, value)]
    return ["-n", str(request.ranks), *given]


def _open_mpi(request: LaunchRequest, cores: int | None) -> list[str]:
    found = _who_and_where(request, "--host", "--hostfile")
    if cores is not None:
        return [*found, "--map-by", f"slot:PE={cores}", "--bind-to", "core"]
    if request.oversubscribe:
        found += ["--map-by", ":OVERSUBSCRIBE"]
    return [*found, "--bind-to", "none"]


def _mpich(request: LaunchRequest, cores: int | None) -> list[str]:
    bound = "none" if cores is None else f"core:{cores}"
    return [*_who_and_where(request, "-hosts", "-f"), "-bind-to", bound]


def _intel(request: LaunchRequest, cores: int | None) -> list[str]:
    pinned = ["I_MPI_PIN", "off"] if cores is None else ["I_MPI_PIN_DOMAIN", str(cores)]
    return [*_who_and_where(request, "-hosts", "-f"), "-genv", *pinned]


_FLAGS = {OPEN_MPI: _open_mpi, MPICH: _mpich, INTEL: _intel}


def environment(mpi: Mpi, request: LaunchRequest, known: dict[str, str]) -> dict[str, str]:
    """Environment variables to add to `known`, for the launcher."""
    found = dict(known)
    cores = cores_per_rank(request)
    per_host = request.ranks_per_host or 1
    launcher.set_threads(found, cores or max(1, physical_cores() // per_host), keep=True)
    if mpi.vendor == OPEN_MPI and os.geteuid() == 0:
        found |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if not known.get("HOME"):  # Open MPI does not start without it
        found["HOME"] = home()
    found |= temporary(known)
    if request.is_local:
        found = _only_here(mpi, request, known) | found
    return {name: value for name, value in found.items() if known.get(name) != value}


def _only_here(mpi: Mpi, request: LaunchRequest, known: dict[str, str]) -> dict[str, str]:
    """Variables that keep ranks from listening to other machines; the user's choice stays."""
    names = [name for name in psutil.net_if_addrs() if name in _LOOPBACK]
    if not names:
        return {}
    found = {"UCX_NET_DEVICES": names[0], "FI_TCP_IFACE": names[0], "FI_SOCKETS_IFACE": names[0]}
    if mpi.vendor == OPEN_MPI and not any(name.startswith("OMPI_MCA_btl") for name in known):
        # Its TCP listens on all interfaces; it is used only if there is too little shared memory.
        if has_shared_memory(request.ranks):
            found["OMPI_MCA_btl"] = "^tcp"
        else:
            found["OMPI_MCA_btl_tcp_if_include"] = names[0]
    return found


def has_shared_memory(ranks: int) -> bool:
    """Whether `ranks` ranks can exchange messages through shared memory."""
    try:
        return psutil.disk_usage(_SHARED).free >= ranks * _SEGMENT
    except OSError:
        return False


def passed_on(mpi: Mpi, request: LaunchRequest, names: Sequence[str]) -> list[str]:
    """Flags that tell ranks on other hosts the variables of these names that concern them."""
    if request.is_local or mpi.vendor != OPEN_MPI:
        return []
    return [word for name in names if name.startswith(_TOLD) for word in ("-x", name)]
