"""The header of a safetensors file: where each tensor of it lies.

Eight bytes with the length of a JSON object, that object, and then the bytes of the tensors, one
after the other, without a gap.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from hyparflow.formats.checkpoint.dtypes import dtype_named, stored_name
from hyparflow.formats.text import shortened

__all__ = ["LENGTH", "ShardPlace", "ShardSpec", "decode_header", "encode_header", "header_end"]

LENGTH = 8  # bytes of the number at the start of the file
_LONGEST = 100_000_000  # bytes of the object; safetensors refuses longer ones


class ShardSpec(NamedTuple):
    """What a shard is, before its numbers are there.

    Attributes:
        key: its name in the file.
        dtype: NumPy's name of its type.
        shape: of the shard.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]


class ShardPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor as the header of a file describes it.

    Attributes:
        dtype: safetensors's name of its type.
        shape: of the tensor.
        data_offsets: where its bytes begin and end, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def encode_header(specs: Sequence[ShardSpec]) -> bytes:
    """The bytes of a file before those of its tensors.

    Raises:
        ValueError: if two tensors have one key, or the header would be too long.
    """
    entries: dict[str, ShardPlace] = {}
    end = 0
    for spec in specs:
        begin, end = end, end + _size(spec)
        entries[spec.key] = ShardPlace(stored_name(spec.dtype), tuple(spec.shape), (begin, end))
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % LENGTH)
    if len(entries) < len(specs) or "__metadata__" in entries or len(text) > _LONGEST:
        raise ValueError(
            "The shards of a file have a key of their own each, other than '__metadata__', and "
            f"their header has at most {_LONGEST} bytes. Received: {len(specs)} shards with "
            f"{len(entries)} keys, and {len(text)} bytes. Rename them, or write several files."
        )
    return len(text).to_bytes(LENGTH, "little") + text


def header_end(path: str | os.PathLike[str], first: bytes, size: int) -> int:
    """Where the header of a file ends, by its first bytes.

    Raises:
        ValueError: if the file is shorter than that.
    """
    end = LENGTH + int.from_bytes(first, "little")
    if len(first) < LENGTH or end > min(size, LENGTH + _LONGEST):
        raise ValueError(_refusal(path, f"{size} bytes, and a header that ends at {end}"))
    return end


def decode_header(path: str | os.PathLike[str], header: bytes, size: int) -> dict[str, ShardPlace]:
    """The tensors of a file, with offsets counted from the start of the file.

    Args:
        path: of the file, for the error.
        header: the bytes up to `header_end`.
        size: of the file in bytes.

    Raises:
        ValueError: if it is no safetensors file, or its tensors do not fill it without a gap.
    """
    base = len(header)
    try:
        found = msgspec.json.decode(header[LENGTH:], type=dict[str, ShardPlace])
    except (ValueError, RecursionError) as error:
        raise ValueError(_refusal(path, str(error))) from error
    place = 0
    for entry in sorted(found.values(), key=lambda entry: entry.data_offsets):
        begin, end = entry.data_offsets
        if begin != place or end < begin:
            raise ValueError(_refusal(path, f"a tensor at byte {begin} to {end}, after {place}"))
        place = end
    if base + place != size:
        raise ValueError(_refusal(path, f"tensors of {place} bytes in {size - base}"))
    return {
        key: ShardPlace(
            entry.dtype, entry.shape, (base + entry.data_offsets[0], base + entry.data_offsets[1])
        )
        for key, entry in found.items()
    }


def _size(spec: ShardSpec) -> int:
    size = dtype_named(spec.dtype).itemsize
    for axis in spec.shape:
        size *= axis
    return size


def _refusal(path: str | os.PathLike[str], reason: str) -> str:
    return (
        "A file of shards is a whole safetensors file. "
        f"Received: {path}, which is damaged or cut off ({shortened(reason)}). "
        "Remove the folder of this step, and go on from an earlier one."
    )
