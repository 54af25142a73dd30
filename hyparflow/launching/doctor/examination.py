"""All checks: of this process alone, which starts two ranks for them, or of the ranks of a job."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from hyparflow.comm import launcher
from hyparflow.comm.world import World
from hyparflow.launching.doctor.finding import OK, PROBLEM, Finding
from hyparflow.launching.doctor.machine import Machine, check_machine
from hyparflow.launching.doctor.ranks import check_ranks
from hyparflow.launching.flags import LaunchRequest, physical_cores
from hyparflow.launching.folder import job_folder
from hyparflow.launching.job import Job, run_and_show
from hyparflow.launching.mpi_library import find_launcher, library

__all__ = ["examine"]

_TRIED = 2  # number of ranks that are started, to check whether they see each other


def examine() -> list[Finding]:
    """Run all checks. Under a launcher this is collective, with the same findings on every rank."""
    mine = list(check_machine(Machine.here()))
    if not launcher.is_launched():
        return [*mine, *_try_ranks()]
    try:
        world = World()
    except (ImportError, RuntimeError) as error:
        rule, _, fix = str(error).partition(". ")
        return [*mine, Finding("ranks", PROBLEM, rule, fix)]
    everyone = world.all_gather_objects(mine, "what ranks find on their machines")
    return [*_merged(everyone), *check_ranks(world)]


def _merged(everyone: Sequence[Sequence[Finding]]) -> list[Finding]:
    """One finding of each check: that of the first rank, unless another rank has a worse one."""
    merged = []
    for column in zip(*everyone, strict=False):
        odd = next((n for n, finding in enumerate(column) if finding.status != OK), 0)
        found = column[odd]
        where = f"rank {odd}: {found.text}" if odd else found.text
        merged.append(Finding(found.check, found.status, where, found.fix))
    return merged


def _try_ranks() -> list[Finding]:
    """Start two ranks here, and let them look."""
    try:
        mpi = library()
        launcher_ = find_launcher(mpi)
    except ValueError:  # the checks of the library and the launcher report it
        return []
    said: list[str] = []
    try:
        with job_folder() as folder:
            file = folder / "findings"
            program = [sys.executable, "-m", "hyparflow.launching.doctor.remote", str(file)]
            request = LaunchRequest(_TRIED, oversubscribe=physical_cores() < _TRIED)
            job = Job(launcher_, mpi, request, program)
            end = run_and_show(job, said.append, folder)
            if not end.code and file.exists():
                return [Finding(**values) for values in json.loads(file.read_text())]
    except (OSError, ValueError) as error:
        return [Finding("ranks", PROBLEM, f"two ranks could not be started: {error}")]
    lines = "".join(said).strip().splitlines() or ["nothing was written"]
    text = f"two ranks could not be started ({end.text}): {lines[-1]}"
    return [Finding("ranks", PROBLEM, text, f"look at what this says: {job.describe()}")]
