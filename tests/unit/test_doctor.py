"""Each trap that a machine can set is found, with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hyparflow.launching.doctor import examination, machine, packages
from hyparflow.launching.doctor.examination import _merged
from hyparflow.launching.doctor.finding import OK, PROBLEM, WARNING, Finding, show
from hyparflow.launching.doctor.machine import Machine, check_machine
from hyparflow.launching.installation import install_command
from hyparflow.launching.mpi_library import MPICH, OPEN_MPI, Mpi

OPEN = Mpi(OPEN_MPI, "5.0.11")


@pytest.fixture(autouse=True)
def open_mpi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with Open MPI and its launcher."""
    path = tmp_path / "mpirun"
    monkeypatch.setattr(machine, "library", lambda: OPEN)
    monkeypatch.setattr(machine, "find_launcher", lambda mpi: path)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(path))
    monkeypatch.setattr(machine, "matching", lambda path: OPEN)
    monkeypatch.setattr(machine, "_may_read_others", lambda: True)


def find(check: str, tmp_path: Path, **changes: Any) -> Finding:
    """What one check finds on a machine that differs from a good one."""
    good = Machine({}, tmp_path, tmp_path / "keras.json", False, ("lo", "eth0"))
    found = {f.check: f for f in check_machine(good._replace(**changes))}
    return found[check]


def test_a_good_machine(tmp_path: Path) -> None:
    good = Machine({}, tmp_path, tmp_path / "keras.json", False, ("lo", "eth0"))
    assert {f.check: f for f in check_machine(good) if f.status != OK} == {}


def test_another_backend(tmp_path: Path) -> None:
    found = find("Keras's backend", tmp_path, environ={"KERAS_BACKEND": "jax"})
    assert found.status == PROBLEM
    assert "jax, by KERAS_BACKEND" in found.text
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "torch"}))
    found = find("Keras's backend", tmp_path)
    assert "torch, by" in found.text
    assert found.fix == "export KERAS_BACKEND=tensorflow"
    for text in ("{", "[]"):
        (tmp_path / "keras.json").write_text(text)
        assert find("Keras's backend", tmp_path).status == OK
    (tmp_path / "keras.json").unlink()
    os.mkfifo(tmp_path / "keras.json")
    assert find("Keras's backend", tmp_path).status == OK


@pytest.mark.parametrize(("environ", "told"), [({}, True), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, False)])
def test_one_dnn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], told: bool
) -> None:
    flags = frozenset(["avx2", "fma"])
    monkeypatch.setattr("hyparflow.comm.one_dnn.processor_flags", lambda: flags)
    found = find("oneDNN", tmp_path, environ=environ)
    assert found.status == OK
    assert ("TF_ENABLE_ONEDNN_OPTS=1" in found.text) == told


@pytest.mark.parametrize(
    ("package", "version", "fix"),
    [
        ("keras", "2.15.0", 'pip install "keras>=3.12"'),
        ("keras", "", 'pip install "keras>=3.12"'),
        ("tensorflow", "", install_command("cpu")),
        ("tensorflow", "2.19.1", 'pip install "tensorflow>=2.20"'),
    ],
)
def test_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, version: str, fix: str
) -> None:
    monkeypatch.setattr(
        packages, "found_version", lambda name: (name, version if name == package else "9.9")
    )
    found = find({"keras": "Keras", "tensorflow": "TensorFlow"}[package], tmp_path)
    assert found.status == PROBLEM
    assert fix in found.fix


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Mpi:
        raise ValueError("mpi4py must load Open MPI, MPICH or Intel MPI. Received: nothing.")

    monkeypatch.setattr(machine, "library", none)
    assert find("MPI library", tmp_path).status == PROBLEM


def test_launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tmp_path / "first" / "mpirun"
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(first))
    other = Mpi(MPICH, "4.3.2")
    monkeypatch.setattr(machine, "matching", lambda path: other if path == first else OPEN)
    found = find("launcher", tmp_path)
    assert found.status == WARNING
    assert f"`mpirun` is {first} of MPICH 4.3.2" in found.text
    assert "hyparflow run" in found.fix
    monkeypatch.setattr(machine, "matching", lambda path: Mpi(OPEN_MPI, "4.1.6"))
    assert "the library of Open MPI 5.0.11" in find("launcher", tmp_path).text

    def none(mpi: Mpi) -> Path:
        raise ValueError("Ranks must be started by the launcher of the library")

    monkeypatch.setattr(machine, "find_launcher", none)
    assert find("launcher", tmp_path).status == PROBLEM


@pytest.mark.parametrize(
    ("kinds", "said", "status", "text"),
    [
        ("none pmi2", "works", PROBLEM, "srun has no PMIx"),
        ("none pmix_v4", "srun: error: can not load PMIx library", PROBLEM, "does not start"),
        ("none pmix_v4", "srun: job 7 started\nworks\n", OK, "starts ranks"),
    ],
)
def test_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str, said: str, status: str, text: str
) -> None:
    answers = {"--mpi=list": kinds, "--mpi=pmix": said}
    monkeypatch.setattr(machine, "_output", lambda command: answers[command[1]])
    found = find("Slurm", tmp_path, environ={"SLURM_JOB_ID": "7"})
    assert found.status == status
    assert text in found.text
    assert find("Slurm", tmp_path).status == OK


def test_root(tmp_path: Path) -> None:
    assert find("user", tmp_path, is_root=True).status == WARNING
    both = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert find("user", tmp_path, is_root=True, environ=both).status == OK


def test_containers_without_ptrace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_may_read_others", lambda: False)
    found = find("memory of other ranks", tmp_path)
    assert found.status == WARNING
    assert "SYS_PTRACE" in found.fix


def test_interfaces_that_lead_nowhere(tmp_path: Path) -> None:
    bridges = ("lo", "eth0", "docker0", "virbr0", "br-12ab")
    found = find("network interfaces", tmp_path, interfaces=bridges)
    assert found.status == WARNING
    assert "btl_tcp_if_exclude=lo,br-12ab,docker0,virbr0" in found.fix
    chosen = {"OMPI_MCA_btl_tcp_if_include": "eth0"}
    again = find("network interfaces", tmp_path, interfaces=bridges, environ=chosen)
    assert again.status == OK


def test_little_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=64 << 20)
    monkeypatch.setattr(machine.psutil, "disk_usage", lambda path: usage)
    found = find("shared memory", tmp_path)
    assert found.status == PROBLEM
    assert "--shm-size" in found.fix


def test_threads_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find("cores", tmp_path, environ={"TF_NUM_INTRAOP_THREADS": "4096"})
    assert found.status == WARNING
    monkeypatch.setattr(machine.devices, "count_devices", lambda: 2)
    ranks = {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "4"}
    found = find("GPUs", tmp_path, environ=ranks)
    assert (found.status, found.text[:14]) == (WARNING, "2 for 4 ranks ")
    assert find("GPUs", tmp_path).status == OK


def test_whether_memory_of_another_process_may_be_read() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert machine.may_read(os.getpid())
    assert not machine.may_read(ended.pid)


def test_a_terminal_has_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("cores", OK, "8"), Finding("GPUs", WARNING, "[2] for 4", "start 2")]
    monkeypatch.setenv("COLUMNS", "60")
    show(findings, is_drawn=True)
    drawn = capsys.readouterr().out
    assert "\u2500" in drawn and all(len(line) <= 60 for line in drawn.splitlines())
    show(findings, is_drawn=False)
    plain = capsys.readouterr().out
    assert plain == ("ok       cores  8\nwarning  GPUs   [2] for 4\n                Fix: start 2\n")
    words = "status check found " + plain
    assert drawn.replace("\u2500", "").split() == words.split()
    show([Finding("Python", OK, "/" + "z" * 100)], is_drawn=True)
    assert capsys.readouterr().out.count("z") == 100


def test_a_job_that_cannot_be_started_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    (found,) = examination._try_ranks()
    monkeypatch.chdir(tmp_path)
    assert (found.check, found.status) == ("ranks", PROBLEM)
    assert "could not be started: Ranks start in the working folder" in found.text


def test_ranks_that_find_something_else() -> None:
    good, bad = Finding("cores", OK, "8"), Finding("cores", WARNING, "1", "more")
    assert _merged([[good], [good]]) == [good]
    assert _merged([[good], [bad]]) == [Finding("cores", WARNING, "rank 1: 1", "more")]
