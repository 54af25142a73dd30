"""Pickles Keras models together with the user's own classes and functions in them."""

from __future__ import annotations

import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hyparflow.comm.recursion import deep_models

__all__ = ["is_model", "keras_settings", "reduce_model", "use_keras_settings"]

# Modules that every process has.
_LIBRARIES = ("builtins", "hyparflow", "keras", "numpy", "tensorflow")


def keras_settings() -> dict[str, Any]:
    """Keras's settings in this process, as JSON; empty if Keras has not been imported."""
    keras = sys.modules.get("keras")
    if keras is None:
        return {}
    config = keras.config
    return {
        "floatx": config.floatx(),
        "epsilon": config.epsilon(),
        "image_data_format": config.image_data_format(),
        "dtype_policy": config.dtype_policy().name,
    }


def use_keras_settings(settings: Mapping[str, Any]) -> None:
    """Apply the `keras_settings` of another process to this one."""
    if settings:
        import keras

        for name, value in settings.items():
            getattr(keras.config, f"set_{name}")(value)


def is_model(value: Any) -> bool:
    """Whether `value` is a Keras model; imports nothing."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)


def reduce_model(model: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function and arguments by which pickle restores a model.

    Keras's own pickling finds a layer, loss or metric of the user's only if it is registered. Here
    these classes and functions are sent with the model; those of a notebook by value.
    """
    with tempfile.TemporaryDirectory(prefix="hyparflow-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        is_new = model.compiled and not model.optimizer.built
        return _restore, (path.read_bytes(), _custom_objects(model), is_new)


def _restore(content: bytes, custom_objects: dict[str, Any], is_new: bool) -> Any:
    """Restore a model; if its optimizer `is_new`, the optimizer has no saved state yet."""
    import keras

    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="hyparflow-") as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(content)
        if is_new:
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        # Unsafe loading is no worse than the pickle that holds it.
        with deep_models():
            return keras.models.load_model(path, custom_objects, safe_mode=False)


def _custom_objects(model: Any) -> dict[str, Any]:
    """The user's own classes and functions in `model`, by the names that Keras gives them."""
    import keras

    found = {}
    for own in _own(model):
        found[own.__name__] = own
        found[keras.saving.get_registered_name(own)] = own
    return found


def _own(model: Any) -> Iterator[Any]:
    """The user's classes and functions among its layers and in the arguments of `compile`."""
    from hyparflow.model.keras_internals.compiled import compile_arguments
    from hyparflow.model.keras_internals.layers import all_layers

    layers = all_layers(model)
    made_with = [value for layer in layers for value in _leaves(dict(vars(layer)))]
    compiled = compile_arguments(model) if model.compiled else {}
    for value in (*layers, *made_with, *_leaves(compiled)):
        if hasattr(value, "__wrapped__"):  # a method that Keras has stored in the object
            continue
        if isinstance(value, type | types.FunctionType):
            own = value
        elif hasattr(value, "get_config"):
            own = type(value)
        else:
            continue
        if (own.__module__ or "builtins").split(".")[0] not in _LIBRARIES:
            yield own


def _leaves(value: Any) -> Iterator[Any]:
    """The leaves of lists and dicts; Keras's trees would sort keys, which may be of any type."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple | set):
        yield value
        return
    for part in value:
        yield from _leaves(part)
