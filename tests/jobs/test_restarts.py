"""`hyparflow run --restarts`: goes on after a fault, and ends at a bug or when it is told to."""

from __future__ import annotations

import pathlib
import re
import signal
import time

import pytest
from jobs.jobs import Job, Result

# What each rank does: counts the attempt, notes a step, and does as the words for this attempt say.
SCRIPT = """
import os, pathlib, signal, sys, time
from mpi4py import MPI
from hyparflow.launching.progress_note import note_progress, note_saved

comm = MPI.COMM_WORLD
folder, *plan = sys.argv[1:]
attempt = comm.bcast(len(list(pathlib.Path(folder).glob("attempt-*"))))
comm.barrier()
what, _, step = (plan[attempt] if attempt < len(plan) else "end").partition(":")
if comm.rank == 0:
    pathlib.Path(folder, f"attempt-{attempt}").touch()
    if step:
        note_progress(0, int(step))
        note_saved(int(step) - 1)
    print(f"attempt {attempt} has {comm.size} ranks and reads {sys.stdin.read(4)!r}", flush=True)
comm.barrier()
if comm.rank == comm.size - 1:
    if what.isdigit():
        os.kill(os.getpid(), int(what))
    if what == "raise":
        raise OSError(f"the reason, of process {os.getpid()}")
    if what == "launcher":
        psutil = __import__("psutil")
        next(p for p in psutil.Process().parents() if "run" in p.name()).kill()
    if what == "exit":
        os._exit(int(step))
if what == "wait":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path(folder, f"waits-{comm.rank}").touch()
if what == "saves":
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(85))
    pathlib.Path(folder, f"waits-{comm.rank}").touch()
if what not in ("end", "raise"):
    time.sleep(60)
comm.barrier()
"""
# The other rank waits for this one in a call of hyparflow: at the end of its script.
STOPS = """
import os, pathlib, signal, sys
import hyparflow as hf
from hyparflow.launching.progress_note import note_progress

mark = pathlib.Path(sys.argv[1])
if hf.rank() == 0:
    note_progress(0, 7)
if hf.rank() == int(sys.argv[2]) and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGSTOP)
"""
STEPS = "reached epoch 0, step {}, last saved step {}, "
AS_BEFORE = "goes on from step 6."


@pytest.fixture
def script(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def start(*arguments: object, ranks: int = 2, restarts: int = 3, **environment: str) -> Job:
    words = ("-m", "hyparflow.cli", "run", "-n", ranks, "--oversubscribe", "--restarts", restarts)
    return Job(0, *words, *arguments, **environment)


def run(*arguments: object, ranks: int = 2, restarts: int = 3, **environment: str) -> Result:
    result = start(*arguments, ranks=ranks, restarts=restarts, **environment).wait(100)
    assert not result.left
    return result


def attempts(folder: pathlib.Path) -> int:
    return len(list(folder.glob("attempt-*")))


def said(result: Result) -> list[str]:
    """What `hyparflow run` said."""
    lines = result.output.replace("\0", "").splitlines()  # Open MPI writes some
    return [line for line in lines if line.startswith("hyparflow run: ")]


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("9", "rank 1 was killed by signal 9 (SIGKILL)"),
        ("15", "rank 1 was killed by signal 15 (SIGTERM)"),
        ("launcher", "the launcher was killed by signal 9 (SIGKILL)"),
        ("raise", "rank 1 ended with exit status 1 (OSError: the reason, of process "),
    ],
)
def test_a_fault_is_followed_by_another_attempt(
    fault: str, how: str, script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run(script, tmp_path, f"{fault}:7")
    assert result.code == 0, result.output
    again, first, second = said(result)[-3:]
    assert f"hyparflow run: {how}" in again
    assert "at epoch 0, step 7; attempt 2 of 4 starts in 1 s on 2 ranks, " + AS_BEFORE in again
    assert f"attempt 1 on 2 ranks: {how}" in first
    assert re.search(STEPS.format(7, 6) + r"\d+\.\d s lost$", first)
    assert "attempt 2 on 2 ranks: ended without error, step not known, last saved step 6" in second
    assert attempts(tmp_path) == 2


def test_the_same_error_at_the_same_step_ends_it(
    script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run(script, tmp_path, "raise:7", "raise:7")
    assert result.code == 1
    assert attempts(tmp_path) == 2
    last = said(result)[-1]
    assert "the same error came twice at epoch 0, step 7: a bug, no fault. The job does" in last
    assert sum("hyparflow run: attempt " in line for line in said(result)) == 2


def test_other_steps_are_tried_until_restarts_are_used(
    script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ("raise:7", "raise:17", "raise:27", "raise:37")
    result = run(script, tmp_path, *words, restarts=2)
    assert result.code == 1
    assert attempts(tmp_path) == 3
    assert "at epoch 0, step 27; no restart is left of 2" in said(result)[-1]


@pytest.mark.parametrize(("rank", "output"), [(1, "all"), (0, "leader")])
def test_a_rank_that_is_stopped_ends_the_attempt(
    rank: int, output: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "train.py"
    path.write_text(STOPS)
    words = ("--output", output, path, tmp_path / "stopped", rank)
    result = run(*words, HYPARFLOW_TIMEOUT="2")
    assert result.code == 0, result.output
    assert f"Stuck, for they do not answer: rank {rank}" in result.output
    assert "(a wait passed its deadline) at epoch 0, step 7; attempt 2 of 4" in result.output


@pytest.mark.slow
def test_a_rank_for_which_nobody_waits_is_killed_when_it_is_stopped(
    script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run(script, tmp_path, f"{int(signal.SIGSTOP)}:7", ranks=1, HYPARFLOW_TIMEOUT="1")
    assert result.code == 0, result.output
    assert "which is longer than HYPARFLOW_TIMEOUT; it is killed." in result.output
    assert attempts(tmp_path) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_user_s_signal_ends_it(
    number: signal.Signals, script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = start(script, tmp_path, "wait:7")
    wait_for(tmp_path, "waits-0", "waits-1")
    job.signal(number)
    result = job.wait(60)
    assert result.code == 128 + number, result.output
    assert not result.left
    assert attempts(tmp_path) == 1


def wait_for(folder: pathlib.Path, *names: str) -> None:
    end = time.monotonic() + 60
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < end, "the ranks did not come so far"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 85)]
)
def test_a_signal_between_attempts_ends_it(
    number: signal.Signals, code: int, script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ["9:7"] * 9
    job = start(script, tmp_path, *words, restarts=9)
    wait_for(tmp_path, "attempt-2")  # after it a pause of 4 s
    time.sleep(2)
    job.signal(number)
    result = job.wait(60)
    assert result.code == code, result.output
    assert not result.left
    assert 3 <= attempts(tmp_path) < 9
    assert "attempt 1 on 2 ranks" in result.output


def test_a_training_that_saves_and_ends_does_not_start_again(
    script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = start(script, tmp_path, "saves:7")
    wait_for(tmp_path, "waits-0", "waits-1")
    job.signal(signal.SIGUSR1)
    assert job.wait(60).code == 85
    assert attempts(tmp_path) == 1


def test_told_to_save_before_there_is_anything(
    script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = start(script, tmp_path, "stay")
    wait_for(tmp_path, "attempt-0")
    job.signal(signal.SIGUSR1)
    result = job.wait(60)
    assert result.code == 85
    assert "SIGUSR1 came before the first step" in said(result)[-1]
    assert attempts(tmp_path) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(2)",
        "import no_such_module",
        "x = = 1",
        "import argparse; argparse.ArgumentParser().parse_args(['--wrong'])",
    ],
)
def test_a_script_that_cannot_work_is_tried_once(text: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(f"open({str(tmp_path)!r} + '/attempt-0', 'a').write('x')\n{text}\n")
    result = run(path, ranks=1)
    assert result.code in (1, 2)
    assert "it failed before its first step as it would each time" in said(result)[-1]
    assert "starts in" not in result.output


# A process that no launcher knows, in a session of its own.
LEAVES = """
import os, pathlib, signal, subprocess, sys

left = pathlib.Path(sys.argv[1])
if not left.exists():
    child = subprocess.Popen(["sleep", "90"], start_new_session=True)
    left.write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)
print("still there:", os.path.exists(f"/proc/{left.read_text()}"))
"""


def test_no_process_of_an_attempt_is_there_in_the_next(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(LEAVES)
    result = run(path, tmp_path / "left", ranks=1)
    assert result.code == 0, result.output
    assert "still there: False" in result.output


def test_each_attempt_has_files_of_its_own(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run("--output", tmp_path / "out", script, tmp_path, "9:7")
    assert result.code == 0, result.output
    for number in (1, 2):
        text = (tmp_path / "out" / f"attempt-{number}" / "rank-0.txt").read_text()
        assert f"attempt {number - 1} has 2 ranks" in text
    assert (tmp_path / "out" / "attempt-2" / "rank-1.txt").exists()


HOSTS = ("--hosts", "localhost:1,no-such-host.invalid:1")


def test_a_host_that_cannot_be_reached_is_left_out(
    script: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run(*HOSTS, script, tmp_path)
    assert result.code == 0, result.output
    assert "attempt 2 of 4 starts in 1 s on 1 rank, no saved step is known." in result.output
    assert "has 1 ranks" in result.output


def test_too_few_hosts_end_it(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run("--min-ranks", 2, *HOSTS, script, tmp_path)
    assert result.code != 0
    assert "the hosts that are left take 1 rank, fewer than --min-ranks allows (2)" in result.output
    assert attempts(tmp_path) == 0


def test_more_ranks_at_least_than_at_first_are_refused(script: pathlib.Path) -> None:
    refused = run("--min-ranks", 2, script, restarts=0)
    assert refused.code == 2
    assert "`--min-ranks` limits what is started again. Received: --min-ranks 2" in refused.output
    result = run("--min-ranks", 3, script)
    assert result.code == 2
    assert "`--min-ranks` must be at most the number of ranks. Received: --min-ranks 3 for 2" in (
        result.output
    )


def test_each_attempt_reads_on(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "input").write_text("aaaabbbb")
    words = ["sh", "-c", f'exec "$@" < {tmp_path / "input"}', "sh"]
    cli = ("-m", "hyparflow.cli", "run", "-n", 1, "--restarts", 1)
    result = Job(0, *cli, script, tmp_path, "9:7", before=words).wait(60)
    assert result.code == 0, result.output
    assert "attempt 0 has 1 ranks and reads 'aaaa'" in result.output
