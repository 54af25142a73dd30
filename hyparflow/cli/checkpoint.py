"""``hyparflow checkpoint``: look at checkpoints, without MPI and without TensorFlow."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hyparflow.cli.refused import Refused

__all__ = ["checkpoint"]

_Folder = click.argument("folder", type=click.Path(path_type=Path))


@click.group(short_help="Look at the checkpoints of a training.")
def checkpoint() -> None:
    """Look at the checkpoints that hyparflow.fit(..., checkpoint=FOLDER) wrote."""


@checkpoint.command()
@_Folder
def show(folder: Path) -> None:
    """Show steps, layouts and sizes, and whether each is whole by the sizes of its files."""
    from hyparflow.formats.checkpoint.verify import require_folder, verified
    from hyparflow.formats.sizes import size_text
    from hyparflow.formats.text import aligned

    try:
        found = require_folder(folder)
        rows = [["step", "epoch", "saved", "layout", "tensors", "size", "whole"]]
        for step in found.committed():
            seen = verified(found, step, reads_all=False)
            index, whole = seen.index, "no: " + seen.faults[0] if seen.faults else "yes"
            if index is None:
                rows.append([str(step), "", "", "", "", "", whole])
                continue
            layout = index.layout
            within = f"{index.epoch} done"
            if index.step_in_epoch:
                within = f"{index.epoch + 1}, step {index.step_in_epoch}"
            rows.append(
                [
                    str(step),
                    within,
                    index.created,
                    f"{layout.num_partitions} x {layout.num_replicas}",
                    str(len(index.tensors)),
                    size_text(index.nbytes),
                    whole,
                ]
            )
        for step in found.unfinished():
            rows.append([str(step), "", "", "", "", "", "no: unfinished"])
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    for line in aligned(rows):
        click.echo(line)


@checkpoint.command()
@_Folder
def verify(folder: Path) -> None:
    """Read all numbers and compare checksums. The exit status is 2 if anything is wrong."""
    from hyparflow.formats.checkpoint.verify import require_folder, verified

    faults = 0
    try:
        found = require_folder(folder)
        for step in found.committed():
            seen = verified(found, step, reads_all=True)
            faults += len(seen.faults)
            for fault in seen.faults:
                click.echo(f"step {step}: {fault}", err=True)
            if not seen.faults:
                click.echo(f"step {step}: whole")
        for step in found.unfinished():
            click.echo(f"step {step}: unfinished; it is ignored, and removed by the next save")
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    sys.exit(2 if faults else 0)
