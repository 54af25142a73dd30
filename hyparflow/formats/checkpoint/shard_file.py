"""Files of tensors in the format of safetensors, which other programs read: a header, then bytes.

The library of that name copies all tensors before it writes, and knows no checksums. It can read
what is written here.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

__all__ = ["ShardFile", "TYPES", "checksum_of", "dtype_named", "write_tensors"]

# NumPy's name of a type -> that of safetensors, and bytes of a number.
TYPES: dict[str, tuple[str, int]] = {
    "bool": ("BOOL", 1),
    **{f"int{8 * size}": (f"I{8 * size}", size) for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}": (f"U{8 * size}", size) for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": (f"F{8 * size}", size) for size in (2, 4, 8)},
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
}
_NAMES = {short: name for name, (short, _) in TYPES.items()}
_LENGTH = 8  # bytes of the header's size
_LONGEST = 1 << 28  # bytes of a header
_PIECE = 1 << 26  # bytes that are written at a time


def checksum_of(data: Any) -> str:
    """The CRC-32 of an array's bytes, as eight hexadecimal digits."""
    return f"{zlib.crc32(_bytes_of(data)):08x}"


def dtype_named(name: str) -> np.dtype:
    """NumPy's type of this name; it gets some from the package ml_dtypes."""
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def write_tensors(path: Path, tensors: Sequence[tuple[str, np.ndarray]]) -> dict[str, str]:
    """Write tensors, and sync them to the disk.

    Args:
        path: of the new file.
        tensors: names and values.

    Returns:
        The checksum of each tensor, by name.

    Raises:
        ValueError: if a tensor has a type that the format does not know.
        OSError: if the file cannot be written.
    """
    header, place = {}, 0
    for name, value in tensors:
        if value.dtype.name not in TYPES:
            raise ValueError(
                "A checkpoint takes numbers and booleans. Received: a tensor of type "
                f"{value.dtype} named '{name}'. Leave the variable out of the model."
            )
        kind = TYPES[value.dtype.name][0]
        header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [place, place + value.nbytes],
        }
        place += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH)  # numbers begin at multiples of eight
    checksums = {}
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for name, value in tensors:
            data = _bytes_of(value)
            for start in range(0, len(data), _PIECE):
                file.write(data[start : start + _PIECE])
            checksums[name] = checksum_of(value)
        file.flush()
        os.fsync(file.fileno())
    return checksums


@dataclass(frozen=True)
class _Place:
    dtype: str
    shape: tuple[int, ...]
    start: int


class ShardFile:
    """A file of tensors, of which only what is asked for is read.

    Args:
        path: of the file.

    Raises:
        ValueError: if it is no such file, or not whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(_LENGTH), "little")
                if size < _LENGTH or length > min(_LONGEST, size - _LENGTH):
                    self._refuse("its header is cut off")
                header = self._parsed(file.read(length))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            self._refuse(error.strerror or str(error))
        first = _LENGTH + length
        self._places = {
            name: self._place(name, entry, first, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }

    def tensor(self, name: str, dtype: str, shape: Sequence[int]) -> np.ndarray:
        """A tensor, as it lies in the file: its bytes are read when they are used.

        Raises:
            ValueError: if there is none of this name, type and shape.
        """
        place = self._places.get(name)
        if place is None:
            self._refuse(f"it has no tensor '{name}'")
        if (place.dtype, place.shape) != (dtype, tuple(shape)):
            self._refuse(
                f"its tensor '{name}' is {place.dtype}{list(place.shape)}, where the index has "
                f"{dtype}{list(shape)}"
            )
        count = math.prod(shape)
        flat = np.frombuffer(self._map, dtype_named(dtype), count, place.start)
        return flat.reshape(tuple(shape))

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            self._refuse("its header is no JSON")
        if not isinstance(header, dict):
            self._refuse("its header is no JSON object")
        return header

    def _place(self, name: str, entry: Any, first: int, size: int) -> _Place:
        try:
            dtype, shape = _NAMES[entry["dtype"]], tuple(entry["shape"])
            start, stop = entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
        except (KeyError, TypeError, ValueError):
            self._refuse(f"its header is wrong at '{name}'")
        if not whole or stop - start != math.prod(shape) * TYPES[dtype][1]:
            self._refuse(f"its header is wrong at '{name}'")
        if first + stop > size:
            self._refuse(f"it is cut off: it has {size} bytes, and '{name}' ends at {first + stop}")
        return _Place(dtype, shape, first + start)

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(
            "A checkpoint's tensors must be in whole files of safetensors. Received: "
            f"{self._path} ({reason}). Use another checkpoint of the folder."
        )


def _bytes_of(value: Any) -> memoryview:
    flat: Any = np.ascontiguousarray(value).reshape(-1)
    return memoryview(flat.view(np.uint8)) if flat.size else memoryview(b"")
