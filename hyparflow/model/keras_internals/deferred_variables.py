"""Variables without memory: they have a handle and a shape, and no value until they are read.

The value of such a variable has a source: its initializer, or another rank. TensorFlow's variable
inside it is meanwhile of a class of its own, `_Absent`, whose handle brings the value in when
anyone asks for it; after that it is an ordinary variable again, so nothing is slower then. All that
reads or writes a variable asks for the handle: Keras, NumPy, operations, traces, gradient tapes.

What was compiled before a variable gave its memory back holds the handle already, and does not ask
again. It finds a value of nine empty dimensions, which no operation takes: an error, and never
numbers that are wrong.

Reasons for private parts: Keras has no hook for how a variable gets its first value
(`_initialize_with_initializer`), and `variable.value` is cast under mixed precision (`_value` is
TensorFlow's variable). TensorFlow reads `_handle` in C++ too, so `handle` is not enough.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from hyparflow.model.keras_internals.initial_values import Initial, is_pure
from hyparflow.model.keras_internals.patched import patched
from hyparflow.model.keras_internals.shared_kernel_name import sharing_kernel_names

__all__ = [
    "Ordinary",
    "bring_in",
    "deferring",
    "handle_of",
    "is_absent",
    "is_deferring",
    "overwrite",
    "present",
    "raw_variable",
    "release",
    "source_of",
    "standing_in",
    "was_read",
]

_NOTHING = [0] * 9  # dimensions of the value of a variable without memory
_DRAWN = "_hyparflow_drawn"  # attribute of a variable that was deferred, until it is assigned
_LOCK = threading.RLock()
Ordinary: Any = type(tf.Variable(0.0))


class _Absent(Ordinary):  # type: ignore[misc]
    """A variable of TensorFlow's without memory."""

    @property
    def _handle(self) -> Any:
        if not _only_handles():
            _wake(self)
        return vars(self)["_handle"]

    @_handle.setter
    def _handle(self, handle: Any) -> None:
        self.__dict__["_handle"] = handle

    @property
    def device(self) -> str:
        """Where the value will be."""
        return str(vars(self)["_handle"].device)

    def _distributed_container(self) -> Any:
        """The variable itself: optimizers of Keras 3.15 ask its handle for this otherwise."""
        return self

    def assign(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """As of other variables; the value that is overwritten is not brought in."""
        if not tf.executing_eagerly():  # a trace, which may or may not run
            return super().assign(value, *args, **kwargs)
        with _LOCK:
            _write(self, _untouched(self.shape, self.dtype))
            source = _become_ordinary(self)
            self.__dict__.pop(_DRAWN, None)
        try:
            return self.assign(value, *args, **kwargs)
        except BaseException:
            release(self, source)
            raise


class _Untouched:
    """What TensorFlow makes a variable with before its memory is given back."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def __call__(self) -> Any:
        return _untouched(self._variable.shape, self._variable.dtype)


@contextlib.contextmanager
def deferring() -> Iterator[list[tuple[Any, Initial]]]:
    """While open, new variables of Keras have no memory if their initializer can draw it later.

    Yields a list, to which each of them is added, TensorFlow's, with its first value.
    """
    made: list[tuple[Any, Initial]] = []
    kind: Any = keras.Variable
    with_initializer = kind._initialize_with_initializer

    def later(self: Any, initializer: Any) -> None:
        if tf.inside_function() or tf.distribute.has_strategy() or not is_pure(initializer):
            with_initializer(self, initializer)
            return
        initial = Initial(initializer, self._shape, self._dtype)
        self._initialize(_Untouched(self))
        if type(self._value) is Ordinary:
            release(self._value, initial)
            vars(self._value)[_DRAWN] = True
            made.append((self._value, initial))
        else:  # a creator of the user's made another kind
            self._value.assign(initial())

    with sharing_kernel_names(), patched(kind, _initialize_with_initializer=later):
        yield made


def is_deferring(initial_value: Any) -> bool:
    """For creators of variables: whether this is what a variable without memory is made with."""
    return isinstance(initial_value, _Untouched)


def _only_handles() -> bool:
    """Whether what runs is a trace that reads no value; Keras has no public way to ask."""
    return not tf.executing_eagerly() and in_symbolic_scope()


def raw_variable(variable: Any) -> Any:
    """TensorFlow's variable in a variable of Keras's, or the variable itself."""
    return variable._value if isinstance(variable, keras.Variable) else variable


def handle_of(variable: Any) -> Any:
    """The handle that a trace captures; the value is not brought in."""
    return vars(raw_variable(variable))["_handle"]


def is_absent(variable: Any) -> bool:
    """Whether a variable, of Keras or TensorFlow, has no memory."""
    return isinstance(raw_variable(variable), _Absent)


def was_read(variable: Any) -> bool:
    """Whether a deferred variable has its memory because something has read it."""
    return _DRAWN in vars(raw_variable(variable)) and not is_absent(variable)


def source_of(variable: Any) -> Callable[[], Any] | None:
    """What brings in the value of a variable without memory; None if it has memory."""
    return vars(raw_variable(variable)).get("_source") if is_absent(variable) else None


def release(variable: Any, source: Callable[[], Any]) -> bool:
    """Give back the memory of a variable; `source` returns its value when it is asked for.

    Returns:
        Whether that could be done.
    """
    raw = raw_variable(variable)
    with _LOCK:
        if type(raw) not in (Ordinary, _Absent):
            return False
        if type(raw) is Ordinary:
            _write(raw, tf.zeros(_NOTHING, raw.dtype))
        vars(raw)["_source"] = source
        raw.__class__ = _Absent
    return True


def overwrite(variable: Any, value: np.ndarray) -> None:
    """Write a value of the variable's own shape and type, between steps.

    Keras's `assign` takes several times as long, which counts where there are many variables.

    Args:
        variable: of Keras or TensorFlow.
        value: nothing else may write to it: the variable may take its memory.
    """
    raw = raw_variable(variable)
    if type(raw) not in (Ordinary, _Absent) or not tf.executing_eagerly():
        variable.assign(value)
        return
    with _LOCK:
        tf.raw_ops.AssignVariableOp(
            resource=vars(raw)["_handle"], value=value, validate_shape=False
        )
        if type(raw) is _Absent:
            _become_ordinary(raw)
            raw.__dict__.pop(_DRAWN, None)


def bring_in(variable: Any) -> None:
    """Let a variable have its memory, if it has none."""
    raw = raw_variable(variable)
    if isinstance(raw, _Absent):
        _wake(raw)


@contextlib.contextmanager
def standing_in() -> Iterator[list[Any]]:
    """While open, who asks for the handle of a variable without memory does not bring it in.

    Traces may run, and values may be written to a file, in which a tensor without elements stands
    for each variable: the n-th of the list, counted from 0, has the last dimension n.

    Yields the list of TensorFlow's variables that were asked for.
    """
    asked: list[Any] = []
    known: set[int] = set()

    def handle(raw: Any) -> Any:
        if id(raw) not in known:
            known.add(id(raw))
            stand_in = [*_NOTHING, len(asked)]
            asked.append(raw)
            _eagerly(lambda: _write(raw, tf.zeros(stand_in, raw.dtype)))
        return vars(raw)["_handle"]

    setter = _Absent._handle.fset  # type: ignore[attr-defined]
    with patched(_Absent, _handle=property(handle, setter)):
        yield asked


@contextlib.contextmanager
def present(variables: Iterable[Any]) -> Iterator[None]:
    """While open, these variables have their memory; those that had none give it back."""
    absent = [(v, source) for v in variables if (source := source_of(v)) is not None]
    for variable, _ in absent:
        bring_in(variable)
    try:
        yield
    finally:
        for variable, source in absent:
            release(variable, source)


def _eagerly(work: Callable[[], None]) -> None:
    """Do something outside of all graphs."""
    with tf.init_scope():
        if tf.executing_eagerly():
            return work()
    # A graph that is no function's, as `export` fills one: in a new thread none is open.
    with ThreadPoolExecutor(1) as other:
        return other.submit(work).result()


def _wake(raw: Any) -> None:
    _eagerly(lambda: _give_value(raw))


def _give_value(raw: Any) -> None:
    with _LOCK:
        source = vars(raw).get("_source")
        if source is None:  # another thread was faster
            return
        handle = vars(raw)["_handle"]
        with tf.init_scope(), tf.device(handle.device):
            value = tf.convert_to_tensor(source(), raw.dtype)
        if isinstance(raw, _Absent):  # the source may have assigned it
            _write(raw, value)
            _become_ordinary(raw)


def _become_ordinary(raw: Any) -> Any:
    """Make it an ordinary variable; returns its source."""
    source = vars(raw).pop("_source")
    raw.__class__ = Ordinary
    return source


def _write(raw: Any, value: Any) -> None:
    """Write a value of any shape."""
    with tf.init_scope(), tf.device(vars(raw)["_handle"].device):
        tf.raw_ops.AssignVariableOp(
            resource=vars(raw)["_handle"], value=value, validate_shape=False
        )


def _untouched(shape: Any, dtype: Any) -> Any:
    """A tensor of any content; the machine gives memory where it is touched."""
    return tf.raw_ops.Empty(shape=list(shape), dtype=dtype)
