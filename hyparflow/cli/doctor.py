"""``hyparflow doctor``: what training over ranks needs."""

from __future__ import annotations

import click

from hyparflow.cli.refused import Refused

__all__ = ["doctor"]


@click.command()
@click.option("--network", type=click.Path(), help="Measure the network; write it to this file.")
def doctor(network: str | None) -> None:
    """Check what training over ranks needs. Start it with mpirun, as you would start training."""
    if network is None:
        raise click.UsageError("Say what to check: --network FILE")
    from hyparflow.comm import World, start_mpi
    from hyparflow.planning.network import measure_network

    world = World(start_mpi())
    if world.size < 2:
        raise Refused(
            "The network is measured between ranks. Received: 1 rank. Start it with: "
            f"mpirun -n 2 hyparflow doctor --network {network}"
        )
    cluster = measure_network(world)
    if world.rank == 0:
        cluster.save(network)
        for name in ("within", "between"):
            link = getattr(cluster, name)
            known = "" if name == "within" or cluster.nodes > 1 else " (default: one node only)"
            click.echo(
                f"{name} nodes: latency {link.latency * 1e6:.1f} us, "
                f"bandwidth {link.bandwidth / 1e9:.2f} GB/s{known}"
            )
        click.echo(f"sums: {cluster.sum_bandwidth / 1e9:.2f} GB/s")
