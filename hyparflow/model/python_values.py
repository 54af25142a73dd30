"""Python values that a model's calls read; changes of them by a callback reach all ranks.

A layer may read a number that is no variable: an attribute, a global, a name of the function
around it. Callbacks run on the leader only, so their changes are sent with the next command during
which Python reads the values: any command if the model runs eagerly, else the first of its kind,
which is traced. Functions that were traced before keep their values, as in plain Keras.
"""

from __future__ import annotations

import dis
import inspect
import pickle
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from hyparflow.model.comparable import CONTAINERS, LONGEST, SIMPLE, Identity, compared, is_empty
from hyparflow.model.keras_internals.compiled import compile_arguments
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.reachable_variables import code_names, is_users_own, reachable

__all__ = ["Change", "PythonValues", "names_read"]

_NOT_READ = ("__init__", "build", "get_config", "from_config")  # methods that no step calls


def _set_by(*functions: Any) -> list[str]:
    """The attributes that Python functions assign to."""
    codes = [inspect.unwrap(function).__code__ for function in functions]
    found = [one for code in codes for one in dis.get_instructions(code)]
    return [one.argval for one in found if one.opname == "STORE_ATTR"]


# Attributes that Keras sets, in its loops and elsewhere: no callback has changed them.
_KERAS_OWN = frozenset(
    ["history", "optimizer", "test_function", "train_function", "predict_function"]
    + _set_by(keras.Model.fit, keras.Model.evaluate, keras.Model.predict)
)


class Change(NamedTuple):
    """A new value: its place, its name, and its pickled form; None if it was deleted."""

    way: str
    name: Any
    sent: bytes | None


class PythonValues:
    """The Python values that calls of a model read, compared and changed.

    Args:
        model: the user's model.
    """

    def __init__(self, model: Any) -> None:
        roots = [model, *all_layers(model, include_self=False)]
        roots += [part for v in model.weights for part in (v.regularizer, v.constraint) if part]
        if model.compiled:
            roots.append(compile_arguments(model))
        found, hidden = list(reachable(roots)), _of_every_layer()
        self._read = {name for _, value in found for name in names_read(value)}
        self._holders = {held.way: held for pair in found for held in _holders(pair, hidden)}
        self._before: dict[tuple[str, Any], Any] = {}

    def note(self) -> None:
        """From now on, changes count."""
        self._before = self._present()

    def _present(self) -> dict[tuple[str, Any], Any]:
        return {
            (way, name): compared(value)
            for way, holder in self._holders.items()
            for name, value in holder.values()
        }

    def changes(self, required: bool = True) -> list[Change]:
        """The changes since `note`.

        Args:
            required: whether a call reads the changes; else those that cannot be sent are left out.

        Raises:
            ValueError: if a change cannot be sent to other ranks.
        """
        present = self._present()
        if present == self._before:
            return []
        changed = [key for key, value in present.items() if self._before.get(key, key) != value]
        deleted = [key for key in self._before if key not in present]
        found = [self._change(*key, required) for key in changed]
        return [c for c in found if c] + [Change(*key, None) for key in deleted]

    def _change(self, way: str, name: Any, required: bool) -> Change | None:
        holder = self._holders[way]
        value = dict(holder.values())[name]
        try:
            return Change(way, name, _packed(value))
        except Exception as error:  # pickling runs the code of what is pickled
            in_container = isinstance(holder.owner, dict | list | types.FunctionType)
            if not required or (not in_container and name not in self._read):
                return None
            raise ValueError(
                "What a callback changes must be numbers, arrays, text or functions of a module, "
                "which can be sent to the other ranks, where calls read them, too. Received: a new "
                f"value of type {type(value).__name__} for {holder.describe(name)}. Change a "
                "number that the call reads, or a keras.Variable."
            ) from error

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the changes that were made on the leader."""
        for change in changes:
            self._holders[change.way].set(change.name, change.sent)


@dataclass(frozen=True)
class _Holder:
    """An object whose members are values that calls may read.

    Attributes:
        way: the path that leads to it, the same on all ranks.
        owner: the object.
        names: the members that count, or None for all but `hidden` ones.
        hidden: attributes of every layer, which are Keras's.
    """

    way: str
    owner: Any
    names: frozenset[str] | None = None
    hidden: frozenset[str] = frozenset()

    def values(self) -> Iterator[tuple[Any, Any]]:
        owner = self.owner
        if isinstance(owner, list):
            yield from enumerate(owner)
        elif isinstance(owner, types.FunctionType):
            cells = zip(owner.__code__.co_freevars, owner.__closure__ or (), strict=False)
            yield from ((name, c.cell_contents) for name, c in cells if not is_empty(c))
        elif isinstance(owner, dict):
            names = owner if self.names is None else self.names
            yield from ((name, owner[name]) for name in list(names) if name in owner)
        else:
            yield from ((n, v) for n, v in list(vars(owner).items()) if self._counts(n, v))

    def _counts(self, name: str, value: Any) -> bool:
        if self.names is not None:
            return name in self.names
        if name in _KERAS_OWN or name.startswith(("__", "_hyparflow")):
            return False
        if isinstance(self.owner, type):  # without its methods
            return isinstance(value, (*SIMPLE, *CONTAINERS, np.ndarray))
        if isinstance(self.owner, keras.Layer) and name in self.hidden:
            return False
        if callable(value) and str(getattr(value, "__module__", "")).startswith("hyparflow."):
            return False  # it replaces Keras's method while a call runs
        return not name.startswith("_") or is_users_own(type(self.owner))

    def set(self, name: Any, sent: bytes | None) -> None:
        owner = self.owner
        if sent is None:
            if isinstance(owner, dict):
                owner.pop(name, None)
            elif isinstance(owner, list):
                del owner[name:]
            elif not isinstance(owner, types.FunctionType) and name in vars(owner):
                delattr(owner, name)
            return
        value = _unpacked(sent)
        present = dict(self.values()).get(name)
        kinds = [kind for kind in (list, dict, set) if isinstance(value, kind)]
        if kinds and isinstance(present, kinds[0]):
            _refill(present, value)  # other objects may refer to it, too
        elif isinstance(owner, types.FunctionType):
            cells = dict(zip(owner.__code__.co_freevars, owner.__closure__ or (), strict=False))
            cells[name].cell_contents = value
        elif isinstance(owner, dict):
            owner[name] = value
        elif isinstance(owner, list):
            owner[name:] = [value, *owner[name + 1 :]]
        else:
            setattr(owner, name, value)

    def describe(self, name: Any) -> str:
        owner = self.owner
        if isinstance(owner, keras.Layer):
            return f"attribute '{name}' of layer '{owner.name}'"
        if isinstance(owner, types.FunctionType):
            return f"'{name}', which '{owner.__qualname__}' reads"
        if isinstance(owner, dict | list):
            return f"member {name!r} of a {type(owner).__name__}"
        kind = owner if isinstance(owner, type) else type(owner)
        return f"attribute '{name}' of '{kind.__qualname__}'"


def _holders(root: tuple[str, Any], hidden: frozenset[str]) -> Iterator[_Holder]:
    """The holders of values at one object that the model leads to."""
    way, value = root
    if isinstance(value, keras.optimizers.Optimizer | keras.Variable | tf.Variable | tf.Tensor):
        return  # these are compared elsewhere
    if isinstance(value, types.FunctionType):
        if not is_users_own(value):
            return
        yield _Holder(f"{way} around", value)
        names = frozenset(code_names(value.__code__))
        yield _Holder(f"{way} globals", value.__globals__, names)
        for name in sorted(names & value.__globals__.keys()):
            module = value.__globals__[name]
            if isinstance(module, types.ModuleType) and is_users_own(module):
                yield _Holder(f"{way} {name}", module, names)
    elif isinstance(value, list | dict):
        if len(value) <= LONGEST and isinstance(compared(value), Identity):
            yield _Holder(way, value)
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        yield _Holder(way, value, None, hidden)
        own = [kind for kind in type(value).__mro__ if is_users_own(kind)]
        yield from (_Holder(f"{way} {kind.__qualname__}", kind) for kind in own)


def _of_every_layer() -> frozenset[str]:
    """Names of the attributes that Keras gives to each layer and model."""
    return frozenset(vars(keras.Layer(name="any")) | vars(keras.Model(name="any")))


def names_read(value: Any) -> Iterator[str]:
    """The names in the code of a function that a step may call."""
    if inspect.isfunction(value) and is_users_own(value) and value.__name__ not in _NOT_READ:
        yield from code_names(value.__code__)


def _packed(value: Any) -> bytes:
    """`value` as bytes; raises what pickling raises, or TypeError if a copy would not be equal."""
    if isinstance(value, tf.Tensor):
        value = _Tensor(value.numpy())
    if isinstance(value, keras.Layer | keras.Variable | keras.optimizers.Optimizer | keras.Metric):
        raise TypeError("an object with variables of its own")
    sent = pickle.dumps(_untracked(value))
    pickle.loads(sent)
    return sent


def _untracked(value: Any) -> Any:
    """`value` with Python's own containers in place of those by which Keras tracks variables."""
    if isinstance(value, list):
        return [_untracked(member) for member in value]
    if isinstance(value, dict):
        return {key: _untracked(member) for key, member in value.items()}
    return set(value) if isinstance(value, set) else value


class _Tensor(NamedTuple):
    """A tensor in the form in which it is sent."""

    value: np.ndarray


def _unpacked(sent: bytes) -> Any:
    value = pickle.loads(sent)
    return tf.constant(value.value) if isinstance(value, _Tensor) else value


def _refill(container: Any, value: Any) -> None:
    """Give a list, dict or set the content of `value`."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(value)
