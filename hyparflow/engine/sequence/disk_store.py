"""Keeps tensors in a file, which is written and read by threads of its own.

What is read next is told beforehand, so that it has been read when it is asked for. Reads and
writes go through `pread` and `pwrite`: pages of a mapped file would count as the process's memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyparflow.comm.byte_chunks import as_bytes
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.engine.sequence.store import Store, Tensors

__all__ = ["DiskStore"]

_AHEAD = 4  # puts that wait to be written
_FLUSHED = 1 << 26  # bytes after which what was written goes from the system's cache to the disk


@dataclass
class _Place:
    """Where tensors lie in the file.

    Attributes:
        offset, size: in bytes.
        types: shape and type of each tensor.
        written: done when they have been written.
    """

    offset: int
    size: int
    types: list[tuple[tuple[int, ...], np.dtype]]
    written: Future[None]


class DiskStore(Store):
    """Keeps tensors in a file without a name, which goes when the process ends.

    Args:
        folder: where the file lies.

    Raises:
        OSError: if there is no such folder, or no room; also when tensors are put or got later.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self._folder = folder
        self._file = tempfile.TemporaryFile(  # noqa: SIM115 - open as long as the store is
            dir=folder, prefix="hyparflow-", buffering=0
        )
        self._places: dict[Hashable, _Place] = {}
        self._free: dict[int, list[int]] = {}  # size -> offsets
        self._end = self._unflushed = 0
        self._ahead: dict[Hashable, Future[list[TensorBuffer]]] = {}
        self._writer, self._reader = (
            ThreadPoolExecutor(1, f"hyparflow-{name}") for name in ("write", "read")
        )  # noqa: E501
        self._waiting: list[Future[None]] = []

    def put(self, key: Hashable, tensors: Sequence[Any]) -> None:
        """See `Store.put`."""
        arrays = [np.ascontiguousarray(x) for x in tensors]
        size = sum(array.nbytes for array in arrays)
        offset = self._place_for(size)
        self._wait_for_writes(_AHEAD - 1)
        written = self._writer.submit(self._write, arrays, offset)
        self._waiting.append(written)
        self._places[key] = _Place(offset, size, [(x.shape, x.dtype) for x in arrays], written)
        self.counts.put(size)

    def get(self, key: Hashable) -> Tensors:
        """See `Store.get`."""
        self.prefetch(key)
        buffers = self._wait(self._ahead.pop(key))
        self.counts.got(self._places[key].size)
        return tuple(buffer.tensor for buffer in buffers)

    def drop(self, key: Hashable) -> None:
        """See `Store.drop`."""
        place = self._places.pop(key)
        read = self._ahead.pop(key, None)
        if read is not None:
            self._wait(read)
        self._wait(place.written)
        self._free.setdefault(place.size, []).append(place.offset)
        self.counts.dropped(place.size)

    def has(self, key: Hashable) -> bool:
        """See `Store.has`."""
        return key in self._places

    def prefetch(self, *keys: Hashable) -> None:
        """See `Store.prefetch`."""
        for key in keys:
            if key in self._places and key not in self._ahead:
                self._ahead[key] = self._reader.submit(self._read, self._places[key])

    def clear(self) -> None:
        """See `Store.clear`."""
        futures: list[Future[Any]] = [*self._waiting, *self._ahead.values()]
        for future in futures:
            future.exception()
        self._waiting.clear()
        self._ahead.clear()
        self._places.clear()
        self._free.clear()
        self._end = self.counts.now = 0

    def close(self) -> None:
        """See `Store.close`."""
        self.clear()
        self._writer.shutdown()
        self._reader.shutdown()
        self._file.close()

    def _place_for(self, size: int) -> int:
        free = self._free.get(size)
        if free:
            return free.pop()
        offset, self._end = self._end, self._end + size
        return offset

    def _wait_for_writes(self, most: int) -> None:
        """Wait until at most so many puts wait to be written."""
        while len(self._waiting) > most:
            self._wait(self._waiting.pop(0))

    def _wait(self, future: Future[Any]) -> Any:
        start = time.perf_counter()
        try:
            return future.result()
        except OSError as error:
            raise OSError(
                error.errno,
                "What waits for a backward cannot be written to, or read from, `sequence_store`. "
                f"Received: {error.strerror or error}, in the folder {self._folder} with "
                f"{self.counts.now:,} bytes in the file. Pass a folder with more room",
            ) from error
        finally:
            self.counts.stalls += time.perf_counter() - start

    # --- in threads ---

    def _write(self, arrays: Sequence[np.ndarray], offset: int) -> None:
        for array in arrays:
            memory = memoryview(as_bytes(array).data)
            while memory:
                count = os.pwrite(self._file.fileno(), memory, offset)
                memory, offset = memory[count:], offset + count
            self._unflushed += array.nbytes
        if self._unflushed >= _FLUSHED:
            self._unflushed = 0
            _forget(self._file.fileno())

    def _read(self, place: _Place) -> list[TensorBuffer]:
        place.written.result()
        buffers, offset = [], place.offset
        for shape, dtype in place.types:
            buffer = TensorBuffer(shape, dtype)
            memory = memoryview(as_bytes(buffer.array).data)
            while memory:
                count = os.preadv(self._file.fileno(), [memory], offset)
                if not count:
                    raise OSError("The file of `sequence_store` ends before what was put there.")
                memory, offset = memory[count:], offset + count
            buffers.append(buffer)
        return buffers


def _forget(descriptor: int) -> None:
    """Have the system keep none of a file's pages: a limit on memory may count them."""
    if hasattr(os, "posix_fadvise"):
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
