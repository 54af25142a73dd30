"""Reads tensors of a checkpoint, whatever ranks have written them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from hyparflow.formats.checkpoint.index import Index, ShardEntry, TensorEntry, read_index
from hyparflow.formats.checkpoint.shard_file import ShardFile, checksum_of, dtype_named

__all__ = ["CheckpointReader"]


class CheckpointReader:
    """A committed checkpoint. Only the bytes of what is asked for are read.

    Attributes:
        folder: of the checkpoint.
        index: what it holds.

    Args:
        folder: of the checkpoint.

    Raises:
        ValueError: if its index cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: Index = read_index(folder)
        self._file = functools.cache(lambda name: ShardFile(folder / name))

    def read(self, name: str) -> np.ndarray:
        """A whole tensor.

        Raises:
            ValueError: if a file is missing or damaged; it names file and tensor.
        """
        entry = self.index.tensors[name]
        parts = [self._whole_shard(name, entry, shard) for shard in entry.shards]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return value.reshape(entry.shape)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a tensor's view; of shards that are not needed whole no checksum is looked at.

        Raises:
            ValueError: as `read`.
        """
        entry = self.index.tensors[name]
        made = np.empty((stop - start, *entry.view[1:]), dtype_named(entry.dtype))
        for shard in entry.shards:
            first, last = max(start, shard.start), min(stop, shard.stop)
            if first < last:
                rows = self._shard(name, entry, shard)
                if (first, last) == (shard.start, shard.stop):
                    rows = self._whole_shard(name, entry, shard)
                made[first - start : last - start] = rows[first - shard.start : last - shard.start]
        return made

    def _shard(self, name: str, entry: TensorEntry, shard: ShardEntry) -> np.ndarray:
        return self._file(shard.file).tensor(name, entry.dtype, entry.rows(shard))

    def _whole_shard(self, name: str, entry: TensorEntry, shard: ShardEntry) -> np.ndarray:
        rows = self._shard(name, entry, shard)
        if checksum_of(rows) != shard.checksum:
            raise ValueError(
                "A checkpoint's tensors must have the checksums of its index. Received: "
                f"{self.folder / shard.file}, where tensor '{name}' is damaged. Use another "
                "checkpoint of the folder."
            )
        return rows
