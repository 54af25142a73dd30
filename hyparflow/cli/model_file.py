"""The model a command works on: a saved one, or what a function of a Python file builds."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyparflow.comm.recursion import deep_models
from hyparflow.formats.plain_files import require_plain
from hyparflow.launching.installation import install_command
from hyparflow.model.versions import found_version, require_versions

__all__ = ["load_model"]

_REASON = 300  # letters that are shown of an error of Keras, which may print whole models


def load_model(model: str, settings: Sequence[str] = ()) -> Any:
    """The model of ``FILE`` (saved by Keras) or ``FILE.py:FUNCTION``.

    Args:
        model: As on the command line.
        settings: ``NAME=VALUE`` for the function, values as Python writes them, else text.

    Raises:
        ValueError: if there is no such file or function, or it gives no model.
        ImportError: without TensorFlow, or with versions that are too old.
    """
    if not found_version("tensorflow")[1]:
        raise ImportError(
            "hyparflow works on models with TensorFlow. Received: an environment without it. "
            f"Install it by: {install_command('cpu')}"
        )
    require_versions()
    path, _, name = model.partition(".py:")
    if settings and not name:
        raise ValueError(f"--set is for FILE.py:FUNCTION. Received: {model} and --set")
    from hyparflow.model.deferred import deferred

    with deep_models(), deferred():
        return _built(model, Path(f"{path}.py"), name, _values(settings)) if name else _saved(model)


def _saved(model: str) -> Any:
    import keras

    if not Path(model).exists():
        raise ValueError(
            "MODEL must be a saved Keras model, or FILE.py:FUNCTION. "
            f"Received: {model}, which does not exist"
        )
    if Path(model).suffix == ".py":
        raise ValueError(
            f"A Python file is given with its function. Received: {model}. Write {model}:FUNCTION."
        )
    if not Path(model).is_dir():
        require_plain(model, "MODEL must be a plain file, or FILE.py:FUNCTION.")
    import hyparflow.model.experts.mixture_of_experts  # noqa: F401  # a layer that Keras may find

    try:
        return keras.models.load_model(model)
    except Exception as error:  # Keras, and layers that it loads, raise many types
        reason = str(error).strip().split("\n")[0][:_REASON]
        raise ValueError(
            "MODEL must be a file that Keras can load, or FILE.py:FUNCTION, which builds one. "
            f"Received: {model}. If the file is whole, it needs layers, losses or metrics that "
            f"only a function can bring. Keras says: {type(error).__name__}: {reason}"
        ) from error


def _built(model: str, file: Path, name: str, values: dict[str, Any]) -> Any:
    import keras

    build = getattr(_module(model, file), name, None)
    if not callable(build):
        raise ValueError(f"{file} has no function '{name}'. Received: {model}")
    try:
        inspect.signature(build).bind(**values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}. Give its arguments by --set NAME=VALUE.") from error
    try:
        built = build(**values)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{model} raised {type(error).__name__}: {error}") from error
    if not isinstance(built, keras.Model):
        raise ValueError(f"{name} must return a keras.Model. Received: {type(built).__name__}")
    return built


def _module(model: str, file: Path) -> Any:
    if not file.exists():
        raise ValueError(f"No file {file}. Received: {model}")
    require_plain(file, "A Python file must be a plain one.")
    sys.path.insert(0, str(file.parent))  # as when Python runs the file
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file. Received: {model}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{file} raised {type(error).__name__}: {error}") from error
    return module


def _values(settings: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE. Received: {setting}")
        try:
            values[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            values[name] = text
    return values
