"""The index of a checkpoint: which part of which tensor lies in which file.

It is written last, in one piece. Whoever reads it trusts nothing in it: names of files are plain,
the shards of a tensor cover it once, and none is larger than its file.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from hyparflow.formats.checkpoint.boxes import extent, fault_of_tiling
from hyparflow.formats.checkpoint.checksum import checksum_of, is_checksum
from hyparflow.formats.checkpoint.dtypes import dtype_named
from hyparflow.formats.checkpoint.names import is_shard_file, is_state_file
from hyparflow.formats.checkpoint.state import fault_of_state
from hyparflow.formats.records import Bytes, Count, Number, read
from hyparflow.formats.text import shortened

__all__ = [
    "VERSION",
    "Index",
    "Layout",
    "ShardEntry",
    "TensorEntry",
    "bytes_of",
    "encoded",
    "read_index",
]

VERSION = 1  # of the format; grows with each change that older readers would misread
_MOST_AXES = 32
_RULE = "The index of a checkpoint must be one that hyparflow wrote."


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the ranks that wrote a checkpoint shared the model; reading does not need it.

    Attributes:
        num_partitions, num_replicas, num_sequence_shards: as in the parallel arguments.
        is_optimizer_sharded: whether replicas shared the optimizer's state.
        schedule: of the pipeline; empty without one.
    """

    num_partitions: Count
    num_replicas: Count
    num_sequence_shards: Count = 1
    is_optimizer_sharded: bool = False
    schedule: str = ""


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A box of a tensor, and where it lies.

    Attributes:
        file: the name of its file in the folder.
        key: its name within the file.
        start, stop: the first index and the one after the last on each axis.
        checksum: of its bytes.
    """

    file: str
    key: str
    start: tuple[Number, ...]
    stop: tuple[Number, ...]
    checksum: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the box."""
        return extent(self.start, self.stop)


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor: what it is as a whole, and the shards that cover it.

    Attributes:
        shape: of the whole tensor.
        dtype: NumPy's name of its type.
        shards: each element lies in one of them.
    """

    shape: tuple[Number, ...]
    dtype: str
    shards: tuple[ShardEntry, ...]

    @property
    def nbytes(self) -> int:
        """Of the whole tensor."""
        return bytes_of(self.shape, self.dtype)


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a checkpoint holds.

    Attributes:
        version: of the format.
        step: training steps since the start of the training.
        epoch, step_in_epoch: where in the data the training goes on.
        created: the time, as ISO 8601 text.
        hyparflow: the version that wrote it.
        layout: how ranks shared the model.
        tensors: name -> tensor.
        state: what else the training needs, as a JSON object.
        files: name -> size in bytes, of all files beside the index.
        checksums: name -> checksum, of those files that are JSON.
        checksum: of the index itself; `encoded` fills it in.
    """

    version: int = VERSION
    step: Number
    epoch: Number
    step_in_epoch: Number
    created: str
    hyparflow: str
    layout: Layout
    tensors: dict[str, TensorEntry]
    state: dict[str, Any]
    files: dict[str, Bytes]
    checksums: dict[str, str] = {}
    checksum: str = ""


class _Versioned(msgspec.Struct):
    """What indices of all versions have."""

    version: int


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """The size of a tensor; exact, however large the numbers are.

    Raises:
        ValueError: if `dtype` is not known.
    """
    size = dtype_named(dtype).itemsize
    for axis in shape:
        size *= axis
    return size


def read_index(path: str | os.PathLike[str]) -> Index:
    """Read an index, and check everything in it that can be checked without the other files.

    Raises:
        ValueError: if it cannot be read, was damaged, or contradicts itself.
    """
    try:
        return read(path, Index, _RULE, _whole)
    except ValueError:
        read(path, _Versioned, _RULE, _require_version)  # a later one has fields unknown here
        raise


def encoded(index: Index) -> bytes:
    """An index as the bytes of its file.

    Raises:
        ValueError: if it is not one that `read_index` would read.
    """
    if fault := fault_of_state(index.state):
        raise ValueError(f"{_RULE} Received: {fault}")
    try:
        summed = msgspec.structs.replace(index, checksum=_own_checksum(index))
        data = msgspec.json.encode(summed)
        _whole(msgspec.json.decode(data, type=Index))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_RULE} Received: {error}") from error
    return data + b"\n"


def _require_version(found: Index | _Versioned) -> None:
    if found.version != VERSION:
        raise ValueError(
            f"it has the version {found.version}, and this hyparflow reads version {VERSION}"
        )


def _whole(index: Index) -> Index:
    _require_version(index)
    if fault := fault_of_state(index.state) or _fault(index):
        raise ValueError(fault)
    if index.checksum != _own_checksum(index):
        raise ValueError("its own checksum does not fit: it was damaged, or changed by hand")
    return index


def _own_checksum(index: Index) -> str:
    """Of the index as it is written, but for this checksum."""
    return checksum_of(msgspec.json.encode(msgspec.structs.replace(index, checksum="")))


def _fault(index: Index) -> str:
    """What is wrong in an index; an empty string if nothing is."""
    for name in index.files:
        if not (is_shard_file(name) or is_state_file(name)):
            return f"{shortened(name)} is no name of a file of a checkpoint"
    for name, checksum in index.checksums.items():
        if name not in index.files or not is_checksum(checksum):
            return f"{shortened(checksum)} of {shortened(name)} is no checksum of a file of it"
    taken = dict.fromkeys(index.files, 0)
    keys: set[tuple[str, str]] = set()
    for name, tensor in index.tensors.items():
        if fault := _fault_of_tensor(tensor, index.files):
            return f"the tensor {shortened(name)}: {fault}"
        for shard in tensor.shards:
            if (shard.file, shard.key) in keys:
                return f"{shortened(shard.key)} in {shard.file} is used twice"
            keys.add((shard.file, shard.key))
            taken[shard.file] += bytes_of(shard.shape, tensor.dtype)
    over = [name for name, size in taken.items() if size > index.files[name]]
    return f"{over[0]} is too small for its tensors" if over else ""


def _fault_of_tensor(tensor: TensorEntry, files: dict[str, int]) -> str:
    if len(tensor.shape) > _MOST_AXES:
        return f"it has {len(tensor.shape)} axes, and at most {_MOST_AXES} are allowed"
    dtype_named(tensor.dtype)
    if fault := fault_of_tiling(tensor.shape, [(s.start, s.stop) for s in tensor.shards]):
        return fault
    for shard in tensor.shards:
        if shard.file not in files or not is_shard_file(shard.file):
            return f"{shortened(shard.file)} is not among the files of shards"
        if not is_checksum(shard.checksum):
            return f"{shortened(shard.checksum)} is no checksum that is known"
    return ""
