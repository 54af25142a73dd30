"""How Keras makes variables in this process, from the import of hyparflow on."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from hyparflow.comm import launcher
from hyparflow.model.deferred import deferred

__all__ = ["choose_variables"]

_DEFER = "HYPARFLOW_DEFER"
_Scope = Callable[[], contextlib.AbstractContextManager[None]]
_open = contextlib.ExitStack()  # what stays open for the life of the process


def choose_variables(environ: Mapping[str, str] = os.environ) -> None:
    """Choose how Keras makes variables, as soon as it is imported, for good.

    With HYPARFLOW_DEFER=1 as under `deferred`. On one of several ranks, each of which builds the
    model, with one name inside TensorFlow: a layer of few weights takes a third of the memory then.

    Raises:
        ValueError: if HYPARFLOW_DEFER is neither 0 nor 1.
    """
    asked = environ.get(_DEFER, "") or "0"
    if asked not in ("0", "1"):
        raise ValueError(
            f"{_DEFER} must be 1, to make Keras's variables without memory, or 0. "
            f"Received: {_DEFER}={asked}"
        )
    if asked == "1":
        _open_after_keras(deferred)
    elif launcher.expected_size(environ)[0] > 1:
        _open_after_keras(_sharing_kernel_names)


@contextlib.contextmanager
def _sharing_kernel_names() -> Iterator[None]:
    """As `sharing_kernel_names`, where Keras computes by TensorFlow."""
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    from hyparflow.model.keras_internals.shared_kernel_name import sharing_kernel_names

    with sharing_kernel_names():
        yield


def _open_after_keras(scope: _Scope) -> None:
    if "keras" in sys.modules:
        _open.enter_context(scope())
    else:
        sys.meta_path.insert(0, _AfterKeras(scope))


class _AfterKeras:
    """Finds Keras as Python does, and opens a scope when it has been imported."""

    def __init__(self, scope: _Scope) -> None:
        self._scope = scope

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The place of Keras; None for other modules."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_open(module: ModuleType) -> None:
                load(module)
                _open.enter_context(self._scope())

            spec.loader.exec_module = load_and_open  # type: ignore[method-assign]
        return spec
