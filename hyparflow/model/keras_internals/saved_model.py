"""Exports a model whose weights are in no memory as a SavedModel, a few weights at a time.

TensorFlow reads all variables in one operation when it writes them. So it gets stand-ins for those
without memory. Afterwards the file of variables is written anew, in pieces, with their values.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.deferred_variables import is_absent, present, standing_in

__all__ = ["exporting_by_disk"]

_FORMAT = "tf_saved_model"
_PIECE = 1 << 24  # bytes of small variables that are in memory together


def exporting_by_disk(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keras's `export` of a model, which leaves weights without memory where they are.

    Args:
        original: the bound method.
    """

    @functools.wraps(original)
    def export(filepath: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(filepath, *args, **kwargs)
        given.apply_defaults()
        variables = getattr(getattr(original, "__self__", None), "variables", ())
        has_absent = any(map(is_absent, variables))
        if given.arguments.get("format") != _FORMAT or not has_absent:  # a user's own has no format
            return original(filepath, *args, **kwargs)
        with standing_in() as asked:
            result = original(filepath, *args, **kwargs)
        _fill(Path(os.fspath(filepath)), asked)
        return result

    return export


def _fill(folder: Path, variables: list[Any]) -> None:
    """Write the file of variables anew, with values in place of stand-ins.

    Args:
        folder: of the SavedModel.
        variables: the n-th has a stand-in whose last dimension is n.
    """
    prefix = folder / "variables" / "variables"
    reader = tf.train.load_checkpoint(str(prefix))
    shapes: dict[str, list[int]] = reader.get_variable_to_shape_map()
    types = reader.get_variable_to_dtype_map()
    absent = {key: variables[s[-1]] for key, s in shapes.items() if len(s) > 8 and not any(s[:-1])}
    others = [key for key in shapes if key not in absent]
    values = tf.raw_ops.RestoreV2(
        prefix=str(prefix),
        tensor_names=others,
        shape_and_slices=[""] * len(others),
        dtypes=[types[key] for key in others],
    )
    parts = [_write(f"{prefix}-part-0", others, values)]
    for keys in _pieces(absent):
        held = [absent[key] for key in keys]
        with present(held):
            name = f"{prefix}-part-{len(parts)}"
            parts.append(_write(name, keys, [tf.convert_to_tensor(v) for v in held]))
    for file in prefix.parent.glob("variables.*"):
        file.unlink()
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(prefix), delete_old_dirs=False
    )
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # it has a checksum of the other file


def _pieces(absent: dict[str, Any]) -> Iterator[list[str]]:
    """The variables' keys in pieces of so many bytes; a large one is alone."""
    piece: list[str] = []
    size = 0
    for key, variable in absent.items():
        if piece and size + _bytes_of(variable) > _PIECE:
            yield piece
            piece, size = [], 0
        piece.append(key)
        size += _bytes_of(variable)
    if piece:
        yield piece


def _bytes_of(raw: Any) -> int:
    return math.prod(raw.shape) * int(raw.dtype.size)


def _write(prefix: str, names: list[str], tensors: list[Any]) -> str:
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    return prefix
