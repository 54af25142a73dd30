"""Whether checkpoints are whole: quickly, by the sizes of files, or by all checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import Index
from hyparflow.formats.checkpoint.reader import CheckpointReader

__all__ = ["Verified", "require_folder", "verified"]


@dataclass(frozen=True)
class Verified:
    """What was found of one checkpoint.

    Attributes:
        step: of it.
        index: None if it cannot be read.
        faults: what is wrong, in sentences; empty if it is whole.
    """

    step: int
    index: Index | None
    faults: list[str]


def require_folder(path: Path) -> CheckpointFolder:
    """The folder, if there are checkpoints in it, whole or not.

    Raises:
        ValueError: if there are none.
    """
    folder = CheckpointFolder(path)
    if not folder.committed() and not folder.unfinished():
        raise ValueError(
            "A folder of checkpoints is what `hyparflow.fit(..., checkpoint=folder)` wrote. "
            f"Received: {path}, in which there is none. Give the folder that `fit` was given."
        )
    return folder


def verified(folder: CheckpointFolder, step: int, reads_all: bool) -> Verified:
    """Look at a committed checkpoint.

    Args:
        folder: of it.
        step: of it.
        reads_all: whether to read all numbers, and compare checksums.
    """
    try:
        reader = CheckpointReader(folder.step_folder(step))
    except ValueError as error:
        return Verified(step, None, [str(error)])
    faults = _wrong_sizes(reader)
    if reads_all and not faults:
        faults = _damaged(reader)
    return Verified(step, reader.index, faults)


def _wrong_sizes(reader: CheckpointReader) -> list[str]:
    faults = []
    for name, size in reader.index.files.items():
        path = reader.folder / name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif (found := path.stat().st_size) != size:
            faults.append(f"{path} has {found} bytes in place of {size}")
    return faults


def _damaged(reader: CheckpointReader) -> list[str]:
    faults = []
    for name in reader.index.tensors:
        try:
            reader.read(name)
        except ValueError as error:
            faults.append(str(error))
    return faults
