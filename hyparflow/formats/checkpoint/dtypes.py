"""The types of elements that a shard file can hold, as NumPy, Keras and safetensors name them."""

from __future__ import annotations

import numpy as np

__all__ = ["NAMES", "dtype_named", "name_of", "stored_name"]

# NumPy's name, which is Keras's as well -> safetensors's. All are little-endian in files.
_STORED = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # NumPy knows them by ml_dtypes alone
NAMES = tuple(_STORED)


def dtype_named(name: str) -> np.dtype:
    """The little-endian NumPy type of a name.

    Raises:
        ValueError: if files cannot hold it.
    """
    if name not in _STORED:
        raise ValueError(_refusal(name))
    if name in _EXTENDED:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name).newbyteorder("<")


def name_of(dtype: np.dtype) -> str:
    """The name of a NumPy type, whatever its byte order.

    Raises:
        ValueError: if files cannot hold it.
    """
    if dtype.name not in _STORED:
        raise ValueError(_refusal(dtype.name))
    return dtype.name


def stored_name(name: str) -> str:
    """The name by which safetensors knows the type that NumPy calls `name`."""
    return _STORED[name]


def _refusal(name: str) -> str:
    return (
        f"A checkpoint holds tensors of {', '.join(NAMES)}. Received: {name}. "
        "Cast it to one of these, or keep it in the JSON state."
    )
