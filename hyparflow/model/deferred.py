"""Models whose weights take memory only where they are used: `hyparflow.deferred`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, MutableMapping
from types import ModuleType
from typing import Any

__all__ = ["defer_from_start", "deferred"]

_ASKED = "HYPARFLOW_DEFER"
_open = contextlib.ExitStack()  # what stays open for the life of the process


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While open, variables that Keras makes have a shape and an initializer, but no memory.

    What reads a variable gives it its memory, with the value that plain Keras gives it, bit for
    bit: `summary` and `count_params` read none, ``model.get_weights()`` reads all. So a model that
    is built on every rank, and cut into partitions, takes memory on each rank only for the weights
    and the optimizer's state of its own partition.

    The environment variable HYPARFLOW_DEFER=1 does the same for the whole script.

    Raises:
        ValueError: If Keras runs with another backend than TensorFlow.

    Example::

        with hf.deferred():
            model = build_model()
        model.compile("adam", "mse")
        hf.fit(model, x, y, strategy="model")
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`hyparflow.deferred()` defers variables of Keras's TensorFlow backend. "
            f"Received: the {keras.backend.backend()} backend. Set KERAS_BACKEND=tensorflow."
        )
    from hyparflow.model.keras_internals.deferred_variables import deferring
    from hyparflow.model.keras_internals.stored_values import loading_later

    with deferring(), loading_later():
        yield


def defer_from_start(environ: MutableMapping[str, str] = os.environ) -> None:
    """With HYPARFLOW_DEFER=1, open `deferred` for good, as soon as Keras is imported.

    Raises:
        ValueError: if the variable is neither 0 nor 1.
    """
    asked = environ.get(_ASKED, "") or "0"
    if asked not in ("0", "1"):
        raise ValueError(
            f"{_ASKED} must be 1, to make Keras's variables without memory, or 0. "
            f"Received: {_ASKED}={asked}"
        )
    if asked == "0":
        return
    if "keras" in sys.modules:
        _open.enter_context(deferred())
    else:
        sys.meta_path.insert(0, _AfterKeras())


class _AfterKeras:
    """Finds Keras as Python does, and opens `deferred` when it has been imported."""

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
                _open.enter_context(deferred())

            spec.loader.exec_module = load_and_open  # type: ignore[method-assign]
        return spec
