"""Checksums that find bytes which changed on a disk or on the way there.

XXH3 of 64 bits runs at the speed of memory, several times as fast as zlib's CRC-32, so it adds
little to writing; a damaged tensor passes it once in 2**64, and CRC-32 once in 2**32. Neither is a
protection from those who change a file on purpose.
"""

from __future__ import annotations

import re

import xxhash

__all__ = ["Checksum", "checksum_of", "is_checksum"]

_FORM = re.compile(r"xxh3:[0-9a-f]{16}", re.ASCII)
_PIECE = 2**24  # bytes in one call, so that an interrupt need not wait long


class Checksum:
    """The checksum of bytes that come in pieces."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_64()

    def add(self, piece: memoryview | bytes) -> None:
        """Take the next bytes."""
        self._state.update(piece)

    def text(self) -> str:
        """As an index has it, with the name of the method."""
        return f"xxh3:{self._state.hexdigest()}"


def checksum_of(data: memoryview | bytes) -> str:
    """The checksum of a buffer of bytes, as an index has it."""
    whole, result = memoryview(data), Checksum()
    for place in range(0, len(whole), _PIECE):
        result.add(whole[place : place + _PIECE])
    return result.text()


def is_checksum(text: str) -> bool:
    """Whether a text has the form of a checksum that is known here."""
    return _FORM.fullmatch(text) is not None
