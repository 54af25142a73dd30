"""The scripts in slurm/, submitted to a real Slurm that is started for it on this machine."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from jobs.jobs import SCRIPTS, user_environment

SLURM = pathlib.Path(__file__).parents[2] / "slurm"
CLUSTER = SLURM / "testing" / "start_cluster.sh"
ENDED = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT")
LIMIT = 240  # seconds for a job, with its turn in the queue


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user of the cluster."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a Slurm of its own")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        [CLUSTER, folder, "8"], capture_output=True, text=True, timeout=280, check=False
    )
    if started.returncode:
        pytest.skip(f"Slurm cannot be had here: {(started.stderr or started.stdout)[-500:]}")
    # Slurm finds no programs but by the PATH.
    commands = folder / "bin"
    commands.mkdir()
    for name, words in (("python", '"$@"'), ("hyparflow", '-m hyparflow.cli "$@"')):
        path = commands / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}\n')
        path.chmod(0o755)
    known = user_environment()
    paths = [str(commands), str(pathlib.Path(sys.executable).parent), known["PATH"]]
    yield known | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": os.pathsep.join(paths)}
    subprocess.run([CLUSTER, "--stop", folder], check=False, timeout=60)


class Submitted:
    """A job in the queue, for which `sbatch --wait` waits.

    Args:
        cluster: the environment.
        folder: where its output goes.
        words: for sbatch.
    """

    def __init__(self, cluster: dict[str, str], folder: pathlib.Path, *words: object) -> None:
        self._cluster, self._folder = cluster, folder
        self._process = subprocess.Popen(
            ["sbatch", "--wait", "--output", "%j.txt", *map(str, words)],
            cwd=folder,
            env=cluster,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        number = re.search(r"Submitted batch job (\d+)", line)
        assert number, line
        self.number = number[1]

    def end(self) -> tuple[int, str]:
        """The exit status that sbatch passes on, and what the job wrote."""
        code = self._process.wait(LIMIT)
        return code, self.output()

    def end_soon(self) -> tuple[int, str]:
        """The same, without the half minute for which sbatch does not look."""
        begin = time.monotonic()
        while (account := self.account())["JobState"] not in ENDED:
            assert time.monotonic() < begin + LIMIT, self.output()
            time.sleep(0.3)
        self._process.kill()
        self._process.wait()
        code, by_signal = map(int, account["ExitCode"].split(":"))
        return code or (128 + by_signal if by_signal else 0), self.output()

    def output(self) -> str:
        """What the job has written so far."""
        path = self._folder / f"{self.number}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def account(self) -> dict[str, str]:
        """What Slurm knows of it."""
        command = ["scontrol", "show", "job", self.number]
        told = subprocess.run(
            command, env=self._cluster, check=True, capture_output=True, text=True
        ).stdout
        return dict(pair.split("=", 1) for pair in told.split() if "=" in pair)


def ranks(output: str) -> dict[int, str]:
    """What each rank said of itself."""
    found = re.findall(r"rank (\d+) of (\d+), (.*)$", output, re.MULTILINE)
    assert len({size for _, size, _ in found}) == 1, output
    assert len(found) == int(found[0][1]), output
    return {int(rank): text for rank, _, text in found}


@pytest.mark.slow
def test_scripts(cluster: dict[str, str], tmp_path: pathlib.Path) -> None:
    who, same = SCRIPTS / "who.py", SCRIPTS / "same.py"
    jobs = {
        "template": Submitted(cluster, tmp_path, SLURM / "template.sh", who),
        "data": Submitted(cluster, tmp_path, SLURM / "data.sh", who),
        # The cluster has one node, so two of the job's are on it.
        "hybrid": Submitted(
            cluster, tmp_path, "--nodes=1", "--ntasks-per-node=4", SLURM / "hybrid.sh", who
        ),
        "model": Submitted(cluster, tmp_path, SLURM / "model.sh", same),
        "mpirun": Submitted(cluster, tmp_path, SLURM / "mpirun.sh", same),
    }
    sizes = {"template": 2, "data": 4, "hybrid": 4, "model": 2, "mpirun": 2}
    for name, job in jobs.items():
        code, output = job.end()
        assert code == 0, (name, output)
        account = job.account()
        assert account["JobState"] == "COMPLETED"
        assert int(account["NumTasks"]) == sizes[name]
        if name in ("model", "mpirun"):
            assert "2 ranks, largest difference from plain Keras" in output
            assert float(output.split("plain Keras ")[1].split()[0]) < 1e-10
        else:
            assert len(ranks(output)) == sizes[name]
    assert re.search(r"^ok +Slurm +srun --mpi=pmix starts", jobs["template"].output(), re.MULTILINE)


def test_gpus(cluster: dict[str, str], tmp_path: pathlib.Path) -> None:
    if not pathlib.Path("/dev/tty3").exists():
        pytest.skip("nothing here that Slurm could take for GPUs")
    job = Submitted(cluster, tmp_path, "--cpus-per-task=2", SLURM / "gpu.sh", SCRIPTS / "who.py")
    code, output = job.end_soon()
    assert code == 0, output
    seen = {rank: eval(text)["CUDA_VISIBLE_DEVICES"] for rank, text in ranks(output).items()}
    assert sorted(seen.values()) == ["0", "1", "2", "3"]


def test_a_rank_that_fails_ends_the_job(cluster: dict[str, str], tmp_path: pathlib.Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, time, hyparflow as hf\nos._exit(3) if hf.rank() == 1 else time.sleep(600)\n"
    )
    job = Submitted(cluster, tmp_path, SLURM / "model.sh", script)
    code, output = job.end_soon()
    assert code in (3, 128 + signal.SIGTERM)  # srun passes on the highest of all ranks
    assert "task 1: Exited with exit code 3" in output
    assert job.account()["JobState"] == "FAILED"


def test_without_pmix_no_rank_trains_alone(cluster: dict[str, str], tmp_path: pathlib.Path) -> None:
    script = tmp_path / "job.sh"
    text = (SLURM / "model.sh").read_text()
    assert "--mpi=pmix" in text
    script.write_text(text.replace("--mpi=pmix", "--mpi=none"))
    code, output = Submitted(cluster, tmp_path, script, SCRIPTS / "who.py").end_soon()
    assert code != 0
    assert "srun started 2 processes, but MPI sees only one" in output


def test_a_job_makes_place_and_goes_on(cluster: dict[str, str], tmp_path: pathlib.Path) -> None:
    job = Submitted(cluster, tmp_path, SLURM / "requeue.sh", SCRIPTS / "long.py", tmp_path)
    begin = time.monotonic()
    while not (tmp_path / "epoch-2").exists():
        assert time.monotonic() < begin + LIMIT, job.output()
        time.sleep(0.1)
    subprocess.run(
        ["scancel", "--batch", "--signal=USR1", job.number], env=cluster, check=True, timeout=60
    )
    code, output = job.end_soon()
    assert code == 0, output
    assert "makes place, and goes on later" in output
    account = job.account()
    assert (account["JobState"], account["Restarts"]) == ("COMPLETED", "1")
    runs = [int(first) for first in re.findall(r"begins with epoch (\d+)", output)]
    assert len(runs) == 2
    assert runs[0] == 0
    assert runs[1] >= 2  # nothing was lost but the epoch that was under way
    assert "ends after epoch 5" in output


# Dies once, then waits to be told that its time is over, and ends well when it is queued again.
GOES_ON = """
import os, pathlib, signal, sys, time
from mpi4py import MPI

folder, rank = pathlib.Path(sys.argv[1]), MPI.COMM_WORLD.rank
attempt = MPI.COMM_WORLD.bcast(len(list(folder.glob("attempt-*"))))
signal.signal(signal.SIGUSR1, lambda *_: os._exit(85))
MPI.COMM_WORLD.barrier()
if rank == 0:
    (folder / f"attempt-{attempt}").touch()
if attempt == 0 and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600 if attempt < 2 else 0)
"""


def test_a_job_starts_again_and_makes_place(
    cluster: dict[str, str], tmp_path: pathlib.Path
) -> None:
    script = tmp_path / "goes_on.py"
    script.write_text(GOES_ON)
    job = Submitted(cluster, tmp_path, SLURM / "restarts.sh", script, tmp_path)
    begin = time.monotonic()
    while not (tmp_path / "attempt-1").exists():
        assert time.monotonic() < begin + LIMIT, job.output()
        time.sleep(0.1)
    subprocess.run(
        ["scancel", "--batch", "--signal=USR1", job.number], env=cluster, check=True, timeout=60
    )
    code, output = job.end_soon()
    assert code == 0, output
    assert "was killed by signal 9 (SIGKILL)" in output
    assert "has saved, and goes on later" in output
    account = job.account()
    assert (account["JobState"], account["Restarts"]) == ("COMPLETED", "1")
    assert (tmp_path / "attempt-2").exists()
