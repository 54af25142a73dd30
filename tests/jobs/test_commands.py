"""The command `hyparflow` under mpirun."""

from __future__ import annotations

import json
import pathlib

import pytest
from jobs.jobs import run, run_alone

import hyparflow as hf


def test_doctor_measures_the_network(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.json"
    result = run(2, "-m", "hyparflow.cli", "doctor", "--network", path)
    assert result.code == 0, result.output
    cluster = hf.Cluster.load(path)
    assert cluster.num_ranks == 2
    assert 0 < cluster.within.latency < 1e-2
    assert cluster.within.bandwidth > 1e6
    assert cluster.between == hf.Cluster().between  # there is no other node to measure
    assert set(json.loads(path.read_text())) >= {"nodes", "within", "between"}


def test_doctor_needs_two_ranks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.json"
    result = run_alone("-m", "hyparflow.cli", "doctor", "--network", path)
    assert result.code == 2
    assert "mpirun -n 2" in result.output


def test_doctor_alone_starts_two_ranks() -> None:
    result = run_alone("-m", "hyparflow.cli", "doctor", "--json")
    assert result.code == 0, result.output
    findings = {found["check"]: found for found in json.loads(result.output)}
    assert "2 ranks on 1 node" in findings["ring"]["text"]
    assert "GB/s" in findings["allreduce"]["text"]
    assert {found["status"] for found in findings.values()} <= {"ok", "warning"}


def test_doctor_looks_at_the_ranks_of_a_job() -> None:
    result = run(4, "-m", "hyparflow.cli", "doctor", TF_NUM_INTRAOP_THREADS="16")
    assert "4 ranks on 1 node" in result.output
    assert "compute with 64 threads" in result.output
    assert result.output.count("Keras's backend") == 1


def test_doctor_tells_of_a_problem() -> None:
    result = run_alone("-m", "hyparflow.cli", "doctor", KERAS_BACKEND="jax")
    assert result.code == 1
    assert "export KERAS_BACKEND=tensorflow" in result.output


def test_doctor_tells_of_ranks_that_do_not_see_each_other() -> None:
    result = run_alone("-m", "hyparflow.cli", "doctor", "--json", PMI_SIZE="2", PMI_RANK="0")
    assert result.code == 1
    findings = {found["check"]: found for found in json.loads(result.output)}
    assert "MPI sees only one" in findings["ranks"]["text"]


PLAN = "import hyparflow as hf; hf.plan(1, batch_size=8, num_ranks=2)"


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("-c", PLAN), "hyparflow trains Keras 3 models", 1),
        (("-m", "hyparflow.cli", "plan", "none.keras", "--ranks=2", "--batch-size=8"), "none", 2),
        (("-m", "hyparflow.cli", "doctor", "--networks"), "No such option", 2),
    ],
    ids=["hf.plan", "plan", "doctor"],
)
def test_what_needs_no_other_rank_gives_one_report(
    words: tuple[str, ...], said: str, code: int
) -> None:
    result = run(2, *words)
    assert result.code == code, result.output
    assert result.output.count(said) == 1, result.output
