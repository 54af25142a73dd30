"""The command `hyparflow` itself: the group of all its commands."""

from __future__ import annotations

import click

from hyparflow.cli.doctor import doctor
from hyparflow.cli.plan import plan
from hyparflow.cli.run import run
from hyparflow.cli.trace import trace

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hyparflow")
def main() -> None:
    """Train Keras 3 models on several MPI ranks.

    A training script calls hyparflow.fit in place of model.fit, and is started by "hyparflow run",
    mpirun or srun. The other commands help before and after.
    """


for command in (run, plan, trace, doctor):
    main.add_command(command)
