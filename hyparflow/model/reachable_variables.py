"""Finds the objects that the user's functions and objects lead to, in the same order on all ranks.

A loss may read a variable or a number of the user's own, which is in no list of Keras's. It is
found from the loss, through closures, globals, arguments and attributes: the same way on every
rank, because all run the same script.
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

__all__ = ["VARIABLES", "code_names", "is_users_own", "reachable", "reachable_variables"]

_DEEPEST = 12
VARIABLES = (keras.Variable, tf.Variable)
_LIBRARIES = frozenset(("tensorflow", "numpy", "keras_hub", "hyparflow", *sys.stdlib_module_names))
_NOT_USERS = _LIBRARIES | {"keras"}


def reachable_variables(roots: Iterable[Any]) -> list[Any]:
    """The variables, Keras's and TensorFlow's, that `roots` lead to."""
    return [value for _, value in reachable(roots) if isinstance(value, VARIABLES)]


def reachable(roots: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """All objects that `roots` lead to, each once, with the path to it in words."""
    seen: dict[int, Any] = {}
    stack = [(f"({number})", root, 0) for number, root in reversed(list(enumerate(roots)))]
    while stack:
        way, value, depth = stack.pop()
        if id(value) in seen or depth > _DEEPEST:
            continue
        seen[id(value)] = value  # held, so that no other object gets its id
        yield way, value
        if not isinstance(value, VARIABLES):
            others = [(way + step, other, depth + 1) for step, other in _leads_to(value)]
            stack += reversed(others)


def is_users_own(value: Any) -> bool:
    """Whether this function, class or module is neither Keras's nor of a library."""
    return _package(value) not in _NOT_USERS


def _leads_to(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", other) for key, other in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", other) for number, other in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif inspect.ismethod(value):
        yield from (("", value.__self__), (".__func__", value.__func__))
    elif inspect.isfunction(value):
        yield from _of_function(value)
    elif isinstance(value, tf.random.Generator):
        yield ".state", value.state
    elif isinstance(value, keras.Layer):
        yield from ((f".variables[{n}]", other) for n, other in enumerate(value.variables))
        layers = getattr(value, "layers", ())
        yield from ((f".layers[{n}]", other) for n, other in enumerate(layers))
        yield from _own_parts(value)
    elif _package(type(value)) not in _LIBRARIES and hasattr(value, "__dict__"):
        yield from _own_parts(value)


def _own_parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes and methods of an object, without those of Keras's layers."""
    if isinstance(value, types.ModuleType | type):
        return
    is_layer = isinstance(value, keras.Layer)
    if not is_layer or is_users_own(type(value)):
        yield from (
            (f".{name}", part)
            for name, part in vars(value).items()
            if not (is_layer and name.startswith("_"))
        )
    for kind in type(value).__mro__:
        if is_users_own(kind):
            yield from (
                (f".{name}()", part)
                for name, part in vars(kind).items()
                if inspect.isfunction(part)
            )


def _of_function(function: Any) -> Iterator[tuple[str, Any]]:
    """The values that a function reads: closure, defaults, and globals that it names."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    for name, cell in cells:
        try:
            yield f" {name}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from ((f" default {n}", part) for n, part in enumerate(function.__defaults__ or ()))
    yield from ((f" {name}=", part) for name, part in (function.__kwdefaults__ or {}).items())
    if not is_users_own(function):
        return
    names = list(dict.fromkeys(code_names(function.__code__)))
    for name in names:
        part = function.__globals__.get(name)
        if isinstance(part, types.ModuleType):
            if is_users_own(part):
                inners = (inner for inner in names if inner in vars(part))
                yield from ((f" {name}.{inner}", vars(part)[inner]) for inner in inners)
        else:
            yield f" {name}", part


def code_names(code: types.CodeType) -> Iterator[str]:
    """The names of attributes and globals in `code`."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)


def _package(value: Any) -> str:
    name = "__name__" if isinstance(value, types.ModuleType) else "__module__"
    return str(getattr(value, name, None) or "").partition(".")[0]
