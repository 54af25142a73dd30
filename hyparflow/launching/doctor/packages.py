"""Checks that the Python packages are installed and new enough."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from hyparflow.comm.one_dnn import is_left_off
from hyparflow.formats.plain_files import require_plain
from hyparflow.launching.doctor.finding import OK, PROBLEM, Finding
from hyparflow.launching.installation import install_command
from hyparflow.model.versions import MINIMUM, found_version, is_too_old

__all__ = ["check_packages", "version_of"]


def check_packages(environ: Mapping[str, str], settings: Path) -> Iterator[Finding]:
    """Check Python, TensorFlow and Keras.

    Args:
        environ: environment variables.
        settings: Keras's settings file.
    """
    yield _python()
    yield _tensorflow()
    yield _one_dnn(environ)
    yield _keras()
    yield _backend(environ, settings)


def version_of(package: str) -> str:
    """The version of a package; an empty string if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _python() -> Finding:
    return Finding("Python", OK, f"{platform.python_version()}, {sys.executable}")


def _tensorflow() -> Finding:
    package, version = found_version("tensorflow")
    if not version:
        fix = f"{install_command('cpu')}; for CUDA, {install_command('gpu')}"
        return Finding("TensorFlow", PROBLEM, "not installed", fix)
    if is_too_old("tensorflow", version):
        fix = f'pip install "{package}>={MINIMUM["tensorflow"]}"'
        return Finding("TensorFlow", PROBLEM, f"{package} {version} is too old", fix)
    return Finding("TensorFlow", OK, f"{package} {version}")


def _one_dnn(environ: Mapping[str, str]) -> Finding:
    if is_left_off(environ):
        text = "TensorFlow leaves it off here; hyparflow takes what is faster of it"
        return Finding("oneDNN", OK, f"{text}. Unusual recurrent layers: TF_ENABLE_ONEDNN_OPTS=1")
    return Finding("oneDNN", OK, "as TensorFlow or you have chosen")


def _keras() -> Finding:
    version = found_version("keras")[1]
    if not version or is_too_old("keras", version):
        text = version or "not installed"
        return Finding("Keras", PROBLEM, text, f'pip install "keras>={MINIMUM["keras"]}"')
    return Finding("Keras", OK, version)


def _backend(environ: Mapping[str, str], settings: Path) -> Finding:
    chosen, source = environ.get("KERAS_BACKEND", ""), "KERAS_BACKEND"
    if not chosen and settings.exists():
        source = str(settings)
        chosen = _setting(settings)
    if chosen in ("", "tensorflow"):
        return Finding("Keras's backend", OK, "tensorflow")
    return Finding(
        "Keras's backend",
        PROBLEM,
        f"{chosen}, by {source}; hyparflow trains with TensorFlow",
        "export KERAS_BACKEND=tensorflow",
    )


def _setting(file: Path) -> str:
    """The backend that Keras's settings file names; an empty string if it names none."""
    try:
        require_plain(file, "Keras's settings are a plain file.")
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return ""
    return str(found.get("backend", "")) if isinstance(found, dict) else ""
