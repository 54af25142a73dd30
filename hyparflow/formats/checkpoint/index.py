"""The index of a checkpoint: which tensors there are, and in which files their rows lie."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from hyparflow.formats.checkpoint.shard_file import TYPES
from hyparflow.formats.records import Count, Number, read, schema_of

__all__ = ["INDEX", "VERSION", "Index", "Layout", "ShardEntry", "TensorEntry", "read_index"]

INDEX = "index.json"
VERSION = 1
_RULE = "A checkpoint needs an index that hyparflow wrote."
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(safetensors|json)")
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Checksum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]


@dataclass(frozen=True)
class ShardEntry:
    """Rows of a tensor, in one file.

    Attributes:
        file: its name.
        start, stop: the rows, along the first axis of the tensor's view.
        checksum: of their bytes.
    """

    file: str
    start: Size
    stop: Size
    checksum: Checksum


@dataclass(frozen=True)
class TensorEntry:
    """A tensor.

    Attributes:
        shape: its shape.
        dtype: NumPy's name of its type.
        view: the shape whose rows are divided: its own, or flat.
        shards: all its rows, in order.
    """

    shape: tuple[Size, ...]
    dtype: str
    view: tuple[Size, ...]
    shards: tuple[ShardEntry, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * TYPES[self.dtype][1]

    def rows(self, shard: ShardEntry) -> tuple[int, ...]:
        """The shape of a shard's rows."""
        return (shard.stop - shard.start, *self.view[1:]) if self.view else ()


@dataclass(frozen=True)
class Layout:
    """How the model was spread over the ranks that saved it."""

    num_partitions: Count
    num_replicas: Count
    num_shards: Count
    shards_optimizer: bool


@dataclass(frozen=True)
class Index:
    """Everything about a checkpoint but its numbers.

    Attributes:
        version: of this format.
        step: training steps so far.
        epoch: the epoch that ran, from 0, or that comes next.
        step_in_epoch: its steps so far.
        created: when, in ISO 8601.
        hyparflow: its version.
        layout: of the ranks that saved it.
        tensors: by name, in the order of the model.
        state: what else a training needs to go on.
        files: name -> bytes.
    """

    version: Number
    step: Number
    epoch: Number
    step_in_epoch: Number
    created: str
    hyparflow: str
    layout: Layout
    tensors: dict[str, TensorEntry]
    state: dict[str, Any]
    files: dict[str, Size]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())

    def text(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(asdict(self))


def read_index(folder: Path) -> Index:
    """The index of a checkpoint.

    Raises:
        ValueError: if it cannot be read, or is no index of a whole checkpoint.
    """
    return read(folder / INDEX, schema_of(Index), _RULE, _checked)


def _checked(content: Any) -> Index:
    if content.version != VERSION:
        raise ValueError(f"version {content.version}; this hyparflow reads version {VERSION}")
    index = msgspec.convert(msgspec.to_builtins(content), Index)
    for name in index.files:
        if not _FILE.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a file in the folder")
    room = sum(index.files.values())
    for name, entry in index.tensors.items():
        _check_tensor(name, entry, index.files, room)
    return index


def _check_tensor(name: str, entry: TensorEntry, files: dict[str, int], room: int) -> None:
    if entry.dtype not in TYPES:
        raise ValueError(f"tensor '{name}' is of the unknown type {entry.dtype!r}")
    if entry.view not in (entry.shape, (math.prod(entry.shape),)):
        raise ValueError(f"tensor '{name}' of shape {entry.shape} has the view {entry.view}")
    if entry.nbytes > room:
        raise ValueError(f"tensor '{name}' has {entry.nbytes} bytes, and all files {room}")
    place = 0
    for shard in entry.shards:
        if shard.file not in files:
            raise ValueError(f"tensor '{name}' lies in {shard.file!r}, which `files` has not")
        if shard.start != place or shard.stop < shard.start:
            raise ValueError(f"rows of tensor '{name}' are missing, or there twice, at {place}")
        place = shard.stop
    if place != (entry.view[0] if entry.view else 1):
        raise ValueError(f"rows of tensor '{name}' are missing, or too many, at {place}")
