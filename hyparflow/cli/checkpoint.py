"""``hyparflow checkpoint``: what a training saved, and whether it is whole."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hyparflow.cli.refused import Refused
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import Layout
from hyparflow.formats.checkpoint.names import step_of
from hyparflow.formats.checkpoint.verify import Verified, quick_check
from hyparflow.formats.checkpoint.verify import verify as verify_all
from hyparflow.formats.sizes import size_text
from hyparflow.formats.text import Page, counted, shortened

__all__ = ["checkpoint"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_TITLES = ("step", "epoch", "in epoch", "layout", "size", "saved (UTC)", "whole")
_DAY_AND_TIME = len("2026-01-31 12:00:00")


@click.group(
    short_help="Show, verify and export what a training saved.", subcommand_metavar="COMMAND"
)
def checkpoint() -> None:
    """Show, verify and export the checkpoints of a training.

    None of it needs MPI, and only "export" needs TensorFlow.
    """


@checkpoint.command(short_help="List the checkpoints in a folder.")
@click.argument("folder", type=_FOLDER)
def show(folder: Path) -> None:
    """List the checkpoints in FOLDER, oldest first.

    A layout is the numbers of partitions, replicas and, if there are any, sequence shards.

    A quick check says whether each is whole: are its files there, with the sizes and headers that
    were written? "verify" reads all of them.
    """
    found = _opened(folder)
    steps = [quick_check(found, step) for step in _committed(found)]
    faults = [_fault_line(step, fault) for step in steps for fault in step.faults]
    Page(
        [f"{folder}: {counted(len(steps), 'checkpoint', 'checkpoints')}"],
        [_TITLES, *map(_row, steps)],
        [*faults, *_unfinished_lines(found)],
    ).show()


@checkpoint.command(short_help="Read all checkpoints in a folder, and find damaged ones.")
@click.argument("folder", type=_FOLDER)
def verify(folder: Path) -> None:
    """Read every byte of the checkpoints in FOLDER, and compare all checksums.

    The exit status is 0 if all are whole, and 2 if a file is missing, cut off or damaged. Steps
    whose saving did not come to its end are named; they are no fault, and the next save removes
    them.
    """
    found = _opened(folder)
    _committed(found)
    damaged = []
    for step in verify_all(found):
        if step.faults:
            damaged.append(step.step)
            for fault in step.faults:
                click.echo(_fault_line(step, fault), err=True)
        else:
            click.echo(f"step {step.step}: whole, {_size(step)}")
    for line in _unfinished_lines(found):
        click.echo(line)
    if damaged:
        whole = [step for step in found.committed() if step not in damaged]
        fix = f"Go on from step {whole[-1]}" if whole else "Copy them again from where they came"
        raise Refused(
            "The checkpoints in a folder must be whole. Received: "
            f"{counted(len(damaged), 'damaged step', 'damaged steps')} in {folder}: "
            f"{', '.join(map(str, damaged))}. {fix}."
        )


@checkpoint.command(short_help="Write an ordinary Keras file from a checkpoint.")
@click.argument("folder", type=_FOLDER)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(0), help="The training step.  [default: the newest]")
def export(folder: Path, file: Path, step: int | None) -> None:
    """Write the model of a checkpoint in FOLDER into FILE, which Keras loads without hyparflow.

    FILE ends in ".keras" or ".weights.h5"; a name without an ending is the folder of a SavedModel.
    A few tensors at a time are in memory. Layers of your own must be registered, or their model be
    loaded by hyparflow.load_checkpoint.
    """
    is_file = file.name.endswith((".keras", ".weights.h5"))
    if (file.suffix and not is_file) or (is_file and file.is_dir()):
        raise Refused(
            "FILE must end in '.keras' or '.weights.h5', or be a folder whose name has no ending, "
            f"for a SavedModel. Received: {file}. Give it such a name."
        )
    _committed(_opened(folder))
    from hyparflow.checkpoint.export import export as write

    try:
        write(folder, file, step)
    except (ValueError, TypeError, OSError) as error:
        raise Refused(str(error)) from error
    click.echo(f"{file} is written")


def _opened(folder: Path) -> CheckpointFolder:
    """The folder as one of checkpoints; that of a single step is another."""
    if step_of(os.path.basename(os.path.abspath(folder))) is not None:
        raise Refused(
            "The folder of a training's checkpoints is above those of its steps. "
            f"Received: {folder}, which is of one step. Pass {os.path.dirname(folder) or '..'}"
        )
    return CheckpointFolder(folder)


def _committed(found: CheckpointFolder) -> list[int]:
    """The steps that were saved to the end; there must be one at least."""
    try:
        steps, unfinished = found.committed(), found.unfinished()
    except OSError as error:
        raise Refused(
            "A folder of checkpoints must be one that can be read. "
            f"Received: {found.path} ({error.strerror}). Ask its owner for the permission."
        ) from error
    if not steps:
        others = f"{len(unfinished)} whose saving did not end" if unfinished else "none"
        raise Refused(
            "A folder of checkpoints has folders such as step-0000000100, with an index.json each. "
            f"Received: {found.path}, which has {others}. Pass the folder that the training had."
        )
    return steps


def _row(found: Verified) -> tuple[str, ...]:
    index, whole = found.index, "no" if found.faults else "yes"
    if index is None:
        return (str(found.step), *[""] * (len(_TITLES) - 2), whole)
    return (
        str(found.step),
        str(index.epoch),
        str(index.step_in_epoch),
        _layout_text(index.layout),
        _size(found),
        _shown(index.created),
        whole,
    )


def _shown(created: str) -> str:
    """When it was saved, as its index says."""
    return shortened(created)[1:-1].replace("T", " ")[:_DAY_AND_TIME]


def _layout_text(layout: Layout) -> str:
    """ "4 x 2, optimizer sharded": partitions, replicas, and sequence shards if there are any."""
    axes = [layout.num_partitions, layout.num_replicas]
    if layout.num_sequence_shards > 1:
        axes.append(layout.num_sequence_shards)
    return " x ".join(map(str, axes)) + (
        ", optimizer sharded" if layout.is_optimizer_sharded else ""
    )


def _size(found: Verified) -> str:
    return "" if found.index is None else size_text(sum(found.index.files.values()))


def _fault_line(found: Verified, fault: str) -> str:
    return f"step {found.step}: {fault}"


def _unfinished_lines(found: CheckpointFolder) -> list[str]:
    return [
        f"step {step}: not saved to the end; left out when reading, removed by the next save"
        for step in found.unfinished()
    ]
