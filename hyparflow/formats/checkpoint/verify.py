"""Finds out whether checkpoints are whole: quickly, or by reading every byte of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyparflow.formats.checkpoint.checksum import checksum_of
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import Index
from hyparflow.formats.checkpoint.names import INDEX, is_shard_file
from hyparflow.formats.checkpoint.opened_shards import damaged
from hyparflow.formats.checkpoint.reader import CheckpointReader
from hyparflow.formats.plain_files import kind_of

__all__ = ["Verified", "quick_check", "read_json_state", "verify", "verify_step"]


@dataclass(frozen=True)
class Verified:
    """What was found out about one committed step.

    Attributes:
        step: the step.
        index: of the step; None if it cannot be read.
        faults: what is wrong with it, a message each; nothing if it is whole.
    """

    step: int
    index: Index | None
    faults: list[str]


def verify(folder: CheckpointFolder) -> Iterator[Verified]:
    """Read all of every committed step, one after the other, and compare all checksums."""
    for step in folder.committed():
        yield _examined(folder, step, is_read=True)


def verify_step(folder: CheckpointFolder, step: int) -> Verified:
    """Read all of one committed step, and compare all checksums."""
    return _examined(folder, step, is_read=True)


def quick_check(folder: CheckpointFolder, step: int) -> Verified:
    """Compare the names, sizes and headers of a step's files with its index; no tensor is read."""
    return _examined(folder, step, is_read=False)


def _examined(folder: CheckpointFolder, step: int, is_read: bool) -> Verified:
    place = folder.step(step)
    try:
        reader = CheckpointReader(place)
    except ValueError as error:
        return Verified(step, None, [str(error)])
    faults: list[str] = []
    if reader.index.step != step:
        faults.append(
            damaged(INDEX, place, f"it is of step {reader.index.step}, and the folder of {step}")
        )
    broken = set()
    for name, size in reader.index.files.items():
        with _noted(faults) as before:
            if is_shard_file(name):
                reader.file(name)
            else:
                _require_size(place / name, size)
                if is_read and name in reader.index.checksums:
                    read_json_state(place / name, reader.index.checksums[name])
        if len(faults) > before:
            broken.add(name)
    for name, tensor in reader.index.tensors.items():
        for shard in tensor.shards:
            if shard.file not in broken:
                file = reader.file(shard.file)
                with _noted(faults):
                    (file.check if is_read else file.require)(name, tensor, shard)
    return Verified(step, reader.index, faults)


def read_json_state(path: Path, checksum: str) -> bytes:
    """The bytes of a JSON file beside the index.

    Raises:
        ValueError: if they are not those that were written.
        OSError: if they cannot be read.
    """
    data = path.read_bytes()
    if checksum_of(data) != checksum:
        raise ValueError(damaged("A JSON state", path, "its checksum does not fit"))
    return data


@contextlib.contextmanager
def _noted(faults: list[str]) -> Iterator[int]:
    """Put the error of the block into `faults`; gives how many there were before."""
    try:
        yield len(faults)
    except (ValueError, OSError) as error:
        faults.append(str(error))


def _require_size(path: Path, size: int) -> None:
    found = path.lstat()
    if kind_of(found.st_mode) or found.st_size != size:
        reason = f"it has {found.st_size} bytes, and {size} were written"
        raise ValueError(damaged("A JSON state", path, reason))
