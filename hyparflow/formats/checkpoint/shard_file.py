"""Writes what one rank owns into a safetensors file, tensor by tensor.

The safetensors library writes a file from tensors that are all in memory at once, and takes no
checksum of them; its format is the header of `shard_header` and the bytes of the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hyparflow.formats.checkpoint.checksum import Checksum
from hyparflow.formats.checkpoint.dtypes import dtype_named, name_of
from hyparflow.formats.checkpoint.shard_header import ShardSpec, encode_header
from hyparflow.formats.checkpoint.uncached_file import UncachedFile

__all__ = ["write_shards"]

_PIECE = 2**24  # bytes that are copied at once, where an array does not lie in one piece


def write_shards(
    path: str | os.PathLike[str], specs: Sequence[ShardSpec], arrays: Iterable[np.ndarray]
) -> list[str]:
    """Write a new file of shards, and sync it to the disk.

    Of arrays that are views, or of the other byte order, 16 MiB are copied at a time; the others
    are written from where they lie. `arrays` may make each of them when it is asked for.

    Args:
        path: of the file, which must not be there yet.
        specs: key, type and shape of each shard, in the order of the file.
        arrays: the shards themselves, in that order.

    Returns:
        The checksum of each shard.

    Raises:
        ValueError: if the arrays are not those of `specs`, or two shards have one key.
        OSError: if the file cannot be written, as on a full disk. Nothing is left of it then.
    """
    header = encode_header(specs)
    target = Path(path)
    with UncachedFile(target) as file:
        try:
            file.write(header)
            checksums = [_write(file, array) for array in _as_specified(target, specs, arrays)]
            file.sync()
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(target)
            raise
    return checksums


def _as_specified(
    path: Path, specs: Sequence[ShardSpec], arrays: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """The arrays, each compared with its spec; as many as there are specs."""
    found = iter(arrays)
    for spec in specs:
        array = next(found, None)
        if array is None or name_of(array.dtype) != spec.dtype or array.shape != spec.shape:
            given = "no array" if array is None else f"{array.dtype} of shape {array.shape}"
            raise ValueError(_mismatch(path, f"{given} for {spec}"))
        yield array
    if next(found, None) is not None:
        raise ValueError(_mismatch(path, f"more than {len(specs)} arrays"))


def _mismatch(path: Path, received: str) -> str:
    return (
        f"Shards are written as the header of their file says. Received: {received}, for {path}. "
        "Pass one array of that type and shape for each shard, in the same order."
    )


def _write(file: UncachedFile, array: np.ndarray) -> str:
    checksum = Checksum()
    for piece in _pieces(array, dtype_named(name_of(array.dtype))):
        checksum.add(piece)
        file.write(piece)
    return checksum.text()


def _pieces(array: np.ndarray, stored: np.dtype) -> Iterator[memoryview]:
    """The bytes of an array in order, in pieces; few of them are copied at a time."""
    if array.nbytes == 0:
        return
    if array.flags.c_contiguous and array.dtype == stored:
        raw = array.reshape(-1).view(np.uint8).data
        for place in range(0, len(raw), _PIECE):
            yield raw[place : place + _PIECE]
    elif array.nbytes <= _PIECE:
        yield np.ascontiguousarray(array, stored).reshape(-1).view(np.uint8).data
    elif len(array) == 1:
        yield from _pieces(array[0], stored)
    else:
        rows = max(1, _PIECE * len(array) // array.nbytes)
        for row in range(0, len(array), rows):
            yield from _pieces(array[row : row + rows], stored)
