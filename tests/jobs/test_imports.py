"""What importing hyparflow does not do, and how it finds out how many ranks there are."""

from __future__ import annotations

import pytest
from jobs.jobs import SCRIPTS, run, run_alone

HEAVY = ("mpi4py", "tensorflow", "keras", "numpy")


def test_import_starts_nothing() -> None:
    code = f"import hyparflow, sys; print('loaded:', set(sys.modules) & set({HEAVY!r}))"
    result = run_alone("-c", code)
    assert result.code == 0, result.output
    assert "loaded: set()" in result.output


def test_trains_without_mpi4py() -> None:
    result = run_alone(SCRIPTS / "train.py", "--without-mpi4py")
    assert result.code == 0, result.output
    assert "trained for 2 epochs on 1 rank" in result.output
    assert "hyparflow trains in one process" not in result.output


def test_one_process_trains_and_says_how_to_start_more() -> None:
    result = run_alone(SCRIPTS / "train.py")
    assert result.code == 0, result.output
    assert "trained for 2 epochs on 1 rank" in result.output
    assert result.output.count("mpirun -n 4 python") == 1
    # The warning points at the user's line, not into hyparflow.
    (warning,) = (line for line in result.output.splitlines() if "mpirun -n 4" in line)
    assert "scripts/train.py:" in warning.split("UserWarning")[0]


def test_one_rank_of_a_launcher_is_refused() -> None:
    result = run(1, SCRIPTS / "train.py")
    assert result.code != 0
    assert "num_partitions=2, num_replicas=2, which is 4, but 1 rank runs" in result.output
    assert "mpirun -n 4 python" in result.output
    assert "trained for" not in result.output


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_launcher_without_its_mpi_is_refused(variable: str) -> None:
    # Every process would train alone, and believe that it is all of them.
    result = run_alone("-c", "import hyparflow; hyparflow.size()", **{variable: "4"})
    assert result.code != 0
    assert "RuntimeError" in result.output
    assert "started 4 processes, but MPI sees only one" in result.output
    assert "Received: MPI library" in result.output
    assert "srun --mpi=pmix" in result.output
