"""A TensorFlow that has changed inside, and a hyparflow that must not reach into it."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from hyparflow.engine.compiled import (
    choice,
    direct_call,
    hidden_variable,
    seed,
    split_function,
    split_pair,
    subgraph,
    surgery,
    tensor_memory,
)

SURGERY = (
    direct_call,
    hidden_variable,
    seed,
    split_function,
    split_pair,
    subgraph,
    surgery,
    tensor_memory,
)


def choose_anew(patch: pytest.MonkeyPatch) -> None:
    """As in a process that has compiled nothing yet."""
    patch.setattr(choice, "_choice", choice.Choice())


def refuse_surgery(patch: pytest.MonkeyPatch) -> None:
    """Let all that the surgery is begun by fail: its functions, and the making of its objects."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the road without surgery has come to surgery")

    for module in SURGERY:
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                patch.setattr(thing, "__init__", refused)
            else:
                for user in (m for m in SURGERY if getattr(m, name, None) is thing):
                    patch.setattr(user, name, refused)


class TakenAway:
    """An attribute that only TensorFlow still finds."""

    def __init__(self, owner: Any, name: str) -> None:
        self._name = name
        self._before = vars(owner).get(name)

    def __get__(self, one: Any, owner: Any = None) -> Any:
        if is_asked_by_hyparflow():
            raise AttributeError(f"no attribute '{self._name}'")
        if self._before is not None:
            return self._before.__get__(one, owner)
        return getattr(one, f"taken_{self._name}")

    def __set__(self, one: Any, value: Any) -> None:
        setattr(one, f"taken_{self._name}", value)


def is_asked_by_hyparflow() -> bool:
    """Whether the caller of the caller is a file of hyparflow's."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith("hyparflow.")


def without(module: str, owner: str, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Takes an attribute of a class of TensorFlow's away from hyparflow."""

    def take(patch: pytest.MonkeyPatch) -> None:
        found = getattr(sys.modules[f"tensorflow.python.{module}"], owner)
        patch.setattr(found, name, TakenAway(found, name), raising=False)

    return take


def without_seed(patch: pytest.MonkeyPatch) -> None:
    """TensorFlow's context tells the seed no more."""
    context = sys.modules["tensorflow.python.eager.context"]
    before = context.global_seed

    def global_seed() -> Any:
        if is_asked_by_hyparflow():
            raise AttributeError("no attribute 'global_seed'")
        return before()

    patch.setattr(context, "global_seed", global_seed)


def other_seed(patch: pytest.MonkeyPatch) -> None:
    """What it tells is something else."""
    context = sys.modules["tensorflow.python.eager.context"]
    before = context.global_seed
    patch.setattr(context, "global_seed", lambda: 5 if is_asked_by_hyparflow() else before())


def variables_in_one_thread(patch: pytest.MonkeyPatch) -> None:
    """A variable can be made in the main thread only."""
    kind = sys.modules["tensorflow.python.ops.resource_variable_ops"].ResourceVariable
    before = kind.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("not in this thread")
        before(self, *args, **kwargs)

    patch.setattr(kind, "__init__", init)


def copied_arrays(patch: pytest.MonkeyPatch) -> None:
    """The array of a tensor is a copy of it: what is written there is lost, and nothing fails."""
    before = np.asarray
    copies: list[Any] = []  # kept: writing to them must not hurt anyone else

    def asarray(value: Any, *args: Any, **kwargs: Any) -> Any:
        array = before(value, *args, **kwargs)
        if isinstance(value, tf.Tensor) and is_asked_by_hyparflow():
            array = array.copy()
            copies.append(array)
        return array

    patch.setattr(np, "asarray", asarray)


def changed_order(patch: pytest.MonkeyPatch) -> None:
    """A part of a graph gives its results in another order: nothing fails, and all is wrong."""
    before = tf.graph_util.import_graph_def

    def import_graph_def(*args: Any, **kwargs: Any) -> Any:
        return (before(*args, **kwargs) or [])[::-1]

    patch.setattr(tf.graph_util, "import_graph_def", import_graph_def)


_CONCRETE = "eager.polymorphic_function.concrete_function"
_ATOMIC = "eager.polymorphic_function.atomic_function"
_GRAPH = "framework.func_graph"

# What is broken -> what breaks it, and what the self-test calls it.
BREAKS: Mapping[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "captures": (without(_GRAPH, "FuncGraph", "captures"), "a traced function cut in parts"),
    "capture": (without(_GRAPH, "FuncGraph", "capture"), "a traced function cut in parts"),
    "effects": (without(_GRAPH, "FuncGraph", "control_outputs"), "a traced function cut in parts"),
    "order": (changed_order, "a traced function cut in parts"),
    "inference_fn": (
        without(_CONCRETE, "ConcreteFunction", "inference_fn"),
        "a compiled function called directly",
    ),
    "call_flat": (
        without(_ATOMIC, "AtomicFunction", "call_flat"),
        "a traced function cut in parts",
    ),
    "call_preflattened": (
        without(_ATOMIC, "AtomicFunction", "call_preflattened"),
        "a compiled function called directly",
    ),
    "threads": (variables_in_one_thread, "a variable made unseen by what is traced"),
    "memory": (copied_arrays, "the memory of a tensor, written to"),
    "seed": (without_seed, "TensorFlow's global seed"),
    "other seed": (other_seed, "TensorFlow's global seed"),
}
