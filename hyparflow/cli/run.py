"""``hyparflow run``: start a script on several ranks."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from hyparflow.cli.refused import Refused

__all__ = ["run"]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-n", "--ranks", type=click.IntRange(1), required=True, help="How many ranks.")
@click.option(
    "--output",
    default="all",
    show_default=True,
    help='"all" labels each line with its rank, "leader" shows rank 0 and who fails, or a folder '
    "for a file of each rank.",
)
@click.option("--hosts", help="Where to run, with numbers of ranks: a:2,b:2.")
@click.option(
    "--hostfile", type=click.Path(exists=True), help="A file of hosts for the launcher; unbound."
)
@click.option("--oversubscribe", is_flag=True, help="Allow more ranks than cores.")
@click.option("--mpirun", type=click.Path(exists=True), help="The launcher.  [default: found]")
@click.option("-m", "is_module", is_flag=True, help="PROGRAM is a Python module.")
@click.option("--dry-run", is_flag=True, help="Show the launcher's command line, and end.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    ranks: int,
    output: str,
    hosts: str | None,
    hostfile: str | None,
    oversubscribe: bool,
    mpirun: str | None,
    is_module: bool,
    dry_run: bool,
    program: tuple[str, ...],
) -> None:
    """Start PROGRAM, a Python script with its arguments, on several ranks.

    The launcher is that of the MPI library that mpi4py loads; each rank gets its share of the
    cores. Ends with the exit status of the first rank that failed.
    """
    from hyparflow import launcher, running

    try:
        several = launcher.allocated_nodes() > 1
        request = running.Request(ranks, hosts, hostfile, oversubscribe, is_allocated=several)
        mpi = running.library()
        words = _program(program, is_module)
        job = running.Job(
            running.find_launcher(mpi, mpirun), mpi, request, words, _output(output, dry_run)
        )
        line = job.describe()
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    if dry_run:
        click.echo(line)
        return
    if job.is_allowed_root:
        click.echo("hyparflow run: you are root; Open MPI is told to allow it.", err=True)
    sys.exit(running.run(job))


def _program(program: tuple[str, ...], is_module: bool) -> list[str]:
    """The command of a rank: Python scripts and modules run by this Python."""
    first = Path(program[0])
    if is_module:
        return [sys.executable, "-m", *program]
    if program[0].startswith("-"):
        raise ValueError(f"Options stand before PROGRAM. Received: {program[0]}, which is none")
    if first.suffix == ".py" or (first / "__main__.py").exists():
        if not first.exists():
            raise ValueError(f"PROGRAM must be there. Received: {first}, which does not exist")
        return [sys.executable, *program]
    if shutil.which(program[0]) is None:
        raise ValueError(
            f"PROGRAM must be a Python script, or a program on the PATH. Received: {program[0]}"
        )
    return list(program)


def _output(output: str, dry_run: bool) -> str:
    """Where output goes; a folder is made."""
    if output in ("all", "leader"):
        return output
    folder = Path(output).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'--output takes "all", "leader" or a folder. Received: {output}, a file')
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    return str(folder)
