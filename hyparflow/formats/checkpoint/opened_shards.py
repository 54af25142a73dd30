"""One file of shards, open for reading, and compared with the index.

Bytes are read by calls, not through memory that is mapped: where the file system of a network
fails, or others cut a file short, mapped memory ends the process by SIGBUS; a call raises OSError.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hyparflow.formats.checkpoint.checksum import Checksum, checksum_of
from hyparflow.formats.checkpoint.dtypes import dtype_named, stored_name
from hyparflow.formats.checkpoint.index import ShardEntry, TensorEntry
from hyparflow.formats.checkpoint.shard_header import (
    LENGTH,
    ShardPlace,
    decode_header,
    header_end,
)
from hyparflow.formats.plain_files import kind_of
from hyparflow.formats.text import shortened

__all__ = ["OpenedShards", "damaged"]

_PIECE = 2**24  # bytes that are read at once where they cannot go where they belong
_SHORT = 2**14  # bytes of a row that are read as a whole, though only a part of them is needed


class OpenedShards:
    """A file of shards; of its bytes few more are read than are asked for.

    Neither the index nor the header of the file is trusted: both must say the same.

    Args:
        path: of the file.
        size: which the index says it has.

    Raises:
        ValueError: if it is no plain file of this size with a header that fits.
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        if path.is_symlink():
            raise ValueError(damaged("A file of shards", path, "it is a link"))
        self._descriptor = os.open(path, flags)
        found = os.fstat(self._descriptor)
        if kind := kind_of(found.st_mode):
            raise ValueError(damaged("A file of shards", path, f"it is {kind}"))
        if found.st_size != size:
            reason = f"it has {found.st_size} bytes, and {size} were written"
            raise ValueError(damaged("A file of shards", path, reason))
        end = header_end(path, os.pread(self._descriptor, LENGTH, 0), size)
        header = bytearray(end)
        self._read(0, memoryview(header))
        self._places = decode_header(path, bytes(header), size)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def require(self, name: str, tensor: TensorEntry, shard: ShardEntry) -> ShardPlace:
        """Where a shard lies, once the header is known to say what the index says.

        Raises:
            ValueError: if it does not.
        """
        place = self._places.get(shard.key)
        if place is None:
            raise ValueError(damaged(name, self.path, f"there is no {shortened(shard.key)}"))
        size = place.data_offsets[1] - place.data_offsets[0]
        expected = dtype_named(tensor.dtype).itemsize
        for axis in shard.shape:
            expected *= axis
        header = place.dtype, place.shape, size
        index = stored_name(tensor.dtype), shard.shape, expected
        if header != index:
            raise ValueError(damaged(name, self.path, f"it has {header}, the index has {index}"))
        return place

    def read(
        self,
        name: str,
        tensor: TensorEntry,
        shard: ShardEntry,
        box: tuple[slice, ...],
        into: np.ndarray,
    ) -> None:
        """Fill an array with a box of a shard, which is counted from the shard's own start.

        Raises:
            ValueError: as `require`.
            OSError: if the file cannot be read.
        """
        begin, _ = self.require(name, tensor, shard).data_offsets
        self._fill(into, begin, shard.shape, box)

    def check(
        self, name: str, tensor: TensorEntry, shard: ShardEntry, read: np.ndarray | None = None
    ) -> None:
        """Compare the checksum of a whole shard with that of the index.

        Args:
            name, tensor, shard: of the index.
            read: the shard, if it is in memory already.

        Raises:
            ValueError: if they differ; it names the file and the tensor.
            OSError: if the file cannot be read.
        """
        begin, end = self.require(name, tensor, shard).data_offsets
        if read is not None and read.flags.c_contiguous:
            found = checksum_of(_bytes_of(read))
        else:
            found = self._checksum(begin, end)
        if found != shard.checksum:
            reason = f"its checksum is {found}, and {shard.checksum} was written"
            raise ValueError(damaged(name, self.path, reason))

    def _fill(
        self, into: np.ndarray, offset: int, shape: Sequence[int], box: tuple[slice, ...]
    ) -> None:
        """Fill an array from an array in the file, which begins at `offset` and has this shape."""
        inner = all(part == slice(0, size) for part, size in zip(box[1:], shape[1:], strict=True))
        first = box[0].start if box else 0
        row = into.itemsize
        for size in shape[1:]:
            row *= size
        if inner and into.flags.c_contiguous:
            self._read(offset + first * row, _bytes_of(into))
        elif row <= _SHORT:
            count = _PIECE // row
            for at in range(0, len(into), count):
                rows = np.empty((min(count, len(into) - at), *shape[1:]), into.dtype)
                self._read(offset + (first + at) * row, _bytes_of(rows))
                into[at : at + count] = rows[(slice(None), *box[1:])]
        else:
            for at in range(len(into)):
                self._fill(into[at, ...], offset + (first + at) * row, shape[1:], box[1:])

    def _checksum(self, begin: int, end: int) -> str:
        checksum, buffer = Checksum(), memoryview(bytearray(min(_PIECE, end - begin)))
        for at in range(begin, end, _PIECE):
            piece = buffer[: min(_PIECE, end - at)]
            self._read(at, piece)
            checksum.add(piece)
        return checksum.text()

    def _read(self, offset: int, into: memoryview) -> None:
        """Fill a buffer with the bytes from `offset` on."""
        while into:
            count = os.preadv(self._descriptor, [into], offset)
            if count == 0:
                raise OSError(damaged("A file of shards", self.path, f"it ends at byte {offset}"))
            into, offset = into[count:], offset + count


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def damaged(name: str, path: Path, reason: str) -> str:
    """The message about a file that is not what was written."""
    return (
        f"`{name}` in {path} is damaged: what is read must be what was written. "
        f"Received: {reason}. Remove the folder of this step, and go on from an earlier one."
    )
