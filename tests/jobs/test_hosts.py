"""Ranks on two hosts, over TCP: the same numbers, also on a slow network; and a cut cable."""

from __future__ import annotations

import json
import pathlib
import re
import time
from collections.abc import Iterator

import pytest
from jobs.hosts import Hosts, require_namespaces
from jobs.jobs import SCRIPTS, Job, Result

DEADLINE = 6.0  # HYPARFLOW_TIMEOUT where the cable is cut, in seconds
GRACE = 40.0  # seconds after it, in which the job must have ended
STEPS, GRADIENTS = 8, 200_000  # of an epoch; bytes that one host's half of the replicas sends


@pytest.fixture
def hosts(tmp_path: pathlib.Path) -> Iterator[Hosts]:
    require_namespaces()
    with Hosts(tmp_path) as both:
        yield both


def start(hosts: Hosts, *arguments: object, **environment: str) -> Job:
    """Start the script on two ranks of each host."""
    where = ",".join(f"{address}:2" for address in hosts.addresses)
    words = ("-m", "hyparflow.cli", "run", "-n", 4, "--hosts", where, "--oversubscribe")
    known = hosts.environment | environment
    return Job(0, *words, SCRIPTS / "hosts.py", *arguments, before=hosts.before, **known)


def require_same(result: Result, file: pathlib.Path) -> None:
    """Check that the losses are those of plain Keras, and where the ranks were."""
    assert result.code == 0, result.output
    assert not result.left
    found = json.loads(file.read_text())
    assert found["actual"] == pytest.approx(found["expected"], rel=1e-10)
    ranks = dict(re.findall(r"rank (\d) is on (\w+)", result.output))
    assert [ranks[str(n)][-1] for n in range(4)] == ["a", "a", "b", "b"]


# On a slow network all happens that does on a fast one, and waits take longer.
@pytest.mark.parametrize("network", ["slow", pytest.param("fast", marks=pytest.mark.slow)])
def test_two_hosts_give_the_numbers_of_one_process(
    network: str, hosts: Hosts, tmp_path: pathlib.Path
) -> None:
    if network == "slow":
        hosts.slow()
    file = tmp_path / "result.json"
    require_same(start(hosts, file).wait(), file)
    assert hosts.cable.carried > STEPS * GRADIENTS


@pytest.mark.slow
def test_a_cut_cable_ends_the_job(hosts: Hosts, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    job = start(hosts, tmp_path / "result", mark, HYPARFLOW_TIMEOUT=str(DEADLINE))
    while not mark.exists():
        assert job.is_running(), job.wait().output
        time.sleep(0.02)
    hosts.cable.is_cut = True
    result = job.wait(DEADLINE + GRACE)  # and no hang
    assert result.code == 1, result.output
    assert "a wait passed its deadline of 6 s" in result.output
    assert "do not answer: rank 2, rank 3" in result.output
    # No rank is left; of the launcher, what waits on the other host for the cable.
    assert all("prted" in command for command in result.left), result.left


# In the first attempt rank 0 waits at the end of its script for a rank that sleeps.
WAITS = """
import pathlib, sys, time
import hyparflow as hf

mark = pathlib.Path(sys.argv[1])
print(f"{hf.size()} ranks", flush=True)
if hf.size() > 1 and hf.rank() == 0:
    mark.touch()
elif hf.size() > 1:
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_job_goes_on_without_a_host_that_is_lost(hosts: Hosts, tmp_path: pathlib.Path) -> None:
    path, mark = tmp_path / "train.py", tmp_path / "mark"
    path.write_text(WAITS)
    where = ",".join(f"{address}:1" for address in hosts.addresses)
    words = ("run", "-n", 2, "--oversubscribe", "--restarts", 1, "--hosts", where, path, mark)
    known = hosts.environment | {"HYPARFLOW_TIMEOUT": str(DEADLINE)}
    job = Job(0, "-m", "hyparflow.cli", *words, before=hosts.before, **known)
    while not mark.exists():
        assert job.is_running(), job.wait().output
        time.sleep(0.02)
    hosts.cable.is_cut = True
    result = job.wait(3 * GRACE)
    assert result.code == 0, result.output
    assert "attempt 2 of 2 starts in 1 s on 1 rank, no saved step is known." in result.output
    assert "1 ranks" in result.output
    assert all("prted" in command for command in result.left), result.left
