"""``hyparflow run``: start a script on several ranks."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from hyparflow.cli.program import command_of
from hyparflow.cli.refused import Refused
from hyparflow.formats.plain_files import require_plain

if TYPE_CHECKING:
    from hyparflow.launching.job import Job
    from hyparflow.launching.supervisor import RestartLimits

__all__ = ["run"]

_STREAMS = (0, 1, 2)


@click.command(
    short_help="Start a Python script on several ranks.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    *("-n", "-np", "--np", "--ranks", "ranks"),
    type=click.IntRange(1),
    required=True,
    help="How many ranks to start.",
)
@click.option(
    "--output",
    default="all",
    show_default=True,
    help='"all" shows each line with its rank, "leader" the lines of rank 0 and of a rank that '
    "fails; a folder gets a file of each rank.",
)
@click.option("--hosts", help="The hosts, each with a number of ranks: a:2,b:2.")
@click.option(
    "--hostfile",
    type=click.Path(exists=True),
    help="A file of hosts for the launcher; ranks are not bound to cores.",
)
@click.option("--oversubscribe", is_flag=True, help="Allow more ranks than cores.")
@click.option(
    "--mpirun",
    type=click.Path(exists=True),
    help="The launcher to use.  [default: that of the MPI library]",
)
@click.option("-m", "is_module", is_flag=True, help="PROGRAM is a Python module.")
@click.option(
    "--dry-run", is_flag=True, help="Show the command line of the launcher, and start nothing."
)
@click.option(
    "--restarts",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="How often to start the job again after a fault; not after the same error at the same "
    "step.",
)
@click.option(
    "--min-ranks",
    type=click.IntRange(1),
    help="With --restarts: start again on the hosts that are left if they take so many ranks.  "
    "[default: 1]",
)
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    program: tuple[str, ...],
    hostfile: str | None,
    dry_run: bool,
    restarts: int,
    min_ranks: int | None,
    **options: Any,
) -> None:
    """Start PROGRAM, a Python script with its arguments, on several ranks.

    The launcher of the MPI library that mpi4py loads is used, and each rank gets its share of the
    cores. Rank 0 reads the standard input; that of the other ranks is empty. The exit status is
    that of the first rank that failed.
    """
    from hyparflow.launching.job import run as run_job
    from hyparflow.launching.supervisor import run_again

    _open_streams()
    try:
        limits = _limits(restarts, min_ranks)
        job = _job(program, hostfile, is_made=not dry_run, **options)
        line = job.describe()
        if hostfile is not None:
            require_plain(hostfile, "--hostfile takes a plain file: the launcher reads it.")
        if dry_run:
            click.echo(line)
            return
        if job.is_allowed_root:
            _say("you are root; Open MPI is told to allow it.")
        end = run_again(job, limits, _say) if restarts else run_job(job, _say)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    if end.text:
        _say(f"{end.text}.")
    sys.exit(end.code)


def _job(
    program: tuple[str, ...],
    hostfile: str | None,
    is_made: bool,
    ranks: int,
    output: str,
    hosts: str | None,
    oversubscribe: bool,
    mpirun: str | None,
    is_module: bool,
) -> Job:
    """What is to be started.

    Args:
        is_made: whether a folder for the output is made.
    """
    from hyparflow.comm import launcher
    from hyparflow.launching.flags import LaunchRequest
    from hyparflow.launching.job import Job
    from hyparflow.launching.mpi_library import find_launcher, library
    from hyparflow.launching.output import checked_output

    several = launcher.allocated_nodes() > 1
    request = LaunchRequest(ranks, hosts, hostfile, oversubscribe, is_allocated=several)
    mpi = library()
    words = command_of(program, is_module)
    return Job(
        output=checked_output("--output", output, is_made=is_made),
        launcher=find_launcher(mpi, mpirun),
        mpi=mpi,
        request=request,
        program=words,
    )


def _limits(restarts: int, min_ranks: int | None) -> RestartLimits:
    """How long to go on.

    Raises:
        ValueError: if one of the options has no effect without the other.
    """
    from hyparflow.launching.supervisor import RestartLimits

    if min_ranks is not None and not restarts:
        raise ValueError(
            "`--min-ranks` limits what is started again. Received: "
            f"--min-ranks {min_ranks} without restarts. Add --restarts."
        )
    return RestartLimits(restarts, min_ranks or 1)


def _open_streams() -> None:
    """Open streams that the shell has closed, so that no file opened later takes their numbers."""
    for stream in _STREAMS:
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _say(text: str) -> None:
    try:
        os.write(2, f"hyparflow run: {text}\n".encode())  # in one piece, also from a thread
    except OSError:  # nobody reads the message
        return
