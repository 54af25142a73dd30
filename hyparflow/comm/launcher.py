"""What started this process: read from the environment, without starting MPI."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

__all__ = [
    "allocated_nodes",
    "describe_command",
    "expected_size",
    "is_launched",
    "local_rank",
    "local_size",
    "rank_variable",
    "set_log_default",
    "set_thread_defaults",
    "set_threads",
    "told_rank",
    "usable_cores",
]

# Variable that tells the number of ranks -> the launcher that sets it.
_SIZES = {
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpiexec (MPICH, Intel MPI) or srun with PMI",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
    "SLURM_STEP_NUM_TASKS": "srun",
    "PALS_SIZE": "PALS",
}
_RANKS = (
    *("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK"),
    *("SLURM_PROCID", "PALS_RANKID"),
)
_LOCAL_RANKS = (
    *("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("PALS_LOCAL_RANKID", "SLURM_LOCALID"),
)
_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")


def expected_size(environ: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """The number of ranks that the launcher says it started, and the launcher's name.

    ``(1, "")`` if this process was started by no launcher.
    """
    for variable, launcher in _SIZES.items():
        value = environ.get(variable, "")
        if value.isdigit():
            return int(value), launcher
    return 1, ""


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher of parallel jobs started this process, or MPI already runs."""
    return "mpi4py.MPI" in sys.modules or bool(expected_size(environ)[1])


def rank_variable(environ: Mapping[str, str] = os.environ) -> str:
    """The variable in which the launcher tells a process its rank; "" if none does."""
    return next((name for name in _RANKS if environ.get(name, "").isdigit()), "")


def told_rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's rank, as far as a launcher of several says; otherwise 0."""
    variable = rank_variable(environ)
    return int(environ[variable]) if variable and expected_size(environ)[0] > 1 else 0


def local_size(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks share this machine, as far as the launcher says; otherwise 1."""
    for variable in _LOCAL_SIZES:
        value = environ.get(variable, "")
        if value.isdigit():
            return int(value)
    tasks = environ.get("SLURM_TASKS_PER_NODE", "") if "SLURM_STEP_NUM_TASKS" in environ else ""
    head = tasks.split("(")[0].split(",")[0]
    return int(head) if head.isdigit() else 1


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """The number of this rank among those on this machine, as far as the launcher says."""
    if not expected_size(environ)[1]:
        return 0
    values = (environ.get(variable, "") for variable in _LOCAL_RANKS)
    return next((int(value) for value in values if value.isdigit()), 0)


def allocated_nodes(environ: Mapping[str, str] = os.environ) -> int:
    """How many nodes a batch system has given to this job, as far as it says; otherwise 1."""
    value = environ.get("SLURM_JOB_NUM_NODES", "")
    return int(value) if value.isdigit() else 1


def describe_command(num_ranks: int) -> str:
    """The command line that runs this script over `num_ranks` ranks."""
    script = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "train.py"
    return f"mpirun -n {num_ranks} python {script}"


def usable_cores() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def set_log_default(environ: MutableMapping[str, str] = os.environ) -> None:
    """Hide TensorFlow's log lines of level INFO, unless the user chose a level.

    Warnings and errors stay. TensorFlow reads the variable when it is loaded.
    """
    if expected_size(environ)[1]:
        environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def set_thread_defaults(environ: MutableMapping[str, str] = os.environ) -> None:
    """Give TensorFlow as many threads as this rank has cores, unless the user chose a number.

    Several ranks with a full thread pool each slow each other down by up to two times.
    """
    ranks = local_size(environ)
    if ranks < 2 or not hasattr(os, "sched_getaffinity"):
        return
    cores = len(usable_cores())
    unbound = cores == os.cpu_count()
    count = max(1, cores // ranks if unbound else cores)
    set_threads(environ, count, keep=True)


def set_threads(environ: MutableMapping[str, str], count: int, keep: bool = False) -> None:
    """Have TensorFlow use `count` threads; it reads these variables when it first runs anything.

    Args:
        environ: environment variables.
        count: threads.
        keep: whether variables that are already set stay.
    """
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        if not (keep and variable in environ):
            environ[variable] = str(count)
