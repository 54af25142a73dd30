"""What the environment says about the ranks, without MPI."""

from __future__ import annotations

import os

import pytest

from hyparflow.comm.launcher import (
    allocated_nodes,
    describe_command,
    expected_size,
    is_launched,
    local_size,
    set_log_default,
    set_thread_defaults,
)

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    "environ, size, name",
    [
        ({}, 1, ""),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4, "mpirun (Open MPI)"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1, "mpirun (Open MPI)"),
        ({"PMI_SIZE": "2"}, 2, "mpiexec (MPICH, Intel MPI) or srun with PMI"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 8, "srun"),
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "4"}, 4, "mpirun (Open MPI)"),
        ({"PMI_SIZE": ""}, 1, ""),
        ({"SLURM_NTASKS": "8"}, 1, ""),  # inside a job, but this process is not one of its tasks
    ],
)
def test_expected_size(environ: dict[str, str], size: int, name: str) -> None:
    assert expected_size(environ) == (size, name)
    assert is_launched(environ) == bool(name)


@pytest.mark.parametrize(
    "environ, size",
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
        ({"MPI_LOCALNRANKS": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "7", "SLURM_TASKS_PER_NODE": "2(x3),1"}, 2),
        ({"SLURM_STEP_NUM_TASKS": "5", "SLURM_TASKS_PER_NODE": "3,2"}, 3),
        ({"SLURM_TASKS_PER_NODE": "4"}, 1),
    ],
)
def test_local_size(environ: dict[str, str], size: int) -> None:
    assert local_size(environ) == size


@pytest.mark.parametrize(
    "argv, command",
    [
        (["train.py", "--fast"], "mpirun -n 4 python train.py"),
        (["-c"], "mpirun -n 4 python train.py"),
        ([""], "mpirun -n 4 python train.py"),
        (["jobs/run.py"], "mpirun -n 4 python jobs/run.py"),
    ],
)
def test_command(argv: list[str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert describe_command(4) == command


def threads(
    monkeypatch: pytest.MonkeyPatch, machine: int, bound_to: int, environ: dict[str, str]
) -> list[str | None]:
    """The numbers of threads on a machine of `machine` cores, bound to `bound_to` of them."""
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound_to)), raising=False)
    set_thread_defaults(environ)
    return [environ.get(variable) for variable in THREADS]


@pytest.mark.parametrize(
    "machine, bound_to, ranks, expected",
    [
        (8, 8, 4, "2"),  # unbound ranks share the cores
        (8, 2, 4, "2"),  # bound ranks have their own
        (2, 2, 4, "1"),  # more ranks than cores
        (8, 8, 1, None),  # alone: TensorFlow's own choice
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, machine: int, bound_to: int, ranks: int, expected: str | None
) -> None:
    environ = {"OMPI_COMM_WORLD_LOCAL_SIZE": str(ranks)}
    assert threads(monkeypatch, machine, bound_to, environ) == [expected] * 3


def test_a_chosen_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "7"}
    assert threads(monkeypatch, 8, 8, environ) == ["4", "4", "7"]


def test_nodes_of_a_batch_job() -> None:
    assert allocated_nodes({}) == 1
    assert allocated_nodes({"SLURM_JOB_NUM_NODES": "3"}) == 3


def test_notices_of_tensorflow_are_the_users_choice() -> None:
    alone: dict[str, str] = {}
    set_log_default(alone)
    assert alone == {}
    rank = {"OMPI_COMM_WORLD_SIZE": "2"}
    set_log_default(rank)
    assert rank["TF_CPP_MIN_LOG_LEVEL"] == "1"
    chosen = rank | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    set_log_default(chosen)
    assert chosen["TF_CPP_MIN_LOG_LEVEL"] == "0"
