"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from hyparflow.formats.text import shortened

__all__ = ["parse_bytes", "size_text"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_UNITS |= _BINARY | {f"{name}B": size for name, size in _BINARY.items()}


def size_text(size: float) -> str:
    """`size` bytes, as people read them."""
    return f"{size / 2**10:.1f} KiB" if 0 < size < 2**20 / 10 else f"{size / 2**20:.1f} MiB"


_LARGEST = 2**62  # bytes


def parse_bytes(text: str | int) -> int:
    """The number of bytes in `text`: ``parse_bytes("8GiB") == 8 * 2**30``.

    Raises:
        ValueError: if it is no size above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d*)?)\s*([A-Za-z]*)\s*", _written(text))
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit is not None else 0
    if not 0 < size <= _LARGEST:
        raise ValueError(
            "A size is a number of bytes above 0, or one with a unit, such as '8GiB' or '500MB'. "
            f"Received: {shortened(text)}"
        )
    return size


def _written(text: object) -> str:
    try:
        return str(text)
    except ValueError:  # an integer of more digits than Python writes
        return ""
