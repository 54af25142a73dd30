"""When something goes wrong on one rank, the job ends everywhere, soon, with one report."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import time
from typing import Any

import pytest
from jobs.jobs import SCRIPTS, Job, Result, run, run_alone

LIMIT = 10.0  # seconds from the fault to the end of the last process
DEADLINE = 5.0  # HYPARFLOW_TIMEOUT where it matters


def slow(*arguments: Any) -> Any:
    """Arguments for which another test shows nearly the same."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


def start(ranks: int, what: str, rank: int, file: pathlib.Path) -> Job:
    """Start the job in which `what` happens on `rank`."""
    # Only where a rank is stopped may the deadline be what ends the job.
    seconds = DEADLINE if what == "stop" else 600
    return Job(ranks, SCRIPTS / "fault.py", what, rank, file, HYPARFLOW_TIMEOUT=str(seconds))


def require_end(result: Result, file: pathlib.Path, limit: float = LIMIT) -> None:
    """Check that the fault ended all ranks within `limit` seconds, and that it shows."""
    assert file.exists(), f"the job ended before the fault:\n{result.output}"
    seconds = result.end - float(file.read_text())
    assert seconds < limit, f"ended {seconds:.1f} s after the fault:\n{result.output}"
    assert not result.left, result.output
    assert result.code != 0, result.output
    assert "went on after the fault" not in result.output


def reports(output: str) -> list[str]:
    """The lines in which hyparflow says that it stops the job."""
    return re.findall(r"^.*hyparflow: .*all ranks are stopped.*$", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("what", "rank", "place"),
    [
        ("before", 1, "rank 1"),
        ("forward", 1, "rank 1 (replica 0, partition 1), action 1FB0, layer 'faulty_1'"),
        ("forward", 0, "rank 0 (replica 0, partition 0), action 0F0, layer 'faulty'"),
        ("data", 0, "rank 0 (replica 0, partition 0)"),
        slow("backward", 0, "rank 0 (replica 0, partition 0), action 0B"),
        slow("callback", 0, "rank 0 (replica 0, partition 0)"),
    ],
)
def test_exception_ends_the_job_with_one_report(
    what: str, rank: int, place: str, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "time"
    result = start(2, what, rank, file).wait()
    require_end(result, file)
    assert len(reports(result.output)) == 1, result.output
    assert place in reports(result.output)[0]
    # The original error and its line in the user's script.
    assert "Traceback (most recent call last)" in result.output
    assert re.search(r'fault.py", line \d+, in fail$', result.output, re.MULTILINE)
    assert f"ZeroDivisionError: boom in {what}" in result.output


def test_wrong_argument_on_one_rank_ends_the_job(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "time"
    result = start(2, "argument", 1, file).wait()
    require_end(result, file)
    (report,) = reports(result.output)
    assert "ValueError on rank 1" in report
    assert "strategy='banana'" in result.output


def test_rank_that_leaves_early_ends_the_job(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "time"
    result = start(3, "exit", 1, file).wait()
    require_end(result, file)
    # One report, though two ranks wait for the one that left.
    assert len(reports(result.output)) == 1, result.output
    assert "rank 1 has ended its script while rank 0 waits for" in reports(result.output)[0]


def test_rank_that_has_done_its_part_may_leave(tmp_path: pathlib.Path) -> None:
    # Of 16 ranks with a trace of 7 MB some had ended before the leader heard the last, which ended
    # the job and lost the trace.
    file = tmp_path / "trace.json"
    result = run(3, SCRIPTS / "slow_leader.py", file)
    assert result.code == 0, result.output
    assert "trained" in result.output and not reports(result.output), result.output
    assert len(json.loads(file.read_text())["otherData"]["ranks"]) == 3


def test_trained_weight_of_another_partition_is_not_read() -> None:
    result = run(2, SCRIPTS / "reads_weight.py")
    assert result.code != 0 and len(reports(result.output)) == 1, result.output
    assert "needs strategy='data'" in result.output
    assert "kernel' (144 bytes)" in result.output


@pytest.mark.parametrize("rank", [0, slow(1)])
def test_killed_rank_ends_the_job(rank: int, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "time"
    result = start(2, "kill", rank, file).wait()
    require_end(result, file)


def test_stopped_rank_is_named_in_one_table(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "time"
    result = start(3, "stop", 1, file).wait()
    require_end(result, file, DEADLINE + LIMIT)
    assert result.output.count("passed its deadline of 5 s") == 1, result.output
    assert "Stuck, for they do not answer: rank 1." in result.output
    assert len(reports(result.output)) == 1
    # Rank, whether it answers, its last action, what it waits for.
    rows = re.findall(r"^ +(\d) \| (\w+) +\| (\S+) +\| (.*)$", result.output, re.MULTILINE)
    assert [row[:2] for row in rows] == [("0", "yes"), ("1", "NO"), ("2", "yes")]
    assert rows[1][2] == "0FB0"
    assert all("waits for" in rows[rank][3] for rank in (0, 2))


THREADS = """
import threading, time
import hyparflow as hf
print("rank", hf.rank())
threading.Thread(target=time.sleep, args=(100,), name="mine").start()
"""


def test_threads_that_all_ranks_leave_behind_are_named() -> None:
    result = run(2, "-c", THREADS, HYPARFLOW_TIMEOUT="3")
    assert result.code != 0 and not result.left, result.output
    (report,) = reports(result.output)
    assert "rank 0 has not ended within 3 s" in report and "daemons: mine;" in report


def test_ctrl_c_ends_all_ranks(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "time"
    job = start(2, "wait", 0, file)
    while job.is_running() and not file.exists():
        time.sleep(0.05)
    file.write_text(str(time.time()))
    job.signal(signal.SIGINT)
    require_end(job.wait(), file)


# --- what does not end a job ---


# Case -> the error, None for TensorFlow's type and text with the user's inside.
CAUGHT: dict[str, list[str] | None] = {
    "callback": ["DiskFull", "model.keras: 7 bytes free"],
    "exit": ["SystemExit", "5"],
    "first batch": ["OSError", "the file is damaged"],
    "data": None,
}


@pytest.fixture(scope="module")
def recovered(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[pathlib.Path, list[Any]]:
    """The files that a job left and what each rank found: one job tries all."""
    folder = tmp_path_factory.mktemp("recover")
    everything = request.config.getoption("--everything")
    cases = [name for name in CAUGHT if name != "data" or everything]
    result = run(2, SCRIPTS / "recover.py", folder, *cases)
    assert result.code == 0, result.output
    file = folder / "outcomes.json"
    outcomes = json.loads(file.read_text())
    file.unlink()
    return folder, outcomes


@pytest.mark.parametrize("what", ["callback", "exit", "first batch", slow("data")])
def test_error_between_steps_can_be_caught_by_all_ranks(
    what: str, recovered: tuple[pathlib.Path, list[Any]]
) -> None:
    error, leader = CAUGHT[what], recovered[1][0][what]
    for outcome in (rank[what] for rank in recovered[1]):
        assert outcome["parallel"] == (error or leader["parallel"])
        assert outcome["parallel"][0] == outcome["plain"][0]
        assert error or "the file is damaged" in outcome["parallel"][1]
        # Every rank keeps what was learnt before the error, and training can go on from there.
        assert outcome["difference"] < 1e-6
        assert outcome["difference afterwards"] < 1e-6


def test_nan_is_treated_as_by_keras(recovered: tuple[pathlib.Path, list[Any]]) -> None:
    for outcome in (rank["nan"] for rank in recovered[1]):
        for what in ("go on", "stop"):
            assert outcome[f"{what}, parallel"] == outcome[f"{what}, plain"]
        assert outcome["go on, parallel"] == ["{'loss': [nan, nan]}", [0, 1], 8]
        assert outcome["stop, parallel"][1:] == [[0], 2]


def test_all_ranks_may_save_to_one_path(recovered: tuple[pathlib.Path, list[Any]]) -> None:
    folder, _ = recovered
    names = {"expected.npz", "model.keras", "model.weights.h5", "parallel.keras"}
    assert {path.name for path in folder.iterdir()} == names
    result = run_alone(SCRIPTS / "load.py", folder)
    assert result.code == 0, result.output
