"""``hyparflow trace``: where the time went."""

from __future__ import annotations

import click

from hyparflow.cli.refused import Refused

__all__ = ["trace"]


@click.command(short_help="Show where the time of each rank went.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--plot", type=click.Path(), help="Draw a step, beside the planned one, into this file."
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(exists=True),
    help="The plan to draw.  [default: that of the training]",
)
def trace(file: str, plot: str | None, plan_file: str | None) -> None:
    """Show where the time of each rank went.

    FILE is a trace: hyparflow.fit writes one if it is given trace=FILE.
    """
    from hyparflow.planning.plan import Plan
    from hyparflow.tracing.summary import describe
    from hyparflow.tracing.trace import Trace

    try:
        read = Trace.load(file)
        describe(read).show()
        if plot:
            from hyparflow.tracing.picture import draw

            draw(read, plot, None if plan_file is None else Plan.load(plan_file))
    except (ValueError, ImportError, OSError) as error:
        raise Refused(str(error)) from error
