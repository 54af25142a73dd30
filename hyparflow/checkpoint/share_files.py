"""The files of one rank's share: its tensors, and a record of them that the leader reads.

The record comes last. That it is there says that the rank has written all.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hyparflow.checkpoint.stored_part import StoredPart
from hyparflow.formats.checkpoint.index import ShardEntry, TensorEntry
from hyparflow.formats.checkpoint.names import shard_name, state_name
from hyparflow.formats.checkpoint.shard_file import write_shards
from hyparflow.formats.checkpoint.shard_header import ShardSpec
from hyparflow.formats.writing import write_text

__all__ = [
    "ShareRecord",
    "joined",
    "read_share",
    "record_name",
    "write_failure",
    "write_share",
]


@dataclass(frozen=True)
class ShareRecord:
    """What a rank has written.

    Attributes:
        tensors: name -> the tensor, with this rank's shard alone.
        size: of the file, in bytes.
        error: why it could not be written; empty if it was.
    """

    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    size: int = 0
    error: str = ""


def record_name(rank: int) -> str:
    """The file that says what a rank has written."""
    return state_name(f"share-{rank:05d}")


def write_share(folder: Path, rank: int, parts: Sequence[StoredPart]) -> None:
    """Write a rank's tensors and its record.

    Raises:
        OSError: if they cannot be written.
    """
    file = shard_name(rank)
    keys = _keys(parts)
    specs = [
        ShardSpec(key, part.value.dtype.name, part.value.shape)
        for key, part in zip(keys, parts, strict=True)
    ]
    checksums = write_shards(folder / file, specs, (part.value for part in parts))
    tensors: dict[str, TensorEntry] = {}
    for key, part, checksum in zip(keys, parts, checksums, strict=True):
        shard = ShardEntry(file=file, key=key, start=part.start, stop=part.stop, checksum=checksum)
        before = tensors[part.name].shards if part.name in tensors else ()
        tensors[part.name] = TensorEntry(
            shape=part.whole, dtype=part.value.dtype.name, shards=(*before, shard)
        )
    _write_record(folder, rank, ShareRecord(tensors, (folder / file).stat().st_size))


def _keys(parts: Sequence[StoredPart]) -> list[str]:
    """What a file calls each part: as its tensor, with its first row where there are several."""
    count = collections.Counter(part.name for part in parts)
    return [x.name if count[x.name] == 1 else f"{x.name}:{x.start}" for x in parts]


def write_failure(folder: Path, rank: int, error: Exception) -> None:
    """Tell the leader that a rank could not write."""
    _write_record(folder, rank, ShareRecord(error=str(error) or type(error).__name__))


def read_share(folder: Path, rank: int) -> ShareRecord | None:
    """What a rank has written; None if it has not ended."""
    try:
        data = (folder / record_name(rank)).read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(data, type=ShareRecord)


def joined(shares: Iterable[ShareRecord], names: Iterable[str]) -> dict[str, TensorEntry]:
    """The tensors of all ranks.

    Args:
        shares: of the ranks.
        names: of the tensors that come first, in their order.
    """
    shards: dict[str, list[ShardEntry]] = {name: [] for name in names}
    entries: dict[str, TensorEntry] = {}
    for share in shares:
        for name, entry in share.tensors.items():
            entries[name] = entry
            shards.setdefault(name, []).extend(entry.shards)
    return {
        name: TensorEntry(
            shape=entries[name].shape,
            dtype=entries[name].dtype,
            shards=tuple(sorted(found, key=lambda shard: shard.start)),
        )
        for name, found in shards.items()
        if found
    }


def _write_record(folder: Path, rank: int, record: ShareRecord) -> None:
    write_text(folder / record_name(rank), msgspec.json.encode(record).decode())
