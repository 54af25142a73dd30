"""The variables that functions and objects of the user's lead to, in an order that all ranks share.

A loss may read a variable of the user's own, which is in no list of Keras's. It is found from the
loss, through closures, globals, arguments and attributes: the same way on every rank, because all
run the same script.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

__all__ = ["reachable_variables"]

_DEEPEST = 12
_LIBRARIES = frozenset(("tensorflow", "numpy", "keras_hub", "hyparflow", *sys.stdlib_module_names))


def reachable_variables(roots: Iterable[Any]) -> list[Any]:
    """The variables, Keras's and TensorFlow's, that `roots` lead to."""
    found: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    stack = [(root, 0) for root in reversed(list(roots))]
    while stack:
        value, depth = stack.pop()
        if id(value) in seen or depth > _DEEPEST:
            continue
        seen[id(value)] = value  # held, so that no other object gets its id
        if isinstance(value, keras.Variable | tf.Variable):
            found[id(value)] = value
        else:
            stack += [(other, depth + 1) for other in reversed(list(_leads_to(value)))]
    return list(found.values())


def _leads_to(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif inspect.ismethod(value):
        yield from (value.__self__, value.__func__)
    elif inspect.isfunction(value):
        yield from _of_function(value)
    elif isinstance(value, keras.Layer):
        yield from value.variables
        yield from getattr(value, "layers", ())
        yield from _own_parts(value)
    elif _package(type(value)) not in _LIBRARIES and hasattr(value, "__dict__"):
        yield from _own_parts(value)


def _own_parts(value: Any) -> Iterator[Any]:
    """Attributes and methods of an object, as far as they are not of Keras's layers."""
    if isinstance(value, types.ModuleType | type):
        return
    if not isinstance(value, keras.Layer):
        yield from vars(value).values()
    elif _package(type(value)) not in (*_LIBRARIES, "keras"):
        yield from (part for name, part in vars(value).items() if not name.startswith("_"))
    for kind in type(value).__mro__:
        if _package(kind) not in (*_LIBRARIES, "keras"):
            yield from (part for part in vars(kind).values() if inspect.isfunction(part))


def _of_function(function: Any) -> Iterator[Any]:
    """What a function reads: from around it, its defaults, and globals that it names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if _package(function) in (*_LIBRARIES, "keras"):
        return
    names = list(dict.fromkeys(_names(function.__code__)))
    for name in names:
        part = function.__globals__.get(name)
        if isinstance(part, types.ModuleType):
            if part.__name__.partition(".")[0] not in (*_LIBRARIES, "keras"):
                yield from (vars(part)[inner] for inner in names if inner in vars(part))
        else:
            yield part


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "").partition(".")[0]
