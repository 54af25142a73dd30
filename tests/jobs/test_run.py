"""`hyparflow run`: starts ranks, shows what they say, ends as the first of them that fails."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO

import psutil
import pytest
from jobs.jobs import SCRIPTS

# What each rank does: says who it is and what it was given, then as its arguments say.
SCRIPT = """
import os, signal, sys, time
from mpi4py import MPI

comm = MPI.COMM_WORLD
# A launcher may mix the pieces of lines that are longer than a pipe.
given = [word if len(word) < 1000 else len(word) for word in sys.argv[1:]]
print(f"rank {comm.rank} of {comm.size}: {given}", flush=True)
print(f"cores {sorted(os.sched_getaffinity(0))} threads {os.environ['OMP_NUM_THREADS']}")
what, *rest = sys.argv[1:] or ["end"]
if what == "exit" and comm.rank == 1:
    print("reason of 1", file=sys.stderr, flush=True)
    os._exit(int(rest[0]))
if what == "raise" and comm.rank == 1:
    import hyparflow
    raise OSError("reason of 1")
if what == "kill" and comm.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if what in ("exit", "raise", "kill", "wait"):
    open(f"{rest[-1]}-{comm.rank}", "w").close()
    time.sleep(60)
if what == "signal":
    signal.signal(signal.SIGUSR1, lambda *_: (print(f"rank {comm.rank} heard it"), sys.exit(0)))
    open(f"{rest[-1]}-{comm.rank}", "w").close()
    time.sleep(60)
"""
LAUNCHER = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "MV2_")


@pytest.fixture
def script(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


# Where `make` installs MPICH: a Python beside this one, which has everything else from it.
MPICH = pathlib.Path(sys.prefix) / "mpich" / "bin" / "python"
CHOSEN = "HYPARFLOW_TEST_PYTHON"  # environment variable: the Python that starts ranks


# What the launcher has a part in; the rest is tried with a second one only with --everything.
OF_LAUNCHERS = (
    "test_rank_0_reads_to_the_end_and_nobody_listens_elsewhere",
    "test_a_launcher_that_is_killed",
    "test_each_line_tells_its_rank",
    "test_each_rank_has_cores_of_its_own",
    "test_the_first_rank_that_fails_decides",
    "test_a_rank_that_is_killed",
    "test_a_signal_ends_all",
    "test_a_signal_for_the_script_reaches_it",
    "test_a_launcher_of_another_mpi_is_refused",
    "test_ranks_train",
)


@pytest.fixture(params=["the MPI of these tests", "MPICH"], autouse=True)
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is tried with two MPIs, whose launchers have different flags."""
    if request.param == "MPICH":
        everything = request.config.getoption("--everything")
        if request.node.originalname not in OF_LAUNCHERS and not everything:
            pytest.skip("with a second MPI only with --everything")
        if not MPICH.exists():
            pytest.skip("MPICH is not installed; `make test-jobs` does it")
        monkeypatch.setenv(CHOSEN, str(MPICH))
        monkeypatch.delenv("MPI4PY_LIBMPI", raising=False)  # which would name the other


def start(
    *arguments: object,
    stdin: int | IO[str] | None = subprocess.DEVNULL,
    stdout: int | IO[str] = subprocess.PIPE,
    before: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    known = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER)}
    known.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [
            *before,
            os.environ.get(CHOSEN, sys.executable),
            "-m",
            "hyparflow.cli",
            "run",
            *map(str, arguments),
        ],
        env=known | environment,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(path: pathlib.Path, ranks: int) -> None:
    """Until all ranks have made their file."""
    end = time.monotonic() + 30
    while not all(pathlib.Path(f"{path}-{rank}").exists() for rank in range(ranks)):
        assert time.monotonic() < end, "the ranks did not start"
        time.sleep(0.05)


# Says what it can read, and who listens to others than this machine.
READS = """
import sys
import psutil
from mpi4py import MPI

text = sys.stdin.read()
comm = MPI.COMM_WORLD
comm.barrier()
listens = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"]
inherited = [c.laddr for c in psutil.Process().parent().net_connections() if c.status == "LISTEN"]
inherited = {at.ip for at in inherited}
print("has read", len(text), "listens", sorted(set(listens) - inherited - {"127.0.0.1"}))
comm.barrier()
"""


def test_rank_0_reads_to_the_end_and_nobody_listens_elsewhere(tmp_path: pathlib.Path) -> None:
    (tmp_path / "reads.py").write_text(READS)
    long = tmp_path / ("x" * 100)  # longer than a socket's address may be
    long.mkdir()
    process = start(
        "-n", 2, "--oversubscribe", tmp_path / "reads.py", stdin=subprocess.PIPE, TMPDIR=str(long)
    )
    out, err = process.communicate("line\n" * 100_000, timeout=60)
    assert process.returncode == 0, err
    said = ["[0] has read 500000 listens []", "[1] has read 0 listens []"]
    assert sorted(out.splitlines()) == said
    assert not list(long.iterdir())


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path: pathlib.Path, closed: str) -> None:
    path = tmp_path / "reads.py"
    path.write_text("import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())")
    shell = ["sh", "-c", f'"$@" {closed}', "sh"]
    process = start("-n", 1, path, tmp_path / "read", before=shell)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (tmp_path / "read").read_text() == ""


LOUD = "for k in range(20000): print('x' * 70, k)\nprint('END')"
LOUDER = "import time\nend = time.time() + 50\nwhile time.time() < end: print('x' * 70)"


def test_output_that_nobody_takes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    (tmp_path / "rank-0.txt").symlink_to("/dev/full")
    arguments = ("-n", 2, "--oversubscribe", "--output", tmp_path, tmp_path / "loud.py")
    code, out, err = run(*arguments)
    assert code == 0
    assert out.endswith("END\n")
    assert err.count("rank 0's output is not written") == 1
    assert (tmp_path / "rank-1.txt").read_text().endswith("END\n")
    with open("/dev/full", "w") as full:
        process = start(*arguments, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "hyparflow run: stdout is lost from here on" in err
    (tmp_path / "loud.py").write_text(LOUDER)  # a job that has ended is not ended by this
    process = start(*arguments)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    err = process.stderr.read()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert "hyparflow run: nobody reads the output any more: the job is ended." in err


def test_without_a_home(script: pathlib.Path) -> None:
    process = start("-n", 1, script, before=["env", "-u", "HOME"])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "rank 0 of 1" in out


def test_a_launcher_that_is_killed(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    process = start("-n", 2, "--oversubscribe", script, "wait", tmp_path / "at")
    wait_for(tmp_path / "at", 2)
    names = ("prterun", "mpirun", "mpiexec", "mpiexec.hydra")
    for child in psutil.Process(process.pid).children():
        if child.name() in names:
            child.kill()
    _, err = process.communicate(timeout=40)
    assert process.returncode == 128 + signal.SIGKILL
    assert "hyparflow run: the launcher was killed by signal 9 (SIGKILL)" in err


def test_each_line_tells_its_rank(script: pathlib.Path) -> None:
    # What a launcher, a shell or a shorter way would take for its own.
    words = ["end", "--epochs", "3", "-n", "5", ":", "-n", "1", "touch", "", "--", "a\nb", "'", "é"]
    code, out, err = run("-np", 2, "--oversubscribe", script, *words, "@f", "x" * 130_000)
    assert code == 0, err
    lines = sorted(line for line in out.splitlines() if "rank" in line)
    given = [*words, "@f", 130_000]
    assert lines == [f"[{rank}] rank {rank} of 2: {given}" for rank in range(2)]


@pytest.mark.skipif((psutil.cpu_count(logical=False) or 1) < 2, reason="needs two cores")
def test_each_rank_has_cores_of_its_own(script: pathlib.Path) -> None:
    code, out, err = run("-n", 2, script)
    assert code == 0, err
    said = [line.split("cores ")[1] for line in out.splitlines() if "cores" in line]
    cores = [set(eval(text.split(" threads ")[0])) for text in said]
    assert not cores[0] & cores[1]
    assert cores[0] | cores[1] <= os.sched_getaffinity(0)
    each = (psutil.cpu_count(logical=False) or 1) // 2
    assert [int(text.split(" threads ")[1]) for text in said] == [each, each]


def test_more_ranks_than_cores_are_refused(script: pathlib.Path) -> None:
    code, _, err = run("-n", 1000, script)
    assert code == 2
    assert "Each rank needs a core. Received: 1000 ranks" in err
    assert "--oversubscribe" in err


def test_only_the_leader_is_shown(script: pathlib.Path) -> None:
    code, out, _ = run("-n", 2, "--oversubscribe", "--output", "leader", script)
    assert code == 0
    assert "rank 0 of 2" in out
    assert "rank 1" not in out
    assert not out.startswith("[0]")


@pytest.mark.parametrize("output", ["all", "leader"])
def test_the_first_rank_that_fails_decides(
    script: pathlib.Path, tmp_path: pathlib.Path, output: str
) -> None:
    begin = time.monotonic()
    code, out, err = run(
        "-n", 2, "--oversubscribe", "--output", output, script, "exit", 7, tmp_path / "at"
    )
    assert code == 7
    assert "reason of 1" in err
    assert time.monotonic() - begin < 40  # the others, who sleep for 60 s, were stopped
    assert "hyparflow run: rank 1 ended with exit status 7." in err
    if output == "leader":
        assert "--- rank 1 ended with exit status 7" in err


def test_an_error_on_one_rank(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code, _, err = run(
        "-n", 2, "--oversubscribe", "--output", "leader", script, "raise", tmp_path / "at"
    )
    assert code == 1
    assert "OSError: reason of 1" in err
    assert "hyparflow: OSError on rank 1" in err


def test_a_rank_that_is_killed(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code, _, err = run(
        "-n", 2, "--oversubscribe", "--output", "leader", script, "kill", tmp_path / "at"
    )
    assert code == 128 + signal.SIGKILL
    assert "--- rank 1 was killed by signal 9 (SIGKILL)" in err
    assert "hyparflow run: rank 1 was killed by signal 9 (SIGKILL); the system does so when" in err


def test_a_folder_gets_a_file_of_each_rank(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code, out, _ = run("-n", 2, "--oversubscribe", "--output", tmp_path / "new" / "out", script)
    assert code == 0
    assert "rank 0 of 2" in out
    assert "rank 1 of 2" not in out
    for rank in range(2):
        text = (tmp_path / "new" / "out" / f"rank-{rank}.txt").read_text()
        assert text.startswith(f"rank {rank} of 2: []\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(
    script: pathlib.Path, tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    process = start("-n", 2, "--oversubscribe", script, "wait", tmp_path / "at")
    wait_for(tmp_path / "at", 2)
    process.send_signal(number)
    process.communicate(timeout=40)
    assert process.returncode == 128 + number
    left = [
        p.pid for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or [])
    ]
    assert not left


def test_a_signal_for_the_script_reaches_it(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    process = start("-n", 2, "--oversubscribe", script, "signal", tmp_path / "at")
    wait_for(tmp_path / "at", 2)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    assert {"rank 0 heard it", "rank 1 heard it"} <= {line[4:] for line in out.splitlines()}


def test_a_dry_run_shows_what_a_shell_would_take(script: pathlib.Path) -> None:
    code, out, _ = run("-n", 2, "--dry-run", "--oversubscribe", script, "a b", ":", "")
    assert code == 0
    shell = subprocess.run(out, shell=True, capture_output=True, text=True, timeout=60)
    assert shell.returncode == 0, shell.stderr
    assert "rank 1 of 2: ['a b', ':', '']" in shell.stdout


def test_root_is_said(script: pathlib.Path) -> None:
    if os.geteuid() != 0 or CHOSEN in os.environ:
        pytest.skip("only Open MPI asks for permission, and only root")
    known = {"OMPI_ALLOW_RUN_AS_ROOT": "0"}
    _, _, err = run("-n", 1, script, **known)
    assert "you are root" in err


def test_modules_are_run(script: pathlib.Path) -> None:
    code, out, err = run("-n", 2, "--oversubscribe", "-m", "train", "end", PYTHONPATH=path(script))
    assert code == 0, err
    assert "rank 1 of 2: ['end']" in out


def path(script: pathlib.Path) -> str:
    """PYTHONPATH with the script's folder."""
    return os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "0", "train.py"], "-n"),
        (["-n", "2", "missing.py"], "missing.py, which does not exist"),
        (["-n", "2", "no-such-program"], "a program on the PATH. Received: no-such-program"),
        (["-n", "2", "--hosts", "a:b", "train.py"], "'a:2,b:2'. Received: a:b"),
        (["-n", "4", "--hosts", "a:1,b:2", "train.py"], "4 ranks, 3 in a:1,b:2"),
        (["-n", "2", "--hosts", "a:2", "--hostfile", "/dev/null", "train.py"], "Received: both"),
        (["-n", "2", "--nproc", "2", "train.py"], "Received: --nproc, which is none"),
        (["-n", "2", "-"], "several ranks cannot read it from one standard input"),
        (["-n", "2", "-m", "no_such_module"], "Received: no_such_module, which is not there"),
        (["-n", "2", "--output", "train.py", "train.py"], "Received: train.py, a file"),
        (["-n", "2", "--mpirun", "train.py", "train.py"], "train.py (may not be executed)"),
        (["-n", "2"], "Missing argument"),
    ],
)
def test_what_cannot_be_run(
    script: pathlib.Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(script.parent)
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_a_launcher_of_another_mpi_is_refused(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "mpiexec"
    other.write_text("#!/bin/sh\necho 'Intel(R) MPI Library for Linux* OS, Version 2021.9'\n")
    other.chmod(0o755)
    code, _, err = run("-n", 2, "--mpirun", other, script)
    assert code == 2
    assert f"Received: {other} of Intel MPI 2021.9" in err


def test_ranks_train(tmp_path: pathlib.Path) -> None:
    code, out, err = run("-n", 2, "--oversubscribe", SCRIPTS / "same.py")
    assert code == 0, err
    assert "[0] 2 ranks, largest difference from plain Keras" in out
    assert float(out.split("plain Keras ")[1].split()[0]) < 1e-10
