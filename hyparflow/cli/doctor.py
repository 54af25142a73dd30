"""``hyparflow doctor``: what training over ranks needs."""

from __future__ import annotations

import json
import sys

import click

from hyparflow.cli.refused import Refused
from hyparflow.comm import launcher
from hyparflow.formats.writing import require_writable

__all__ = ["doctor"]


@click.command(short_help="Check what training over ranks needs.")
@click.option(
    "--network",
    type=click.Path(),
    help="Measure the network between ranks, and write it to this file for 'plan --cluster'.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the findings as JSON.")
def doctor(network: str | None, as_json: bool) -> None:
    """Check what training over ranks needs, and say what to do.

    Without a launcher, start two ranks and check whether they see each other. Started by mpirun or
    srun as a training is, check the ranks of that job. The exit status is 0 if there is no problem.
    """
    if network is not None:
        _measure(network)
        return
    from hyparflow.launching.doctor.examination import examine
    from hyparflow.launching.doctor.finding import PROBLEM, as_values, show

    findings = examine()
    if launcher.is_launched() and not _leads():
        return
    if as_json:
        click.echo(json.dumps(as_values(findings), indent=1))
    else:
        # Open MPI gives rank 0 a terminal, even if the job's output goes elsewhere.
        show(findings, is_drawn=sys.stdout.isatty() and not launcher.is_launched())
    sys.exit(int(any(finding.status == PROBLEM for finding in findings)))


def _leads() -> bool:
    """Whether this rank reports: the first, or each rank if they do not see each other."""
    from hyparflow.comm.world import start_mpi

    try:
        return bool(start_mpi().COMM_WORLD.Get_rank() == 0)
    except (ImportError, RuntimeError):
        return True


def _measure(network: str) -> None:
    from hyparflow.comm.world import World
    from hyparflow.planning.costs.measure_network import measure_network

    world = World()
    if world.size < 2:
        raise Refused(
            "The network is measured between ranks. Received: 1 rank. Start it with: "
            f"mpirun -n 2 hyparflow doctor --network {network}"
        )
    problem = _problem(network) if world.rank == 0 else None
    problem = world.broadcast_object(problem, 0, "whether the file can be written")
    if problem is not None:
        if world.rank == 0:
            raise Refused(problem)
        sys.exit(Refused.exit_code)
    cluster = measure_network(world)
    if world.rank == 0:
        try:
            cluster.save(network)
        except (OSError, ValueError) as error:
            raise Refused(str(error)) from error
        for name in ("within", "between"):
            link = getattr(cluster, name)
            known = "" if name == "within" or cluster.nodes > 1 else " (default: one node only)"
            click.echo(
                f"{name} nodes: latency {link.latency * 1e6:.1f} us, "
                f"bandwidth {link.bandwidth / 1e9:.2f} GB/s{known}"
            )
        click.echo(f"sums: {cluster.sum_bandwidth / 1e9:.2f} GB/s")


def _problem(network: str) -> str | None:
    """Why the file cannot be written, before minutes of measuring; None if it can."""
    try:
        require_writable(network)
    except (OSError, ValueError) as error:
        return str(error)
    return None
