"""Checks of the data that are given to Keras's methods, and the arguments by name."""

from __future__ import annotations

import inspect
import math
import types
from typing import Any

import keras
import numpy as np

from hyparflow.formats.text import shortened
from hyparflow.model import arguments
from hyparflow.model.keras_internals.compiled import has_overridden
from hyparflow.model.keras_internals.data import is_array_data, is_ragged, unpack
from hyparflow.model.keras_internals.data import is_stream as is_stream_of_keras
from hyparflow.training.call import DEFAULT_BATCH
from hyparflow.training.data.array_source import ArraySource, dense

__all__ = [
    "DATA",
    "array_source",
    "batch_rows",
    "check_data",
    "keras_arguments",
    "reading",
    "validation_parts",
]

DATA = ("x", "y", "sample_weight", "class_weight")  # the arguments of Keras's methods

_REMEDIES: dict[Any, str] = {  # by the type of an argument that is no data
    list: "Make arrays of lists of numbers: np.array(...).",
    type: "Pass an object of that class.",
    types.FunctionType: "Call the function, if it makes such data.",
}


def keras_arguments(
    model: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call of the model's `method`, by name, checked.

    Raises:
        TypeError: if they do not fit its signature.
        ValueError: if Keras cannot use a value.
    """
    function = getattr(model, method)
    parameters = inspect.signature(function).parameters.values()
    if parameters and next(iter(parameters)).kind is inspect.Parameter.VAR_POSITIONAL:
        # A method of the user's, which passes its arguments on to Keras's.
        known = list(inspect.signature(getattr(keras.Model, method)).parameters)[1:]
        args, kwargs = (), dict(zip(known, args, strict=False)) | kwargs
    given = arguments.bound(function, method, args, kwargs)
    rest = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    more = given.pop(rest[0], {}) if rest else {}
    if more and not has_overridden(model, method):
        name = next(iter(more))
        names = [p.name for p in parameters if p.name not in rest]
        raise TypeError(arguments.unknown(method, name, more[name], names))
    if has_overridden(model, method):
        return given | more
    x = given.get("x")
    check_data("x", x)
    is_stream = not is_array_data(x)
    given = arguments.check_values(given, is_stream)
    if not is_stream:
        for name in ("x", "y", "sample_weight"):
            _require_rows(f"`{name}`", given.get(name))
    if (data := given.get("validation_data")) is not None:
        validation_parts(data)
    if is_stream and given.get("validation_split") and given.get("validation_data") is None:
        raise ValueError(
            "`validation_split` parts arrays, and no streams. Received: "
            f"validation_split={given['validation_split']} with x of type {type(x).__name__}. "
            "Pass `validation_data`."
        )
    return given


def check_data(name: str, x: Any) -> None:
    """Check that there are data.

    Args:
        name: the argument that they come from.
        x: the data.

    Raises:
        ValueError: if `x` is neither arrays nor a stream.
    """
    is_data = is_stream_of_keras(x) or is_array_data(x)
    if not is_data or x is None or (isinstance(x, list | tuple) and not x):
        raise ValueError(
            f"`{name}` must be arrays, a tf.data.Dataset, a keras.utils.PyDataset or a "
            f"generator. Received: {name}={shortened(x)} of type {type(x).__name__}. "
            f"{_REMEDIES.get(type(x), 'Pass such data.')}"
        )


def validation_parts(data: Any) -> tuple[Any, Any, Any]:
    """`validation_data` as (x, y, sample weights).

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(data, list | tuple) and not 1 <= len(data) <= 3:
        raise ValueError(
            "`validation_data` must be (x, y), (x, y, sample_weight), or a stream. Received: "
            f"a {type(data).__name__} of {len(data)}"
        )
    parts = unpack(data)
    check_data("validation_data", parts[0])
    return parts


def array_source(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    within: str | None = None,
) -> ArraySource:
    """The arrays of a call.

    Args:
        x, y, sample_weight, class_weight: as for Keras's `fit`.
        within: the argument that holds them, such as `validation_data`; None if they are arguments.

    Raises:
        ValueError: naming an argument that is no array of numbers; Keras's own if lengths differ.
    """
    for name, part in {"x": x, "y": y, "sample_weight": sample_weight}.items():
        _require_numbers(f"`{name}`" if within is None else f"`{name}` of `{within}`", part)
    if within is None and any(leaf.shape[0] == 0 for leaf in keras.tree.flatten(x)):
        raise ValueError("`x` must have at least one row. Received: an array with no rows")
    try:
        return ArraySource(x, y, sample_weight, class_weight)
    except ValueError as error:
        if within is None:
            raise
        raise ValueError(f"In `{within}`: {error}") from error


def _require_rows(name: str, part: Any) -> None:
    """Check one of the arguments that are to be arrays, as Keras does.

    Raises:
        ValueError: if it is something else, or the arrays have no rows.
    """
    if part is None:
        return
    if not is_array_data(part):
        raise ValueError(
            f"{name} must be arrays, as `x` is. Received: {shortened(part)} of type "
            f"{type(part).__name__}. Make arrays of lists: np.array(...)."
        )
    for leaf in keras.tree.flatten(part):
        if leaf is not None and not len(leaf.shape):
            raise ValueError(
                f"{name} must have a row for each sample. Received: {shortened(leaf)}, an array "
                "without dimensions"
            )


def _require_numbers(name: str, part: Any) -> None:
    """Check one of the arguments that are to be arrays which several ranks can be dealt.

    Raises:
        ValueError: if it is something else, or the arrays have no rows or no numbers.
    """
    _require_rows(name, part)
    for leaf in keras.tree.flatten(part):
        if isinstance(leaf, np.ndarray) or hasattr(leaf, "iloc"):
            dense(np.asarray(leaf[:0]), what=name)
        elif leaf is not None and is_ragged(leaf):
            dense(leaf, what=name)


def reading(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of Keras's `method` that say how it reads a stream."""
    given = {name: arguments[name] for name in DATA[1:] if name in arguments}
    return given | {"shuffle": method == "fit" and arguments.get("shuffle", True)}


def batch_rows(source: ArraySource, steps: int | None) -> int:
    """The batch size that Keras chooses where none is given."""
    return math.ceil(source.num_samples / steps) if steps else DEFAULT_BATCH
