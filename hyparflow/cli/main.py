"""The command `hyparflow` itself: the group of all its commands."""

from __future__ import annotations

from typing import Any

import click

from hyparflow.cli.checkpoint import checkpoint
from hyparflow.cli.doctor import doctor
from hyparflow.cli.experts import experts
from hyparflow.cli.plan import plan
from hyparflow.cli.run import run
from hyparflow.cli.serve import serve
from hyparflow.cli.trace import trace
from hyparflow.comm import abort, launcher

__all__ = ["main"]


_ALONE = (
    "plan",
    "trace",
    "checkpoint",
    "experts",
)  # commands that need no other rank: only the first of several runs them


class _Commands(click.Group):
    """A group of commands; under a launcher only one rank reports an error."""

    def invoke(self, context: click.Context) -> Any:
        """Call the command that is named."""
        try:
            return super().invoke(context)
        except click.ClickException as error:
            abort.mark_collective(error)  # all ranks have the same command line
            abort.give_way(error)
            raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hyparflow")
@click.pass_context
def main(context: click.Context) -> None:
    """Train Keras 3 models on several MPI ranks.

    A training script calls hyparflow.fit in place of model.fit, and is started by "hyparflow run",
    mpirun or srun. The other commands help before and after.
    """
    if context.invoked_subcommand in _ALONE and launcher.told_rank():
        context.exit()


for command in (run, plan, trace, serve, checkpoint, experts, doctor):
    main.add_command(command)
