"""Checks of the arguments that users pass: names that a function has, values that Keras can use.

Keras reports such mistakes late, with an error of Python or TensorFlow: "'float' object cannot be
interpreted as an integer". Here the error names the argument, before any message is sent.
Everything that Keras accepts is accepted, except a number of steps that is NaN.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from hyparflow.comm import abort
from hyparflow.formats.text import shortened

__all__ = ["bound", "check_values", "named", "unknown"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_LARGEST = 2**31 - 1  # rows of a batch: what MPI counts to
_COUNTS = ("epochs", "initial_epoch", "steps_per_epoch", "steps")
_SINGLE = (
    *("shuffle", "return_dict", "verbose", "batch_size", "validation_split", "validation_steps"),
    *("validation_batch_size", *_COUNTS),
)


def named(
    function: Callable[_P, _T], before: Callable[[], object] = lambda: None
) -> Callable[_P, _T]:
    """Wrap a public function: a call with wrong argument names raises an error with the right ones.

    Args:
        function: the function to wrap.
        before: called before the error is raised.

    Returns:
        The function that checks its arguments, and then calls `function`.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            bound(function, function.__name__, args, kwargs)
        except TypeError as error:
            before()
            raise abort.mark_collective(error) from None
        return function(*args, **kwargs)

    return call


def bound(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call, by name.

    Args:
        function: the function that is called.
        name: its name, for messages.
        args, kwargs: the arguments of the call.

    Raises:
        TypeError: if the call does not fit the signature of `function`.
    """
    signature = inspect.signature(function)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:
        raise TypeError(_mistake(name, signature, args, kwargs)) from None


def _mistake(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """The error message for a call that does not fit the signature."""
    parameters = signature.parameters.values()
    any_name = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    taken = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names = [p.name for p in taken]
    unnamed = [p.name for p in taken if p.kind is not p.KEYWORD_ONLY]
    for key, value in kwargs.items():
        if key not in names and not any_name:
            return unknown(name, key, value, names)
    if len(args) > len(unnamed):
        return (
            f"`{name}` takes {len(unnamed)} arguments without a name. Received: {len(args)}. "
            f"Name the others, as in {name}(..., {names[-1]}=...)"
        )
    if twice := [key for key in unnamed[: len(args)] if key in kwargs]:
        return (
            f"`{name}` takes each argument once. Received: `{twice[0]}` without its name and as "
            f"{twice[0]}={shortened(kwargs[twice[0]])}. Leave one of them out."
        )
    given = {*unnamed[: len(args)], *kwargs}
    lacking = [p.name for p in taken if p.default is p.empty and p.name not in given]
    return f"`{name}` needs `{lacking[0]}`. Received: no {lacking[0]}"


def unknown(name: str, key: str, value: Any, names: Iterable[str]) -> str:
    """The error message for an argument `key` that is not in `names`; it suggests a close one."""
    close = difflib.get_close_matches(key, names, 1)
    fix = f"Did you mean `{close[0]}`?" if close else f"It takes {', '.join(names)}."
    return f"`{name}` has no argument `{key}`. Received: {key}={shortened(value)}. {fix}"


def check_values(arguments: Mapping[str, Any], is_stream: bool) -> dict[str, Any]:
    """Refuse values that Keras's `fit`, `evaluate` and `predict` cannot use.

    Args:
        arguments: the arguments of the call, by name.
        is_stream: whether the data are a stream, which has batches of its own.

    Returns:
        The arguments, with integers of NumPy and others converted to Python's.

    Raises:
        ValueError: naming the argument.
    """
    for name in _SINGLE:
        _check_single(name, arguments.get(name))
    names = [*_COUNTS] if is_stream else [*_COUNTS, "batch_size"]
    splits = arguments.get("validation_split") and arguments.get("validation_data") is None
    if splits:
        _check_split(arguments["validation_split"])
    if splits or arguments.get("validation_data") is not None:
        names += ["validation_steps", "validation_batch_size"]
        _check_frequency(arguments.get("validation_freq", 1))
    _check_callbacks(arguments.get("callbacks"))
    _check_class_weight(arguments.get("class_weight"))
    # Without a batch size, Keras derives it from the number of steps.
    parted = not is_stream and not arguments.get("batch_size")
    found = {}
    for name in names:
        value = arguments.get(name)
        if value or (name in ("epochs", "initial_epoch") and name in arguments):
            is_size = name.endswith("batch_size") or (parted and name.startswith("steps"))
            found[name] = _integer_of(name, value, is_size)
    return dict(arguments) | found  # empty values and 0 stay: Keras uses its default


def _check_single(name: str, value: Any) -> None:
    """Refuse values without a truth value, such as arrays."""
    try:
        bool(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` must be a single value. Received: {name}={shortened(value)}"
        ) from None


def _integer_of(name: str, value: Any, is_size: bool) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    received = f"{name}={shortened(value)}"
    if is_size and not 0 < (count or 0) <= _LARGEST:
        raise ValueError(
            f"`{name}` must be a positive integer, {_LARGEST} at most. Received: {received}"
        )
    if count is None:
        raise ValueError(f"`{name}` must be an integer. Received: {received}")
    return count


def _check_split(value: Any) -> None:
    """Like Keras, accept whatever `1.0 - value` accepts."""
    try:
        math.floor(1.0 - value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "`validation_split` must be a number from 0 to 1, the share of the rows to validate "
            f"with. Received: validation_split={shortened(value)}"
        ) from None


def _check_class_weight(weight: Any) -> None:
    try:
        is_right = weight is None or hasattr(weight, "get")
        for value in () if weight is None else dict(weight).values():
            float("nan" if value is None else value)  # as NumPy does for Keras
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ValueError(
            "`class_weight` must be a dict from classes to numbers, their weights. "
            f"Received: class_weight={shortened(weight)}"
        )


def _check_frequency(value: Any) -> None:
    if not isinstance(value, int | list) or (isinstance(value, int) and value == 0):
        raise ValueError(
            "`validation_freq` must be an integer other than 0, or a list of epochs from 1 on. "
            f"Received: validation_freq={shortened(value)}"
        )


def _check_callbacks(callbacks: Any) -> None:
    """Like Keras, accept any object with the methods of a callback."""
    from keras import callbacks as keras_callbacks
    from keras import tree

    if isinstance(callbacks, keras_callbacks.CallbackList):
        return
    _check_single("callbacks", callbacks)
    for callback in tree.flatten(callbacks) if callbacks else ():
        if inspect.isclass(callback) or not hasattr(callback, "set_model"):
            hint = " Make one: ModelCheckpoint(...)." if inspect.isclass(callback) else ""
            raise ValueError(
                "`callbacks` must be a keras.callbacks.Callback or a list of them. "
                f"Received: {shortened(callback)} of type {type(callback).__name__} among "
                f"callbacks={shortened(callbacks)}.{hint}"
            )
